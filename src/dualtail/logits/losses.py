"""Training losses for long-tailed data: one signature, one registry.

Every loss is a module called as ``loss(logits (..., C), labels (...)) -> scalar``, the mean over the leading
dimensions. Most of them are one formula, :func:`adjusted_cross_entropy`, with different constants; priors and
weights are buffers, so they follow ``loss.to(device)``.

Inside, everything is float32 (float64 if the logits are), also under autocast: the offsets of a long tail, such
as ``log(5 / 115846)``, are beyond what half precision adds to a logit without harm.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualtail.errors import InputError, nearest
from dualtail.logits._arrays import (
    ArrayLike,
    answer_like,
    as_counts,
    as_float,
    as_labels,
    as_logits,
    as_tensor,
)
from dualtail.logits.prior import LabelPrior, as_log_prior

# How far from 1 the soft labels of a sample may sum.
_SOFT_TOLERANCE = 1e-3


def adjusted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    multiplier: Tensor | None = None,
    offset: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    r"""Return the cross-entropy of scaled and shifted logits, averaged with class weights.

    .. math:: \frac{\sum_i \omega_{y_i} \, \mathrm{CE}(\Delta \odot f(x_i) + \iota, \; y_i)}{\sum_i \omega_{y_i}}

    With soft labels ``t`` a sample counts towards each class by its share: the sums run over ``i`` and ``c``
    with ``t_ic omega_c`` in place of ``omega_{y_i}``.

    Args:
        logits: ``(N, C)`` floating point.
        labels: ``(N,)`` int64, or ``(N, C)`` floating point whose rows sum to 1 (Mixup, CutMix).
        multiplier: ``Delta``, a scalar or ``(C,)``; 1 if None.
        offset: ``iota``, ``(C,)``; 0 if None.
        class_weight: ``omega``, ``(C,)`` and positive; 1 if None.

    Returns:
        A scalar of the logits' dtype.

    Source:
        The general form is that of Kini et al., "Label-Imbalanced and Group-Sensitive Classification under
        Overparameterization", NeurIPS 2021 (arXiv 2103.01550).

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
        >>> adjusted_cross_entropy(logits, labels)
        tensor(0.4100)
        >>> adjusted_cross_entropy(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.4100)
    """
    if multiplier is not None:
        logits = logits * multiplier.to(logits.dtype)
    if offset is not None:
        logits = logits + offset.to(logits.dtype)
    weight = None if class_weight is None else class_weight.to(logits.dtype)
    if not labels.is_floating_point():
        return F.cross_entropy(logits, labels, weight=weight)
    share = labels.to(logits.dtype) if weight is None else labels.to(logits.dtype) * weight
    return -(share * logits.log_softmax(-1)).sum() / share.sum()


class LogitLoss(nn.Module):
    """What all losses share: checking, flattening and precision. Subclasses define ``_loss`` on ``(N, C)``.

    Attributes:
        needs: the constructor arguments that describe the data, of "counts", "source_prior", "pretrain_prior".
        soft_labels: whether labels may also be ``(..., C)`` floating point probabilities.
        num_classes: C if the loss was built for one number of classes, else None.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    soft_labels: ClassVar[bool] = False
    num_classes: int | None = None

    def forward(self, logits: ArrayLike, labels: ArrayLike) -> Any:
        """Return the mean loss.

        Label values are checked on the CPU only: on an accelerator that would wait for the device at each step.

        Args:
            logits: ``(..., C)`` floating point; half precision is widened.
            labels: ``(...)`` integers, or ``(..., C)`` floating point probabilities if ``soft_labels``.

        Returns:
            A scalar; 0, with a gradient of 0, for an empty batch (an image without boxes).

        Raises:
            InputError: shapes, dtypes or values do not fit.
        """
        scores = as_logits(logits, finite=False)
        num_classes = scores.shape[-1]
        if self.num_classes not in (None, num_classes):
            raise InputError(
                f"logits have {num_classes} classes", fix=f"this loss was built for {self.num_classes}"
            )
        targets = self._check_labels(labels, scores)
        scores = scores.reshape(-1, num_classes)
        if not len(scores):
            return answer_like(logits, scores.sum())
        with torch.autocast(scores.device.type, enabled=False):
            return answer_like(logits, self._loss(scores, targets))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def _check_labels(self, labels: ArrayLike, logits: Tensor) -> Tensor:
        """Return labels as ``(N,)`` int64, or ``(N, C)`` soft, on the device of the logits."""
        targets = as_tensor(labels, "labels").to(logits.device)
        num_classes = logits.shape[-1]
        look = logits.device.type == "cpu" and not torch.compiler.is_compiling()
        if targets.is_floating_point():
            if not self.soft_labels:
                raise InputError(
                    f"labels have dtype {targets.dtype}",
                    where=type(self).__name__,
                    fix="this loss is not defined for soft labels; pass integers",
                )
            if targets.shape != logits.shape:
                raise InputError(
                    f"labels has shape {tuple(targets.shape)}", fix=f"expected {tuple(logits.shape)}"
                )
            if look and targets.numel():
                _check_soft(targets)
            return targets.reshape(-1, num_classes)
        if look:
            return as_labels(targets, num_classes, tuple(logits.shape[:-1])).reshape(-1)
        if targets.shape != logits.shape[:-1]:
            raise InputError(
                f"labels has shape {tuple(targets.shape)}", fix=f"expected {tuple(logits.shape[:-1])}"
            )
        return targets.long().reshape(-1)


