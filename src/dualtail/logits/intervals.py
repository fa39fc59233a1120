"""Confidence intervals: of one proportion, of a mean over classes, of what is computed from such, of a correlation.

A group's accuracy is the mean over its classes of their accuracies, so it is a sum of independent binomials
with different chances and sample counts. Treating its samples as one binomial is wrong twice: it weighs classes
by their samples, and it counts the spread between classes as noise, although the classes are the same in every
repetition. The intervals here know the classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from dualtail.errors import InputError, check_choice
from dualtail.logits._arrays import ArrayLike

Interval = tuple[float, float]
IntervalMethod = Literal["wilson", "clopper_pearson", "bootstrap"]
INTERVALS: tuple[str, ...] = ("wilson", "clopper_pearson", "bootstrap")
_BLOCK = 1 << 22  # random numbers drawn at once


def proportion_interval(
    correct: ArrayLike, n: ArrayLike, confidence: float = 0.95, method: IntervalMethod = "wilson"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds of the chance of success, given ``correct`` successes in ``n`` trials each.

    ``"wilson"`` inverts the score test (Wilson 1927): near the nominal coverage on average, bounds inside
    ``[0, 1]`` and of positive width even at 0 or n successes. ``"clopper_pearson"`` (1934) inverts the exact
    binomial test: never below the nominal coverage, hence wider. The bootstrap of one proportion is degenerate
    at 0 and n successes, so ``"bootstrap"`` answers with Wilson's bounds here.

    Args:
        correct: successes, any shape; need not be integers (effective counts are not).
        n: trials, the same shape.
        confidence: nominal coverage, between 0 and 1.
        method: one of ``INTERVALS``.

    Returns:
        ``(low, high)``, float64 arrays of that shape; NaN where ``n`` is 0.

    Raises:
        InputError: unknown method, or a confidence outside (0, 1).

    Example:
        >>> low, high = proportion_interval([8, 10, 0], [10, 10, 0])
        >>> low.round(3).tolist(), high.round(3).tolist()
        ([0.49, 0.722, nan], [0.943, 1.0, nan])
    """
    check_interval(confidence, method)
    correct, n = np.asarray(correct, dtype=np.float64), np.asarray(n, dtype=np.float64)
    low, high = np.full(n.shape, np.nan), np.full(n.shape, np.nan)
    some = n > 0
    bounds = _clopper_pearson if method == "clopper_pearson" else _wilson
    low[some], high[some] = bounds(correct[some], n[some], confidence)
    return low, high


