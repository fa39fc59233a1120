"""What the constructors and the calls of losses refuse."""

from __future__ import annotations

import math

from torch import Tensor

from dualtail.errors import InputError, shown
from dualtail.logits._arrays import ArrayLike, as_counts, as_tensor
from dualtail.logits.prior import LabelPrior, as_log_prior

# How far from 1 the soft labels of a sample may sum.
_SOFT_TOLERANCE = 1e-3


def read_log_prior(value: LabelPrior | ArrayLike, name: str) -> Tensor:
    """Return ``(C,)`` float64 log-probabilities on the CPU, where buffers are made."""
    log_prior = value.log_prob if isinstance(value, LabelPrior) else as_tensor(value, name)
    return as_log_prior(value, log_prior.shape[0] if log_prior.ndim else 0, name).cpu()


def positive_counts(counts: ArrayLike) -> Tensor:
    values = as_counts(counts)
    if not bool((values > 0).all()):
        empty = (values == 0).nonzero().flatten().tolist()
        raise InputError(
            f"class {empty[0]} has no samples ({len(empty)} such class{'es' if len(empty) > 1 else ''})",
            where="counts",
            fix="leave it out, or pass source_prior=LabelPrior.from_counts(counts, zero='smooth', smoothing=1)",
        )
    return values.cpu()


def mean_one(weight: Tensor) -> Tensor:
    return weight / weight.mean()


def check_number(
    value: float, name: str, *, low: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> float:
    """Return a finite number with ``low <= value``, ``above < value`` and ``value < below``."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {shown(value)}", fix="expected a number") from None
    if not (math.isfinite(number) and low <= number and above < number < below):
        bounds = [(low, "at least"), (above, "above"), (below, "below")]
        wanted = " and ".join(f"{word} {bound:g}" for bound, word in bounds if math.isfinite(bound))
        raise InputError(f"{name} is {number:g}", fix=f"expected {wanted or 'a finite number'}")
    return number


def check_soft(labels: Tensor) -> None:
    low = float(labels.min())
    off = float((labels.sum(-1) - 1).abs().max())
    if not (low >= 0 and off <= _SOFT_TOLERANCE):
        raise InputError(
            "labels are floating point but no probabilities",
            fix="expected values of at least 0 that sum to 1 over the classes, or integers",
        )
