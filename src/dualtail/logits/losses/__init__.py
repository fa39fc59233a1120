"""Training losses for long-tailed data: one signature, one registry.

Every loss is a module called as ``loss(logits (..., C), labels (...)) -> scalar``, the mean over the leading
dimensions. Most of them are one formula, :func:`adjusted_cross_entropy`, with different constants; priors and
weights are buffers, so they follow ``loss.to(device)``.

A module holds a family; :data:`LOSSES` names them all, and those of packages outside.

Inside, everything is float32 (float64 if the logits are), also under autocast: the offsets of a long tail, such
as ``log(5 / 115846)``, are beyond what half precision adds to a logit without harm.
"""

from __future__ import annotations

import inspect
from typing import Any

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike
from dualtail.logits.losses._checks import positive_counts
from dualtail.logits.losses.additive import (
    BalancedSoftmaxLoss,
    CrossEntropyLoss,
    GLATrainLoss,
    LogitAdjustmentLoss,
    VSLoss,
)
from dualtail.logits.losses.base import DATA, LogitLoss, adjusted_cross_entropy
from dualtail.logits.losses.lade import LADELoss
from dualtail.logits.losses.margin import LDAMLoss
from dualtail.logits.losses.reweighted import ClassBalancedLoss, FocalLoss, GeneralizedReweightLoss
from dualtail.logits.prior import LabelPrior
from dualtail.registry import Registry

__all__ = ["DATA", "LOSSES", "LogitLoss", "adjusted_cross_entropy", "build_loss"]

LOSSES: Registry[type[LogitLoss]] = Registry(
    "loss",
    {
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
    },
    group="dualtail.losses",
    given=DATA,
    base=LogitLoss,
)

# What of the data each constructor argument of `LogitLoss.needs` may come from.
_SUPPLIED_BY = {
    "counts": "counts",
    "source_prior": "counts or source_prior",
    "pretrain_prior": "pretrain_prior",
}


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
        **options: the loss's own, as ``LOSSES.options(name)`` lists them.

    Raises:
        InputError: an unknown name or option (the nearest known one is named), a missing description of the
            data, a class without samples, an option out of range.

    Example:
        >>> import torch
        >>> loss = build_loss("la", counts=[90, 10], tau=1.5)
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.0364)
        >>> LOSSES.options("gla_train")
        {'tau': 1.0, 'pretrain_tau': 1.0}
        >>> build_loss("la", counts=[90, 10], tua=1.5)
        Traceback (most recent call last):
        ...
        dualtail.errors.InputError: the loss 'la' has no option 'tua'; did you mean 'tau'?
    """
    loss = LOSSES.find(name)
    options = LOSSES.check_options(name, options)
    taken = inspect.signature(loss).parameters
    if "source_prior" in taken and source_prior is None and counts is not None:
        source_prior = LabelPrior.from_counts(positive_counts(counts))
    data = {"counts": counts, "source_prior": source_prior, "pretrain_prior": pretrain_prior}
    for need in loss.needs:
        if data[need] is None:
            raise InputError(f"the loss {name!r} needs {need}", fix=f"pass {_SUPPLIED_BY[need]}")
    given = {key: value for key, value in data.items() if key in taken and value is not None}
    return loss(**given, **options)