class _AdjustedLoss(LogitLoss):
    """The losses that are :func:`adjusted_cross_entropy` with constants of their own."""

    soft_labels = True
    multiplier: Tensor | None
    offset: Tensor | None
    class_weight: Tensor | None

    def __init__(
        self,
        *,
        multiplier: Tensor | None = None,
        offset: Tensor | None = None,
        class_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("multiplier", multiplier), ("offset", offset), ("class_weight", class_weight)):
            self.register_buffer(name, None if value is None else value.float())
            if value is not None and value.ndim:
                self.num_classes = len(value)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return adjusted_cross_entropy(
            logits, labels, multiplier=self.multiplier, offset=self.offset, class_weight=self.class_weight
        )


class CrossEntropyLoss(_AdjustedLoss):
    """``CE(f, y)``: the plain cross-entropy. Soft labels are taken.

    Example:
        >>> CrossEntropyLoss()(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    def __init__(self) -> None:
        super().__init__()


class FocalLoss(LogitLoss):
    """``(1 - p_y)^gamma CE(f, y)`` with ``p = softmax(f)``: easy samples count less.

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
        self.gamma = _number(gamma, "gamma", low=0)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, labels, reduction="none")
        # 1 - p without cancellation; not quite 0, where a power below 1 has no derivative.
        miss = -torch.expm1(-nll)
        return (miss.clamp_min(torch.finfo(miss.dtype).tiny) ** self.gamma * nll).mean()

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"gamma={self.gamma}"


