"""Cross-entropy with margins that depend on the class."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dualtail.logits._arrays import ArrayLike
from dualtail.logits.losses._checks import check_number, read_log_prior
from dualtail.logits.losses.base import LogitLoss
from dualtail.logits.prior import LabelPrior


class LDAMLoss(LogitLoss):
    """``CE(f - scale m_y e_y, y)`` with ``m_c = max_margin (n_min / n_c)^(1/4)``: rarer classes, wider margins.

    Only the score of the true class is lowered, by a margin in units of a cosine; ``scale`` is what the cosines
    were multiplied by to make the logits (25 in the cosine head, 30 in the paper). Margins take no prior off: the
    paper trains with deferred re-weighting for that. They move the boundary between two classes by a factor of at
    most 2 in the odds.

    Args:
        source_prior: ``P_S``, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities.
        max_margin: the margin of the rarest class, at least 0.
        scale: positive.

    Source:
        Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019
        (arXiv 1906.07413).

    Example:
        >>> loss = LDAMLoss(LabelPrior.from_counts([160, 10]), scale=1)
        >>> loss.margin
        tensor([0.2500, 0.5000])
    """

    margin: Tensor

    def __init__(
        self, source_prior: LabelPrior | ArrayLike, max_margin: float = 0.5, scale: float = 25.0
    ) -> None:
        super().__init__()
        log_prior = read_log_prior(source_prior, "source_prior")
        self.num_classes = len(log_prior)
        self.scale = check_number(scale, "scale", above=0)
        margin = check_number(max_margin, "max_margin", low=0) * ((log_prior.min() - log_prior) / 4).exp()
        self.register_buffer("margin", margin.float())

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        margin = self.scale * self.margin.to(logits.dtype)[labels]
        return F.cross_entropy(logits.scatter_add(1, labels[:, None], -margin[:, None]), labels)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"scale={self.scale}"
