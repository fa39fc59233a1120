"""Smooth convex minimisation in few dimensions, over the simplex or a box, with a proven gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class Region(NamedTuple):
    """A compact convex set: how to project onto it, and its point that minimises a linear function."""

    project: Callable[[Vector], Vector]
    lowest: Callable[[Vector], Vector]


class Minimum(NamedTuple):
    """Where the search ended; the value is at most ``gap`` above the least one."""

    point: Vector
    value: float
    gap: float


def simplex() -> Region:
    """Return the probability simplex."""

    def project(x: Vector) -> Vector:
        # Euclidean projection: subtract the one constant that leaves the positive parts summing to 1.
        descending = np.sort(x)[::-1]
        excess = (np.cumsum(descending) - 1) / np.arange(1, len(x) + 1)
        return np.maximum(x - excess[np.flatnonzero(descending > excess)[-1]], 0)

    return Region(project, lambda slope: np.eye(len(slope))[np.argmin(slope)])


def box(low: float, high: float) -> Region:
    """Return the vectors with every entry in ``[low, high]``."""
    return Region(lambda x: np.clip(x, low, high), lambda slope: np.where(slope > 0, low, high))


def newton(
    evaluate: Callable[[Vector], tuple[float, Vector, Vector]],
    start: Vector,
    region: Region,
    tolerance: float = 1e-9,
    max_steps: int = 100,
) -> Minimum:
    """Minimise by Newton steps within the region: each minimises the quadratic model there, then backtracks.

    Args:
        evaluate: returns the value, gradient ``(M,)`` and Hessian ``(M, M)`` at a point; convex.
        start: a point of the region with a finite value.
        region: where to search.
        tolerance: the gap to stop at.
        max_steps: Newton steps at most.
    """
    point = start
    value, slope, curvature = evaluate(point)
    for _ in range(max_steps):
        if slope @ (point - region.lowest(slope)) <= tolerance:
            break
        step = _model_minimum(point, slope, curvature, region) - point
        if -(slope @ step) <= 1e-25:
            break  # the slope is rounding
        rounding = 1e-15 * max(abs(value), 1)
        for _ in range(40):
            trial = evaluate(point + step)
            if trial[0] <= value + 1e-4 * (slope @ step) + rounding:
                break
            step = step / 2
        else:
            break
        point = point + step
        value, slope, curvature = trial
    return Minimum(point, value, max(float(slope @ (point - region.lowest(slope))), 0.0))


def _model_minimum(point: Vector, slope: Vector, curvature: Vector, region: Region) -> Vector:
    """Minimise ``slope . d + d . curvature . d / 2`` over ``point + d`` by accelerated projected gradients."""
    largest = np.linalg.eigvalsh(curvature)[-1]
    rate = 1 / max(largest, 1e-12)
    current = ahead = point
    momentum = 1.0
    for _ in range(2000):
        following = region.project(ahead - rate * (slope + curvature @ (ahead - point)))
        change = following - current
        if (ahead - following) @ change > 0:  # the momentum points uphill: start it anew
            ahead, momentum = current, 1.0
            continue
        current = following
        if np.abs(change).max() <= 1e-15:
            break
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = current + (momentum - 1) / faster * change
        momentum = faster
    return current
