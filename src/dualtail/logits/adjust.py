"""Logit adjustment after training: what of the two priors is taken off which logits, by name.

=========  =========================================================  =================================
name       logits                                                     for
=========  =========================================================  =================================
none       ``f``                                                      comparison
gla_zs     ``f - tau log P_P``                                        zero-shot ``f``
gla_ft     ``f - tau log P_S``                                        ``f`` trained by cross-entropy
gla        ``(f - tau log P_S) + (f_zs - tau log P_P)``               ``f`` trained by cross-entropy
gla_la     ``f + (f_zs - tau log P_P)``                               ``f`` whose loss took ``P_S``: LA
=========  =========================================================  =================================

Sources: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021 (arXiv 2007.07314), for ``gla_ft``; Zhu et
al., "Generalized Logit Adjustment", NeurIPS 2023 (arXiv 2310.08106), for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dualtail.errors import InputError, check_choice
from dualtail.logits._arrays import ArrayLike, answer_like, as_logits
from dualtail.logits.losses import LOSSES, LogitLoss, build_loss
from dualtail.logits.prior import LabelPrior, as_log_prior


@dataclass(frozen=True)
class Adjustment:
    """A named adjustment.

    Args:
        takes_off: which priors are subtracted, of "source_prior" and "pretrain_prior".
        adds_zero_shot: whether zero-shot logits are added; the pre-training prior is then theirs.
    """

    takes_off: tuple[str, ...]
    adds_zero_shot: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The arguments of :func:`adjust_logits` that it needs."""
        return (*self.takes_off, "zero_shot_logits") if self.adds_zero_shot else self.takes_off

    @property
    def from_logits(self) -> tuple[str, ...]:
        """The priors that come off the given logits themselves."""
        return tuple(p for p in self.takes_off if p != "pretrain_prior" or not self.adds_zero_shot)


ADJUSTMENTS: dict[str, Adjustment] = {
    "none": Adjustment(()),
    "gla_zs": Adjustment(("pretrain_prior",)),
    "gla_ft": Adjustment(("source_prior",)),
    "gla": Adjustment(("source_prior", "pretrain_prior"), adds_zero_shot=True),
    "gla_la": Adjustment(("pretrain_prior",), adds_zero_shot=True),
}

TrainedWith = LogitLoss | str | tuple[str, Mapping[str, Any]]
# Shares of a prior that are not told from 0 or 1.
_NEGLIGIBLE = 1e-2


def adjust_logits(
    logits: ArrayLike,
    variant: str,
    *,
    zero_shot_logits: ArrayLike | None = None,
    source_prior: LabelPrior | ArrayLike | None = None,
    pretrain_prior: LabelPrior | ArrayLike | None = None,
    tau: float = 1.0,
    trained_with: TrainedWith | None = None,
) -> Any:
    """Take label priors off logits; :data:`ADJUSTMENTS` names the ways, the module's table has their formulas.

    The argument of a prior that the variant does not use may be given all the same.

    Args:
        logits: ``(..., C)`` of the model: zero-shot for ``gla_zs``, fine-tuned for the others.
        variant: a name of :data:`ADJUSTMENTS`.
        zero_shot_logits: ``(..., C)`` of the same samples, for ``gla`` and ``gla_la``.
        source_prior: ``P_S``, a :class:`LabelPrior` or ``(C,)`` normalised log-probabilities.
        pretrain_prior: ``P_P``, likewise, such as :func:`estimate_label_prior` gives.
        tau: how much of the priors is taken off; -1 puts back what 1 took.
        trained_with: the loss that trained the model, its name in ``LOSSES``, or name and options, such as
            ``("la", {"tau": 0.5})``. Where it has taken so much of a prior off the logits that what is to be subtracted
            would be more than all of it, that is refused. The samples are taken to be drawn from ``source_prior``.

    Returns:
        Adjusted logits ``(..., C)``: numpy if ``logits`` were, else a tensor on their device; at least float32.

    Raises:
        InputError: an unknown variant or loss, a missing argument, shapes that differ, values that are not finite,
            or a prior that would be subtracted twice because the loss took it. That ``logits`` are adjusted already
            cannot be seen from them.

    Example:
        >>> source, pretrain = LabelPrior.from_counts([9, 1]), LabelPrior.from_counts([1, 3])
        >>> adjust_logits([[2.0, 0.0]], "gla_ft", source_prior=source)
        array([[2.1053..., 2.3025...]])
        >>> adjust_logits([[0.0, 1.0]], "gla_zs", pretrain_prior=pretrain)
        array([[1.3862..., 1.2876...]])
        >>> adjust_logits([[2.0, 0.0]], "gla_ft", source_prior=source, trained_with="la")
        Traceback (most recent call last):
        ...
        dualtail.errors.InputError: variant 'gla_ft': source_prior would be subtracted twice: the loss 'la' has ...
    """
    check_choice("adjustment", variant, ADJUSTMENTS)
    adjustment = ADJUSTMENTS[variant]
    if not math.isfinite(tau):
        raise InputError(f"tau is {tau}", fix="expected a finite number")
    given = {
        "zero_shot_logits": zero_shot_logits,
        "source_prior": source_prior,
        "pretrain_prior": pretrain_prior,
    }
    for name in adjustment.needs:
        if given[name] is None:
            raise InputError(f"{name} is missing", where=f"variant {variant!r}", fix=f"pass {name}")
    scores = as_logits(logits)
    if trained_with is not None:
        _refuse_taken(variant, trained_with, scores.shape[-1], source_prior, pretrain_prior, tau)
    offset = sum(tau * as_log_prior(given[name], scores.shape[-1], name) for name in adjustment.takes_off)
    if isinstance(offset, Tensor):
        scores = scores - offset.to(scores)
    if adjustment.adds_zero_shot:
        scores = scores + _zero_shot(zero_shot_logits, scores)
    return answer_like(logits, scores.clone() if variant == "none" else scores)


