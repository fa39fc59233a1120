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
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dualtail.errors import InputError, nearest
from dualtail.logits._arrays import ArrayLike, answer_like, as_logits
from dualtail.logits.losses import LOSSES
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

# What the answers of adjust_logits have had taken off, by their identity for as long as they live, so that the
# notebook's cell that is run twice is noticed. Anything computed from them is not known.
_TAKEN: dict[int, tuple[weakref.ref[Any], dict[str, float]]] = {}


def adjust_logits(
    logits: ArrayLike,
    variant: str,
    *,
    zero_shot_logits: ArrayLike | None = None,
    source_prior: LabelPrior | ArrayLike | None = None,
    pretrain_prior: LabelPrior | ArrayLike | None = None,
    tau: float = 1.0,
    trained_with: str | None = None,
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
        trained_with: the name in ``LOSSES`` of the loss that trained the model. If it has taken a prior into account
            that the variant would subtract from its logits, that is refused.

    Returns:
        Adjusted logits ``(..., C)``: numpy if ``logits`` were, else a tensor on their device; at least float32.

    Raises:
        InputError: an unknown variant or loss, a missing argument, shapes that differ, values that are not finite,
            or a prior that would be subtracted twice: because the loss took it, or because ``logits`` are an answer
            of this function.

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
    adjustment = _find(variant)
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
    if trained_with is not None:
        _refuse_taken_by_loss(variant, trained_with)
    taken = _take(_taken_off(logits), adjustment.from_logits, tau, variant)
    scores = as_logits(logits)
    offset = sum(tau * as_log_prior(given[name], scores.shape[-1], name) for name in adjustment.takes_off)
    if isinstance(offset, Tensor):
        scores = scores - offset.to(scores)
    if adjustment.adds_zero_shot:
        of_zero_shot = _take(_taken_off(zero_shot_logits), ("pretrain_prior",), tau, variant)
        taken = {**taken, **of_zero_shot}
        scores = scores + _zero_shot(zero_shot_logits, scores)
    answer = answer_like(logits, scores.clone() if variant == "none" else scores)
    _remember(answer, taken)
    return answer


def _find(variant: str) -> Adjustment:
    if variant not in ADJUSTMENTS:
        meant = nearest(variant, list(ADJUSTMENTS))
        fix = f"did you mean {meant!r}?" if meant else f"one of {', '.join(ADJUSTMENTS)}"
        raise InputError(f"unknown adjustment {variant!r}", fix=fix)
    return ADJUSTMENTS[variant]


def _zero_shot(zero_shot_logits: ArrayLike, scores: Tensor) -> Tensor:
    found = as_logits(zero_shot_logits, "zero_shot_logits")
    if found.shape != scores.shape:
        raise InputError(
            f"zero_shot_logits has shape {tuple(found.shape)}", fix=f"expected {tuple(scores.shape)}"
        )
    return found.to(scores)


def _refuse_taken_by_loss(variant: str, trained_with: str) -> None:
    if trained_with not in LOSSES:
        meant = nearest(trained_with, list(LOSSES))
        fix = f"did you mean {meant!r}?" if meant else f"one of {', '.join(LOSSES)}"
        raise InputError(f"unknown loss {trained_with!r}", where="trained_with", fix=fix)
    # Counts are the source prior in another form.
    taken = {"source_prior" if need == "counts" else need for need in LOSSES[trained_with].needs}
    for name in ADJUSTMENTS[variant].from_logits:
        if name in taken:
            instead = (
                "'gla_la' adds zero-shot logits to such a model's"
                if variant == "gla"
                else "use variant 'none'"
            )
            raise InputError(
                f"{name} would be subtracted twice: the loss {trained_with!r} has taken it into account",
                where=f"variant {variant!r}",
                fix=instead,
            )


def _taken_off(logits: ArrayLike) -> dict[str, float]:
    """Return how much of which prior has been taken off, as far as that is known."""
    found = _TAKEN.get(id(logits))
    return found[1] if found is not None and found[0]() is logits else {}


def _take(taken: dict[str, float], names: tuple[str, ...], tau: float, variant: str) -> dict[str, float]:
    """Return what will have been taken off, refusing to take more of a prior off that is off already."""
    for name in names:
        if taken.get(name, 0.0) * tau > 0:
            raise InputError(
                f"{name} would be subtracted twice: these logits are adjusted already",
                where=f"variant {variant!r}",
                fix="start from the model's own logits, with the tau that is wanted",
            )
        taken = {**taken, name: taken.get(name, 0.0) + tau}
    return taken


def _remember(answer: Any, taken: dict[str, float]) -> None:
    key = id(answer)
    _TAKEN[key] = (weakref.ref(answer, lambda _: _TAKEN.pop(key, None)), taken)
