"""Is one prediction better than another, and by how much: a paired test, and the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats

from dualtail.errors import InputError, check_choice
from dualtail.logits._arrays import ArrayLike, as_labels, as_tensor, check_saved
from dualtail.logits._rows import as_predictions
from dualtail.logits.intervals import check_interval, normal_quantile

_BLOCK = 1 << 21  # random numbers drawn at once


@dataclass(frozen=True)
class PairedTest:
    """The difference between two predictions of the same samples.

    Attributes:
        measure: ``"overall"`` or ``"macro"``.
        n: samples compared.
        accuracy_a: accuracy of the first.
        accuracy_b: accuracy of the second.
        difference: ``accuracy_a - accuracy_b``.
        ci: confidence interval of the difference.
        p_value: two-sided, of the hypothesis that the two are equally good.
        only_a: samples that only the first got right.
        only_b: samples that only the second got right.
        method: how ``p_value`` was found: ``"mcnemar"`` (exact) or ``"permutation"``.
        confidence: nominal coverage of ``ci``.
    """

    measure: str
    n: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    ci: tuple[float, float]
    p_value: float
    only_a: int
    only_b: int
    method: str
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, as JSON holds them."""
        return asdict(self) | {"ci": list(self.ci)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PairedTest:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: a key is missing or unknown.
        """
        check_saved("paired test", data, cls.__dataclass_fields__)
        low, high = data["ci"]
        return cls(**{**data, "ci": (low, high)})


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    labels: ArrayLike,
    *,
    measure: Literal["overall", "macro"] = "overall",
    classes: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    r"""Compare two predictions of the same samples; only samples that exactly one gets right speak.

    ``"overall"``: McNemar's test (1947), exact: given :math:`m` discordant samples, those that only ``a`` gets right
    are :math:`Bin(m, 1/2)` under the hypothesis. The interval is Bonett and Price's (2012) for paired
    proportions.

    ``"macro"``: the mean over classes of the accuracies' differences. Under the hypothesis each discordant sample
    falls to either with equal chance; where all classes have equally many samples this is McNemar's test again, and
    otherwise ``resamples`` such permutations give the p-value, never below ``1 / (resamples + 1)``. The
    interval is the percentile bootstrap of the pairs within each class, ``n_c - 1`` of ``n_c`` samples so that the
    variance is unbiased (Rao and Wu 1988); where no sample speaks, Bonett and Price's of all of them.

    Args:
        a: predicted classes ``(...)``, integers, or logits ``(..., C)``, floating point.
        b: likewise.
        labels: ``(...)`` integers.
        measure: ``"overall"`` or ``"macro"``.
        classes: ``(C,)`` booleans: compare only samples of these classes (a group's mask, say).
        confidence: nominal coverage of the interval.
        resamples: permutations, and draws of the bootstrap.
        seed: of both.

    Raises:
        InputError: malformed inputs, or no samples to compare.

    Example:
        >>> test = paired_test([0, 0, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1])
        >>> test.only_a, test.only_b, round(test.difference, 3), test.p_value
        (4, 1, 0.5, 0.375)
    """
    check_choice("measure", measure, ("overall", "macro"))
    check_interval(confidence, "wilson")
    target = as_labels(labels, None, None)
    shape, flat = tuple(target.shape), target.reshape(-1).cpu()
    right_a, right_b = ((as_predictions(x, shape, name) == flat).numpy() for x, name in ((a, "a"), (b, "b")))
    label = flat.numpy()
    if classes is not None:
        keep = _class_mask(classes, label)[label]
        right_a, right_b, label = right_a[keep], right_b[keep], label[keep]
    if not len(label):
        raise InputError("there are no samples to compare")
    _, group, size = np.unique(label, return_inverse=True, return_counts=True)
    if measure == "overall":
        group, size = np.zeros_like(group), np.array([len(label)])
    only_a, only_b = (
        np.bincount(group[x & ~y], minlength=len(size)) for x, y in ((right_a, right_b), (right_b, right_a))
    )
    generator = np.random.default_rng(seed)
    if measure == "overall":
        ci = _bonett_price(int(only_a[0]), int(only_b[0]), len(label), confidence)
    elif not (only_a.any() or only_b.any()):
        ci = _bonett_price(0, 0, len(label), confidence)  # no draw can differ, which is not to know exactly
    else:
        ci = _paired_bootstrap(only_a, only_b, size, confidence, resamples, generator)
    exact = bool((size == size[0]).all())
    p_value = (
        _mcnemar(int(only_a.sum()), int(only_b.sum()))
        if exact
        else _permutation(only_a, only_b, size, resamples, generator)
    )
    accuracy_a, accuracy_b = (
        float((np.bincount(group[right], minlength=len(size)) / size).mean()) for right in (right_a, right_b)
    )
    return PairedTest(
        measure=measure,
        n=len(label),
        accuracy_a=accuracy_a,
        accuracy_b=accuracy_b,
        difference=float(((only_a - only_b) / size).mean()),
        ci=ci,
        p_value=p_value,
        only_a=int(only_a.sum()),
        only_b=int(only_b.sum()),
        method="mcnemar" if exact else "permutation",
        confidence=confidence,
    )


@dataclass(frozen=True)
class SeedSummary:
    """Mean and spread of one figure over runs that differ in their seed.

    Attributes:
        mean: over the runs.
        std: sample standard deviation (divided by n - 1); None for one run.
        ci: Student's t interval of the mean; None for one run.
        n: runs.
        confidence: nominal coverage of ``ci``.
    """

    mean: float
    std: float | None
    ci: tuple[float, float] | None
    n: int
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, as JSON holds them."""
        return asdict(self) | {"ci": None if self.ci is None else list(self.ci)}


def summarize_seeds(values: Sequence[Any] | NDArray[Any], confidence: float = 0.95) -> Any:
    r"""Return mean, standard deviation and t-interval :math:`\bar x \pm t_{n-1} s / \sqrt n` over seeds.

    Args:
        values: one number a seed, or one dictionary a seed (``Evaluation.to_dict()``), whose numbers are summarised
            each at its place; what is not a number in every run (names, lists, an undefined accuracy) is left out.
        confidence: nominal coverage.

    Returns:
        a :class:`SeedSummary`, or a dictionary of them of the same shape.

    Raises:
        InputError: no values, or some that are neither numbers nor dictionaries, or not finite.

    Example:
        >>> summary = summarize_seeds([0.70, 0.72, 0.74])
        >>> round(summary.mean, 3), round(summary.std, 3), [round(x, 3) for x in summary.ci]
        (0.72, 0.02, [0.67, 0.77])
        >>> summarize_seeds([{"split": "test", "few": {"accuracy": 0.5}}])["few"]["accuracy"].mean
        0.5
    """
    check_interval(confidence, "wilson")
    if len(values) == 0:
        raise InputError("there are no seeds to summarise")
    first = values[0]
    if isinstance(first, Mapping):
        if not all(isinstance(value, Mapping) for value in values):
            raise InputError("some seeds are dictionaries and some are not")
        shared = [key for key in first if all(key in value for value in values)]
        columns = {key: [value[key] for value in values] for key in shared}
        return {
            key: summarize_seeds(column, confidence) for key, column in columns.items() if _summable(column)
        }
    if not all(_is_number(value) for value in values):
        raise InputError("values are not numbers", fix="pass one number or one dictionary a seed")
    return _summary(np.asarray(values, dtype=np.float64), confidence)


def _summary(numbers: NDArray[np.float64], confidence: float) -> SeedSummary:
    if not np.isfinite(numbers).all():
        raise InputError("values hold NaN or an infinity")
    mean, n = float(numbers.mean()), len(numbers)
    if n == 1:
        return SeedSummary(mean, None, None, 1, confidence)
    std = float(numbers.std(ddof=1))
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * std / np.sqrt(n)
    return SeedSummary(mean, std, (float(mean - half), float(mean + half)), n, confidence)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _summable(column: list[Any]) -> bool:
    return all(_is_number(value) for value in column) or all(isinstance(value, Mapping) for value in column)


def _class_mask(classes: ArrayLike, label: NDArray[np.int64]) -> NDArray[np.bool_]:
    mask = as_tensor(classes, "classes")
    if mask.dtype != torch.bool or mask.ndim != 1:
        raise InputError(
            f"classes has shape {tuple(mask.shape)} and dtype {mask.dtype}", fix="expected (C,) bool"
        )
    if len(label) and label.max() >= len(mask):
        raise InputError(f"classes has {len(mask)} entries but the labels hold {label.max()}")
    result: NDArray[np.bool_] = mask.cpu().numpy()
    return result


def _mcnemar(only_a: int, only_b: int) -> float:
    # Two-sided: both tails of the symmetric binomial, which overlap when the counts are equal.
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _bonett_price(only_a: int, only_b: int, n: int, confidence: float) -> tuple[float, float]:
    p, q = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = normal_quantile(confidence) * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return float(max(p - q - half, -1)), float(min(p - q + half, 1))


def _permutation(
    only_a: NDArray[np.int64],
    only_b: NDArray[np.int64],
    size: NDArray[np.int64],
    resamples: int,
    generator: np.random.Generator,
) -> float:
    spoken = only_a + only_b > 0
    discordant, weight = (only_a + only_b)[spoken], 1 / size[spoken]
    observed = abs(float((only_a - only_b)[spoken] @ weight))
    if not len(discordant):
        return 1.0
    extreme = 0
    for count in _blocks(resamples, len(discordant)):
        flips = generator.binomial(discordant, 0.5, (count, len(discordant)))
        # A draw that equals the observation must count in spite of rounding.
        extreme += int((np.abs((2 * flips - discordant) @ weight) >= observed * (1 - 1e-9)).sum())
    return (extreme + 1) / (resamples + 1)


def _paired_bootstrap(
    only_a: NDArray[np.int64],
    only_b: NDArray[np.int64],
    size: NDArray[np.int64],
    confidence: float,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[float, float]:
    draws = np.maximum(size - 1, 1)
    chance_a, chance_b = only_a / size, only_b / size
    # Given that a draw is not "only a", it is "only b" with this chance.
    rest = np.divide(chance_b, 1 - chance_a, out=np.zeros_like(chance_b), where=chance_a < 1)
    differences = []
    for count in _blocks(resamples, len(size)):
        drawn_a = generator.binomial(draws, chance_a, (count, len(size)))
        drawn_b = generator.binomial(draws - drawn_a, np.minimum(rest, 1))
        differences.append(((drawn_a - drawn_b) / draws).mean(1))
    low, high = np.quantile(np.concatenate(differences), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _blocks(total: int, width: int) -> list[int]:
    step = max(1, _BLOCK // width)
    return [min(step, total - start) for start in range(0, total, step)]
