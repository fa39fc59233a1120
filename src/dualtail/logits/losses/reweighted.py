"""Cross-entropy with weights: of classes, or of samples by how hard they are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dualtail.logits._arrays import ArrayLike
from dualtail.logits.losses._checks import check_number, mean_one, positive_counts, read_log_prior
from dualtail.logits.losses.base import AdjustedLoss, LogitLoss
from dualtail.logits.prior import LabelPrior


class FocalLoss(LogitLoss):
    """``(1 - p_y)^gamma CE(f, y)`` with ``p = softmax(f)``: easy samples count less.

    Its minimiser's probabilities are not the posterior but rank the classes as the posterior does (Charoenphakdee et
    al., CVPR 2021, arXiv 2011.09172), so the sampled prior is still in them.

    Args:
        gamma: the focusing exponent, at least 0; 0 is the cross-entropy.

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017 (arXiv 1708.02002), for softmax scores.

    Example:
        >>> FocalLoss(gamma=2)(torch.zeros(1, 4), torch.tensor([0]))     # 0.75 ** 2 * log(4)
        tensor(0.7798)
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = check_number(gamma, "gamma", low=0)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, labels, reduction="none")
        # 1 - p without cancellation; not quite 0, where a power below 1 has no derivative.
        miss = -torch.expm1(-nll)
        return (miss.clamp_min(torch.finfo(miss.dtype).tiny) ** self.gamma * nll).mean()

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"gamma={self.gamma}"


class ClassBalancedLoss(AdjustedLoss):
    """Cross-entropy weighted by the inverse effective number, ``w_c = (1 - beta) / (1 - beta^n_c)``.

    The weights are scaled to mean 1, which the weighted mean over the batch makes irrelevant. Soft labels are
    taken.

    Args:
        counts: ``(C,)`` training samples a class, all positive.
        beta: in ``[0, 1)``; 0 is the plain cross-entropy, towards 1 the weights go to ``1 / n_c``.

    Source:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019 (arXiv 1901.05555).

    Example:
        >>> ClassBalancedLoss([100, 1], beta=0.5).class_weight
        tensor([0.6667, 1.3333])
    """

    def __init__(self, counts: ArrayLike, beta: float = 0.9999) -> None:
        beta = check_number(beta, "beta", low=0, below=1)
        effective = -torch.expm1(positive_counts(counts) * (math.log(beta) if beta else -math.inf))
        super().__init__(class_weight=mean_one(1 / effective))


class GeneralizedReweightLoss(AdjustedLoss):
    """Cross-entropy weighted by ``w_c`` proportional to ``P_S(c)^-power``. Soft labels are taken.

    Args:
        source_prior: ``P_S``, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities.
        power: 0 is the plain cross-entropy, 1 weighs every class the same in total.

    Source:
        Zhang et al., "Distribution Alignment: A Unified Framework for Long-tail Visual Recognition", CVPR 2021
        (arXiv 2103.16370).

    Example:
        >>> GeneralizedReweightLoss(LabelPrior.from_counts([30, 10])).class_weight
        tensor([0.5000, 1.5000])
    """

    def __init__(self, source_prior: LabelPrior | ArrayLike, power: float = 1.0) -> None:
        log_prior = read_log_prior(source_prior, "source_prior")
        super().__init__(class_weight=mean_one((-check_number(power, "power") * log_prior).softmax(0)))