class LDAMLoss(LogitLoss):
    """``CE(f - scale m_y e_y, y)`` with ``m_c = max_margin (n_min / n_c)^(1/4)``: rarer classes, wider margins.

    Only the score of the true class is lowered, by a margin in units of a cosine; ``scale`` is what the cosines
    were multiplied by to make the logits (25 in the cosine head, 30 in the paper).

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

    needs = ("source_prior",)
    margin: Tensor

    def __init__(
        self, source_prior: LabelPrior | ArrayLike, max_margin: float = 0.5, scale: float = 25.0
    ) -> None:
        super().__init__()
        log_prior = _log_prior(source_prior, "source_prior")
        self.num_classes = len(log_prior)
        self.scale = _number(scale, "scale", above=0)
        margin = _number(max_margin, "max_margin", low=0) * ((log_prior.min() - log_prior) / 4).exp()
        self.register_buffer("margin", margin.float())

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        margin = self.scale * self.margin.to(logits.dtype)[labels]
        return F.cross_entropy(logits.scatter_add(1, labels[:, None], -margin[:, None]), labels)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"scale={self.scale}"


class ClassBalancedLoss(_AdjustedLoss):
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

    needs = ("counts",)

    def __init__(self, counts: ArrayLike, beta: float = 0.9999) -> None:
        beta = _number(beta, "beta", low=0, below=1)
        effective = -torch.expm1(_positive_counts(counts) * (math.log(beta) if beta else -math.inf))
        super().__init__(class_weight=_mean_one(1 / effective))


class GeneralizedReweightLoss(_AdjustedLoss):
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

    needs = ("source_prior",)

    def __init__(self, source_prior: LabelPrior | ArrayLike, power: float = 1.0) -> None:
        log_prior = _log_prior(source_prior, "source_prior")
        super().__init__(class_weight=_mean_one((-_number(power, "power") * log_prior).softmax(0)))


class BalancedSoftmaxLoss(_AdjustedLoss):
    """``CE(f + log P_S, y)``: logit adjustment with tau = 1. Soft labels are taken.

    Args:
        source_prior: ``P_S``, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities.

    Source:
        Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020 (arXiv 2007.10740).

    Example:
        >>> BalancedSoftmaxLoss(LabelPrior.from_counts([3, 1]))(torch.zeros(1, 2), torch.tensor([1]))   # log(4)
        tensor(1.3863)
    """

    needs = ("source_prior",)

    def __init__(self, source_prior: LabelPrior | ArrayLike) -> None:
        super().__init__(offset=_log_prior(source_prior, "source_prior"))


class LogitAdjustmentLoss(_AdjustedLoss):
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

    needs = ("source_prior",)

    def __init__(self, source_prior: LabelPrior | ArrayLike, tau: float = 1.0, scale: float = 1.0) -> None:
        scale = _number(scale, "scale", above=0)
        super().__init__(
            multiplier=None if scale == 1 else torch.tensor(scale),
            offset=scale * _number(tau, "tau") * _log_prior(source_prior, "source_prior"),
        )


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

    needs = ("source_prior",)
    log_prior: Tensor

    def __init__(
        self, source_prior: LabelPrior | ArrayLike, weight: float = 0.1, regularization: float = 0.1
    ) -> None:
        super().__init__()
        log_prior = _log_prior(source_prior, "source_prior")
        self.num_classes = len(log_prior)
        self.weight = _number(weight, "weight", low=0)
        self.regularization = _number(regularization, "regularization", low=0)
        self.register_buffer("log_prior", log_prior.float())

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


class GLATrainLoss(_AdjustedLoss):
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

    needs = ("source_prior", "pretrain_prior")

    def __init__(
        self,
        source_prior: LabelPrior | ArrayLike,
        pretrain_prior: LabelPrior | ArrayLike,
        tau: float = 1.0,
        pretrain_tau: float = 1.0,
    ) -> None:
        source = _log_prior(source_prior, "source_prior")
        pretrain = as_log_prior(pretrain_prior, len(source), "pretrain_prior").cpu()
        super().__init__(
            offset=_number(tau, "tau") * source + _number(pretrain_tau, "pretrain_tau") * pretrain
        )


class VSLoss(_AdjustedLoss):
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

    needs = ("source_prior",)

    def __init__(
        self,
        source_prior: LabelPrior | ArrayLike,
        tau: float = 1.0,
        gamma: float = 0.3,
        class_weight: ArrayLike | None = None,
    ) -> None:
        log_prior = _log_prior(source_prior, "source_prior")
        if class_weight is not None:
            class_weight = as_float(class_weight, "class_weight").double()
            if class_weight.shape != log_prior.shape or not bool((class_weight > 0).all()):
                raise InputError(
                    f"class_weight has shape {tuple(class_weight.shape)} or a value that is not positive",
                    fix=f"expected ({len(log_prior)},) positive numbers",
                )
        super().__init__(
            multiplier=(_number(gamma, "gamma", low=0) * (log_prior - log_prior.max())).exp(),
            offset=_number(tau, "tau") * log_prior,
            class_weight=class_weight,
        )


LOSSES: dict[str, type[LogitLoss]] = {
    "ce": CrossEntropyLoss,
    "focal": FocalLoss,
    "ldam": LDAMLoss,
    "class_balanced": ClassBalancedLoss,
    "generalized_reweight": GeneralizedReweightLoss,
    "balanced_softmax": BalancedSoftmaxLoss,
    "la": LogitAdjustmentLoss,
    "lade": LADELoss,
    "gla_train": GLATrainLoss,
    "vs": VSLoss,
}

# What of the data each constructor argument of `LogitLoss.needs` may come from.
_SUPPLIED_BY = {
    "counts": "counts",
    "source_prior": "counts or source_prior",
    "pretrain_prior": "pretrain_prior",
}


def loss_options(name: str) -> dict[str, Any]:
    """Return the options of a loss and their defaults.

    Example:
        >>> loss_options("gla_train")
        {'tau': 1.0, 'pretrain_tau': 1.0}
    """
    loss = _look_up(name)
    parameters = inspect.signature(loss).parameters
    return {key: value.default for key, value in parameters.items() if key not in loss.needs}


def build_loss(
    name: str,
    *,
    counts: ArrayLike | None = None,
    source_prior: LabelPrior | ArrayLike | None = None,
    pretrain_prior: LabelPrior | ArrayLike | None = None,
    **options: Any,
) -> LogitLoss:
    """Build a loss by its name in ``LOSSES``.

    What describes the data may always be passed; a loss takes what it needs (``LOSSES[name].needs``).

    Args:
        name: such as ``"la"``.
        counts: ``(C,)`` training samples a class. Where a source prior is needed and none is given, it comes
            from these; they must then all be positive.
        source_prior: ``P_S``; normalised log-probabilities or a :class:`~dualtail.logits.prior.LabelPrior`.
        pretrain_prior: ``P_P``, likewise.
        **options: the loss's own, as :func:`loss_options` lists them.

    Raises:
        InputError: an unknown name or option (the nearest known one is named), a missing description of the
            data, a class without samples, an option out of range.

    Example:
        >>> loss = build_loss("la", counts=[90, 10], tau=1.5)
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.0364)
        >>> build_loss("la", counts=[90, 10], tua=1.5)
        Traceback (most recent call last):
        ...
        dualtail.errors.InputError: loss 'la': unknown option 'tua'; did you mean 'tau'?
    """
    loss = _look_up(name)
    known = loss_options(name)
    for option in options:
        if option not in known:
            raise _unknown("option", option, list(known), where=f"loss {name!r}")
    if "source_prior" in loss.needs and source_prior is None and counts is not None:
        source_prior = LabelPrior.from_counts(_positive_counts(counts))
    data = {"counts": counts, "source_prior": source_prior, "pretrain_prior": pretrain_prior}
    for need in loss.needs:
        if data[need] is None:
            raise InputError(f"loss {name!r} needs {need}", fix=f"pass {_SUPPLIED_BY[need]}")
    return loss(**{need: data[need] for need in loss.needs}, **options)


def _look_up(name: str) -> type[LogitLoss]:
    if name not in LOSSES:
        raise _unknown("loss", name, list(LOSSES))
    return LOSSES[name]


def _unknown(kind: str, name: str, known: list[str], where: str | None = None) -> InputError:
    meant = nearest(name, known)
    fix = f"did you mean {meant!r}?" if meant else f"known are {', '.join(known) or 'none'}"
    return InputError(f"unknown {kind} {name!r}", where=where, fix=fix)


def _log_prior(value: LabelPrior | ArrayLike, name: str) -> Tensor:
    """Return ``(C,)`` float64 log-probabilities on the CPU, where buffers are made."""
    log_prior = value.log_prob if isinstance(value, LabelPrior) else as_tensor(value, name)
    return as_log_prior(value, log_prior.shape[0] if log_prior.ndim else 0, name).cpu()


def _positive_counts(counts: ArrayLike) -> Tensor:
    values = as_counts(counts)
    if not bool((values > 0).all()):
        empty = (values == 0).nonzero().flatten().tolist()
        raise InputError(
            f"class {empty[0]} has no samples ({len(empty)} such class{'es' if len(empty) > 1 else ''})",
            where="counts",
            fix="leave it out, or pass source_prior=LabelPrior.from_counts(counts, zero='smooth', smoothing=1)",
        )
    return values.cpu()


def _mean_one(weight: Tensor) -> Tensor:
    return weight / weight.mean()


def _number(
    value: float, name: str, *, low: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> float:
    """Return a finite number with ``low <= value``, ``above < value`` and ``value < below``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}", fix="expected a number") from None
    if not (math.isfinite(number) and low <= number and above < number < below):
        bounds = [(low, "at least"), (above, "above"), (below, "below")]
        wanted = " and ".join(f"{word} {bound:g}" for bound, word in bounds if math.isfinite(bound))
        raise InputError(f"{name} is {value}", fix=f"expected {wanted or 'a finite number'}")
    return number


def _check_soft(labels: Tensor) -> None:
    low = float(labels.min())
    off = float((labels.sum(-1) - 1).abs().max())
    if not (low >= 0 and off <= _SOFT_TOLERANCE):
        raise InputError(
            "labels are floating point but no probabilities",
            fix="expected values of at least 0 that sum to 1 over the classes, or integers",
        )
