"""Balanced softmax with a regulariser over the batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dualtail.logits._arrays import ArrayLike
from dualtail.logits.losses._checks import check_number, read_log_prior
from dualtail.logits.losses.base import LogitLoss
from dualtail.logits.prior import LabelPrior


class LADELoss(LogitLoss):
    r"""Balanced softmax plus a regulariser that estimates ``log p(x | c) / p(x)`` under a uniform target prior.

    .. math:: \mathrm{CE}(f + \log P_S, y) + \alpha \sum_c P_S(c) \left(
        -\frac{1}{N_c} \sum_{i: y_i = c} f_c(x_i) + Z_c + \lambda Z_c^2 \right), \qquad
        Z_c = \log \frac{1}{N} \sum_i \frac{1/C}{P_S(c)} e^{f_c(x_i)}

    The sums run over the batch; a class that is not in it has no first term. Unlike the other losses it
    therefore depends on how samples are batched, and on a constant added to all logits of a sample.

    Args:
        source_prior: ``P_S``, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities.
        weight: ``alpha``, at least 0; 0 is the balanced softmax.
        regularization: ``lambda``, at least 0.

    Source:
        Hong et al., "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR 2021
        (arXiv 2012.00321).

    Example:
        >>> loss = LADELoss(LabelPrior.uniform(2), weight=0.1)
        >>> loss(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        tensor(0.0909)
    """

    log_prior: Tensor

    def __init__(
        self, source_prior: LabelPrior | ArrayLike, weight: float = 0.1, regularization: float = 0.1
    ) -> None:
        super().__init__()
        log_prior = read_log_prior(source_prior, "source_prior")
        self.num_classes = len(log_prior)
        self.weight = check_number(weight, "weight", low=0)
        self.regularization = check_number(regularization, "regularization", low=0)
        self.register_buffer("log_prior", log_prior.float())

    def remaining_prior(self, sampled: LabelPrior | ArrayLike) -> LabelPrior:
        """Return ``s / P_S``, normalised: the balanced softmax's, which the bound ``-mean f_c + Z_c`` shares.

        Its penalty ``lambda Z_c^2`` alone pulls some of ``P_S`` back: 2 % of ``log P_S`` with the default weights.

        Args and errors as in :meth:`LogitLoss.remaining_prior`.
        """
        logs = super().remaining_prior(sampled).log_prob - self.log_prior.cpu().double()
        return LabelPrior(logs.log_softmax(0))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        num, num_classes = logits.shape
        log_prior = self.log_prior.to(logits.dtype)
        of_true = logits.gather(1, labels[:, None])[:, 0]
        in_class = torch.zeros_like(log_prior).index_add(0, labels, torch.ones_like(of_true))
        positive = torch.zeros_like(log_prior).index_add(0, labels, of_true) / in_class.clamp_min(1)
        log_mean = logits.logsumexp(0) - log_prior - math.log(num_classes * num)
        estimate = log_prior.exp() @ (log_mean - positive + self.regularization * log_mean**2)
        return F.cross_entropy(logits + log_prior, labels) + self.weight * estimate

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"weight={self.weight}, regularization={self.regularization}"