def _zero_shot(zero_shot_logits: ArrayLike, scores: Tensor) -> Tensor:
    zero_shot = as_logits(zero_shot_logits, "zero_shot_logits")
    if zero_shot.shape != scores.shape:
        raise InputError(
            f"zero_shot_logits has shape {tuple(zero_shot.shape)}", fix=f"expected {tuple(scores.shape)}"
        )
    return zero_shot.to(scores)


def _refuse_taken(
    variant: str,
    trained_with: TrainedWith,
    num_classes: int,
    source_prior: LabelPrior | ArrayLike | None,
    pretrain_prior: LabelPrior | ArrayLike | None,
    tau: float,
) -> None:
    """Refuse to subtract more of a prior from a model's logits than its training left there."""
    known = LabelPrior.uniform(num_classes) if source_prior is None else source_prior
    source = LabelPrior(as_log_prior(known, num_classes, "source_prior"))
    name, loss = _find_loss(trained_with, source, pretrain_prior)
    taken = {
        "source_prior": _share_taken(source, loss.remaining_prior(source)),
        "pretrain_prior": loss.pretrain_tau,
    }
    for prior in ADJUSTMENTS[variant].from_logits:
        share = taken[prior]
        if min(share, tau) <= _NEGLIGIBLE or share + tau <= 1 + _NEGLIGIBLE:
            continue
        if share < 1 - _NEGLIGIBLE:
            much, instead = f"{share:.2g} of it", f"use tau={1 - share:.2g} or less"
        elif variant == "gla":
            much, instead = "it", "'gla_la' adds zero-shot logits to such a model's"
        else:
            much, instead = "it", "use variant 'none'"
        raise InputError(
            f"{prior} would be subtracted twice: the loss {name!r} has taken {much} into account",
            where=f"variant {variant!r}",
            fix=instead,
        )


def _find_loss(
    trained_with: TrainedWith, source: LabelPrior, pretrain_prior: LabelPrior | ArrayLike | None
) -> tuple[str, LogitLoss]:
    if isinstance(trained_with, LogitLoss):
        return type(trained_with).__name__, trained_with
    name, options = (trained_with, {}) if isinstance(trained_with, str) else trained_with
    if "counts" in LOSSES.find(name, "trained_with").needs:
        raise InputError(
            f"the loss {name!r} needs counts", where="trained_with", fix="pass the loss itself, not its name"
        )
    pretrain = LabelPrior.uniform(len(source)) if pretrain_prior is None else pretrain_prior
    return name, build_loss(name, source_prior=source, pretrain_prior=pretrain, **options)


def _share_taken(source: LabelPrior, remaining: LabelPrior) -> float:
    """Return ``tau`` where ``source^tau`` has been taken off, and the nearest such ``tau`` where something else has."""
    if source.is_uniform:
        return 0.0
    centred = source.log_prob - source.log_prob.mean()
    return float((source.log_prob - remaining.log_prob) @ centred / (centred @ centred))