def mean_interval(
    correct: ArrayLike,
    n: ArrayLike,
    confidence: float = 0.95,
    method: IntervalMethod = "wilson",
    *,
    weights: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    r"""Return the interval of a weighted mean of class accuracies :math:`A = \sum_c w_c p_c`.

    Samples are independent within each class and ``n_c`` is fixed (a stratified sample); classes without samples
    are left out. With the plain estimate :math:`\hat A`, the variance :math:`V = \sum w_c^2 \hat p_c (1 - \hat
    p_c) / (n_c - 1)` and the size of a binomial sample as informative as all classes together if they were equally
    hard, :math:`n_0 = 1 / \sum w_c^2 / n_c`:

    - ``"wilson"``: Wilson's interval at the effective size :math:`n_0 / f`, as survey statistics does (Korn and
      Graubard 1998; Dean and Pagano 2015), with the design effect :math:`f = (n_0^2 V + z^2) / (n_0 (\hat A (1 -
      \hat A) + V) + z^2)`. The :math:`z^2` keeps it near 1 while there are few errors to judge the spread between
      classes by. One class gives Wilson's own interval.
    - ``"clopper_pearson"``: the exact binomial bounds at :math:`n_0`. Where classes have equally many samples
      this is conservative for any accuracies (Hoeffding 1956: a sum of unequal Bernoulli trials is less
      spread than the binomial of their mean).
    - ``"bootstrap"``: percentiles of draws stratified by class, ``n_c - 1`` of ``n_c`` samples so that the variance is
      unbiased (Rao and Wu 1988). Too narrow where classes are all right or all wrong; better with many classes.

    A class with one sample has no variance of its own: :math:`\hat A (1 - \hat A)` stands in.

    Args:
        correct: ``(C,)`` correct samples a class.
        n: ``(C,)`` samples a class.
        confidence: nominal coverage.
        method: one of ``INTERVALS``.
        weights: ``(C,)`` non-negative; equal by default (macro accuracy). ``n`` gives overall accuracy.
        resamples: draws of the bootstrap.
        seed: of the bootstrap.

    Returns:
        ``(low, high)``, or None where no class has samples.

    Example:
        >>> low, high = mean_interval([50, 0], [50, 50])   # two classes, surely known: 0.5, not "50 of 100"
        >>> round(low, 2), round(high, 2)
        (0.46, 0.54)
        >>> [round(float(bound), 2) for bound in proportion_interval(50, 100)]
        [0.4, 0.6]
    """
    check_interval(confidence, method)
    correct, n = np.asarray(correct, dtype=np.float64), np.asarray(n, dtype=np.float64)
    weights = np.ones_like(n) if weights is None else np.asarray(weights, dtype=np.float64)
    some = (n > 0) & (weights > 0)
    if not some.any():
        return None
    correct, n, weights = correct[some], n[some], weights[some] / weights[some].sum()
    if method == "bootstrap":
        return _bootstrap(correct, n, weights, confidence, resamples, seed)
    accuracy = float(weights @ (correct / n))
    size = 1 / float((weights**2 / n).sum())
    if method == "wilson":
        size /= _design_effect(correct, n, weights, accuracy, size, confidence)
    bounds = _clopper_pearson if method == "clopper_pearson" else _wilson
    low, high = bounds(np.array([accuracy * size]), np.array([size]), confidence)
    return float(low[0]), float(high[0])


def difference_interval(a: float, a_ci: Interval, b: float, b_ci: Interval) -> Interval:
    r"""Return the interval of ``a - b`` from the intervals of two independent estimates (MOVER).

    .. math:: a - b - \sqrt{(a - l_a)^2 + (u_b - b)^2}, \qquad a - b + \sqrt{(u_a - a)^2 + (b - l_b)^2}

    Unlike the sum of the variances it keeps what the intervals know: the bounds of a fraction near 0 or 1 are not
    equally far from it. The coverage is that of the two intervals.

    Args:
        a: an estimate, such as the accuracy of one group of classes.
        a_ci: its interval.
        b: another, from other samples: on the same samples, :func:`dualtail.logits.comparison.paired_test` knows
            more.
        b_ci: its interval, of the same coverage.

    Source:
        Newcombe, "Interval Estimation for the Difference between Independent Proportions", Statistics in Medicine
        1998 (method 10); Zou and Donner, "Construction of Confidence Limits about Effect Measures: a General
        Approach", Statistics in Medicine 2008.

    Example:
        >>> [round(bound, 3) for bound in difference_interval(0.9, (0.8, 0.95), 0.7, (0.6, 0.78))]
        [0.072, 0.312]
    """
    down, up = math.hypot(a - a_ci[0], b_ci[1] - b), math.hypot(a_ci[1] - a, b - b_ci[0])
    return a - b - down, a - b + up


def weighted_mean_interval(
    estimates: Sequence[float], intervals: Sequence[Interval], weights: Sequence[float]
) -> Interval:
    r"""Return the interval of a weighted mean of independent estimates from theirs (MOVER).

    .. math:: \sum_i w_i e_i \; - \sqrt{\sum_i w_i^2 (e_i - l_i)^2}, \qquad
        \sum_i w_i e_i + \sqrt{\sum_i w_i^2 (u_i - e_i)^2}

    Args:
        estimates: such as the accuracies of groups of classes.
        intervals: theirs, all of the same coverage.
        weights: not negative, such as the numbers of classes; divided by their sum.

    Source:
        Zou and Donner, "Construction of Confidence Limits about Effect Measures: a General Approach", Statistics in
        Medicine 2008.

    Example:
        >>> [round(bound, 3) for bound in weighted_mean_interval([0.9, 0.7], [(0.8, 0.95), (0.6, 0.78)], [1, 1])]
        [0.729, 0.847]
    """
    total = sum(weights)
    parts = [
        (w / total, e, low, high) for w, e, (low, high) in zip(weights, estimates, intervals, strict=True)
    ]
    mean = sum(w * e for w, e, _, _ in parts)
    down = math.hypot(*(w * (e - low) for w, e, low, _ in parts))
    up = math.hypot(*(w * (high - e) for w, e, _, high in parts))
    return mean - down, mean + up


def correlation_interval(correlation: float, n: int, confidence: float = 0.95) -> Interval:
    r"""Return the interval of Spearman's rank correlation, by Fisher's z.

    .. math:: \tanh \left( \operatorname{artanh} r \pm z \sqrt{\frac{1 + r^2 / 2}{n - 3}} \right)

    Args:
        correlation: ``r``, from -1 to 1, or NaN where it is not defined.
        n: pairs, such as classes.
        confidence: nominal coverage.

    Returns:
        ``(low, high)``; (-1, 1) where the correlation is NaN or fewer than five pairs say nothing.

    Source:
        Bonett and Wright, "Sample Size Requirements for Estimating Pearson, Kendall and Spearman Correlations",
        Psychometrika 2000.

    Example:
        >>> [round(bound, 3) for bound in correlation_interval(0.5, 50)], correlation_interval(0.9, 4)
        ([0.241, 0.692], (-1.0, 1.0))
    """
    check_interval(confidence, "wilson")
    if math.isnan(correlation) or n < 5:
        return -1.0, 1.0
    bounded = min(max(correlation, -0.999999), 0.999999)
    half = normal_quantile(confidence) * math.sqrt((1 + bounded**2 / 2) / (n - 3))
    return math.tanh(math.atanh(bounded) - half), math.tanh(math.atanh(bounded) + half)


def check_interval(confidence: float, method: str) -> None:
    """Refuse an unknown interval and a confidence outside (0, 1)."""
    check_choice("interval", method, INTERVALS)
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}", fix="expected a fraction such as 0.95")


