"""Cross-entropy of logits to which log-priors are added, and without any."""

from __future__ import annotations

import torch

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, as_float
from dualtail.logits.losses._checks import check_number, read_log_prior
from dualtail.logits.losses.base import AdjustedLoss
from dualtail.logits.prior import LabelPrior, as_log_prior


class CrossEntropyLoss(AdjustedLoss):
    """``CE(f, y)``: the plain cross-entropy. Soft labels are taken.

    Example:
        >>> CrossEntropyLoss()(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    def __init__(self) -> None:
        super().__init__()


class BalancedSoftmaxLoss(AdjustedLoss):
    """``CE(f + log P_S, y)``: logit adjustment with tau = 1. Soft labels are taken.

    Args:
        source_prior: ``P_S``, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities.

    Source:
        Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020 (arXiv 2007.10740).

    Example:
        >>> BalancedSoftmaxLoss(LabelPrior.from_counts([3, 1]))(torch.zeros(1, 2), torch.tensor([1]))   # log(4)
        tensor(1.3863)
    """

    def __init__(self, source_prior: LabelPrior | ArrayLike) -> None:
        super().__init__(offset=read_log_prior(source_prior, "source_prior"))


class LogitAdjustmentLoss(AdjustedLoss):
    """``CE(scale (f + tau log P_S), y)``: LA, the loss of the recipe. Soft labels are taken.

    ``f`` is then used as it is at test time: training has left ``P_S`` out of it. With the pre-training prior in
    place of ``P_S`` this is the adjustment to a parameter imbalance alone.

    Args:
        source_prior: ``P_S``, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities.
        tau: strength of the adjustment; 0 is the plain cross-entropy.
        scale: positive inverse temperature.

    Source:
        Menon et al., "Long-tail Learning via Logit Adjustment", ICLR 2021 (arXiv 2007.07314).

    Example:
        >>> LogitAdjustmentLoss(LabelPrior.from_counts([3, 1]), tau=2)(torch.zeros(1, 2), torch.tensor([1]))
        tensor(2.3026)
    """

    def __init__(self, source_prior: LabelPrior | ArrayLike, tau: float = 1.0, scale: float = 1.0) -> None:
        scale = check_number(scale, "scale", above=0)
        super().__init__(
            multiplier=None if scale == 1 else torch.tensor(scale),
            offset=scale * check_number(tau, "tau") * read_log_prior(source_prior, "source_prior"),
        )


class GLATrainLoss(AdjustedLoss):
    """``CE(f + tau log P_S + pretrain_tau log P_P, y)``: both imbalances adjusted in training.

    Soft labels are taken.

    Args:
        source_prior: ``P_S``, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities.
        pretrain_prior: ``P_P``, the same, such as ``estimate_label_prior`` gives.
        tau: strength of the source prior.
        pretrain_tau: strength of the pre-training prior; 0 leaves LA.

    Source:
        Zhu et al., "Generalized Logit Adjustment", NeurIPS 2023 (arXiv 2310.08106), applied in training as
        by Chen et al., ICML 2025 (arXiv 2501.15955).

    Example:
        >>> p_s, p_p = LabelPrior.from_counts([3, 1]), LabelPrior.from_counts([1, 3])
        >>> GLATrainLoss(p_s, p_p)(torch.zeros(1, 2), torch.tensor([1]))     # they cancel here
        tensor(0.6931)
    """

    def __init__(
        self,
        source_prior: LabelPrior | ArrayLike,
        pretrain_prior: LabelPrior | ArrayLike,
        tau: float = 1.0,
        pretrain_tau: float = 1.0,
    ) -> None:
        source = read_log_prior(source_prior, "source_prior")
        pretrain = as_log_prior(pretrain_prior, len(source), "pretrain_prior").cpu()
        taken = check_number(pretrain_tau, "pretrain_tau") * pretrain
        super().__init__(offset=check_number(tau, "tau") * source + taken)
        self.pretrain_tau, self._pretrain_offset = float(pretrain_tau), taken

    def remaining_prior(self, sampled: LabelPrior | ArrayLike) -> LabelPrior:
        """Return ``s / P_S^tau``, normalised; ``P_P^pretrain_tau`` is taken off what pre-training left.

        Args and errors as in :meth:`LogitLoss.remaining_prior`.
        """
        return LabelPrior((super().remaining_prior(sampled).log_prob + self._pretrain_offset).log_softmax(0))


class VSLoss(AdjustedLoss):
    """Vector scaling: ``w_y CE(Delta * f + tau log P_S, y)`` with ``Delta_c = (n_c / n_max)^gamma``.

    ``gamma = 0`` is LA; ``tau = 0`` is class-dependent temperatures (CDT). Soft labels are taken.

    Args:
        source_prior: ``P_S``, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities.
        tau: strength of the additive adjustment.
        gamma: strength of the multiplicative adjustment, at least 0. Logits that were scaled up (a cosine
            head's) want less than plain ones.
        class_weight: ``(C,)`` positive weights ``w``; none by default.

    Source:
        Kini et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization",
        NeurIPS 2021 (arXiv 2103.01550).

    Example:
        >>> loss = VSLoss(LabelPrior.from_counts([16, 1]), gamma=0.5)
        >>> loss.multiplier
        tensor([1.0000, 0.2500])
    """

    def __init__(
        self,
        source_prior: LabelPrior | ArrayLike,
        tau: float = 1.0,
        gamma: float = 0.3,
        class_weight: ArrayLike | None = None,
    ) -> None:
        log_prior = read_log_prior(source_prior, "source_prior")
        if class_weight is not None:
            class_weight = as_float(class_weight, "class_weight").double()
            if class_weight.shape != log_prior.shape or not bool((class_weight > 0).all()):
                raise InputError(
                    f"class_weight has shape {tuple(class_weight.shape)} or a value that is not positive",
                    fix=f"expected ({len(log_prior)},) positive numbers",
                )
        super().__init__(
            multiplier=(check_number(gamma, "gamma", low=0) * (log_prior - log_prior.max())).exp(),
            offset=check_number(tau, "tau") * log_prior,
            class_weight=class_weight,
        )