def normal_quantile(confidence: float) -> float:
    """Return z such that a standard normal lies within ``[-z, z]`` with chance ``confidence``."""
    return float(special.ndtri(0.5 + confidence / 2))


def _wilson(
    correct: NDArray[np.float64], n: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    z2 = normal_quantile(confidence) ** 2
    rate = correct / n
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # At 0 and n successes the bound is 0 or 1 exactly; rounding must not exclude the estimate.
    return np.minimum(np.maximum(centre - half, 0), rate), np.maximum(np.minimum(centre + half, 1), rate)


def _clopper_pearson(
    correct: NDArray[np.float64], n: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    tail = (1 - confidence) / 2
    wrong = np.maximum(n - correct, 0)
    tiny = 1e-9 * n  # an effective count is n only up to rounding
    low = special.betaincinv(np.maximum(correct, tiny), wrong + 1, tail)
    high = special.betaincinv(correct + 1, np.maximum(wrong, tiny), 1 - tail)
    return np.where(correct <= tiny, 0.0, low), np.where(wrong <= tiny, 1.0, high)


def _sample_variance(
    correct: NDArray[np.float64], n: NDArray[np.float64], accuracy: float
) -> NDArray[np.float64]:
    """Unbiased estimates of ``p (1 - p) / n`` for each class."""
    rate = correct / n
    return np.where(n > 1, rate * (1 - rate) / np.maximum(n - 1, 1), accuracy * (1 - accuracy))


def _design_effect(
    correct: NDArray[np.float64],
    n: NDArray[np.float64],
    weights: NDArray[np.float64],
    accuracy: float,
    size: float,
    confidence: float,
) -> float:
    z2 = normal_quantile(confidence) ** 2
    variance = float(weights**2 @ _sample_variance(correct, n, accuracy))
    return (size**2 * variance + z2) / (size * (accuracy * (1 - accuracy) + variance) + z2)


def _bootstrap(
    correct: NDArray[np.float64],
    n: NDArray[np.float64],
    weights: NDArray[np.float64],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    rate, draws = correct / n, np.maximum(n - 1, 1).astype(np.int64)
    accuracy = float(weights @ rate)
    # A class with one sample keeps its place and borrows the spread of the mean.
    single = n == 1
    chance, shift = np.where(single, accuracy, rate), np.where(single, rate - accuracy, 0.0)
    means = []
    for start in range(0, resamples, step := max(1, _BLOCK // len(n))):
        count = min(step, resamples - start)
        means.append((generator.binomial(draws, chance, (count, len(n))) / draws + shift) @ weights)
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(max(low, 0.0)), float(min(high, 1.0))
