"""Calibration: does a confidence of 0.8 come true in 80 of 100 cases?

Bins have equal width and hold ``(low, high]``, as in Guo et al., "On Calibration of Modern Neural Networks", ICML
2017 (arXiv 1706.04599); a bin without samples weighs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, as_float, as_tensor
from dualtail.logits._rows import logit_rows


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Accuracy against confidence, bin by bin.

    Attributes:
        edges: ``(B + 1,)`` from 0 to 1; bin b holds confidences in ``(edges[b], edges[b + 1]]``.
        count: ``(B,)`` samples.
        confidence: ``(B,)`` mean confidence of the samples of the bin, NaN where there are none.
        accuracy: ``(B,)`` their accuracy, NaN where there are none.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        r"""The expected calibration error :math:`\sum_b n_b / N \, |acc_b - conf_b|`."""
        gaps = np.abs(np.nan_to_num(self.accuracy) - np.nan_to_num(self.confidence))
        return float((self.count * gaps).sum() / self.count.sum())

    def to_dict(self) -> dict[str, Any]:
        """Return lists that JSON can hold; an empty bin's figures are None."""

        def listed(values: NDArray[Any]) -> list[Any]:
            return [None if value != value else value for value in values.tolist()]

        return {
            "edges": self.edges.tolist(),
            "count": self.count.tolist(),
            "confidence": listed(self.confidence),
            "accuracy": listed(self.accuracy),
            "ece": self.ece,
        }


class _ReliabilityTally:
    """Sums over batches of (confidence, right or wrong) from which the reliability curve follows."""

    def __init__(self, bins: int) -> None:
        if bins < 1:
            raise InputError(f"bins is {bins}", fix="expected at least 1")
        self.bins = bins
        self._edges = torch.from_numpy(np.linspace(0, 1, bins + 1))
        self._count, self._hits, self._confidence = torch.zeros(3, bins, dtype=torch.float64)

    def add(self, confidence: Tensor, hits: Tensor) -> None:
        """Count a batch: ``confidence (n,)`` from 0 to 1 and ``hits (n,)`` booleans."""
        bins = self.bin_of(confidence)
        self._count += torch.bincount(bins, minlength=self.bins)
        self._hits += _sums(bins, hits.double(), self.bins)
        self._confidence += _sums(bins, confidence.double(), self.bins)

    def bin_of(self, values: Tensor) -> Tensor:
        """Return the bin of each value, on the CPU."""
        # torch.bucketize without ``right`` is (low, high].
        return torch.bucketize(values.double().cpu(), self._edges[1:-1])

    def curve(self) -> ReliabilityCurve:
        """Return accuracy against confidence."""
        count = self._count.numpy()
        with np.errstate(invalid="ignore"):
            confidence, accuracy = self._confidence.numpy() / count, self._hits.numpy() / count
        return ReliabilityCurve(self._edges.numpy(), count.astype(np.int64), confidence, accuracy)


class CalibrationTally:
    """Sums over batches from which the reliability curve and both calibration errors follow.

    Args:
        num_classes: C.
        bins: how many, of equal width.
    """

    def __init__(self, num_classes: int, bins: int = 15) -> None:
        self._reliability = _ReliabilityTally(bins)
        self.bins, self.samples = bins, 0
        # For each class and bin: the sum of its probabilities minus how often it was the label.
        self._gap = torch.zeros(num_classes, bins, dtype=torch.float64)

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch: ``probabilities (n, C)`` and ``labels (n,)``."""
        confidence, prediction = probabilities.max(1)
        self.samples += len(labels)
        self._reliability.add(confidence, prediction == labels)
        self._add_gaps(probabilities, labels)

    def _add_gaps(self, probabilities: Tensor, labels: Tensor) -> None:
        # Nearly all probabilities lie in the first bin: sum them by column, then move the few that do not.
        self._gap[:, 0] += probabilities.sum(0, dtype=torch.float64).cpu()
        rows, classes = torch.nonzero(probabilities > 1 / self.bins, as_tuple=True)
        values = probabilities[rows, classes].double().cpu()
        self._move(classes.cpu(), self._reliability.bin_of(values), values)
        of_label = probabilities.gather(1, labels[:, None])[:, 0]
        flat = labels.cpu() * self.bins + self._reliability.bin_of(of_label)
        self._gap -= torch.bincount(flat, minlength=self._gap.numel()).view_as(self._gap)

    def _move(self, classes: Tensor, bins: Tensor, values: Tensor) -> None:
        size = self._gap.numel()
        self._gap += _sums(classes * self.bins + bins, values, size).view_as(self._gap)
        self._gap[:, 0] -= _sums(classes, values, len(self._gap))

    def curve(self) -> ReliabilityCurve:
        """Return the reliability curve of the most probable class."""
        return self._reliability.curve()

    def classwise_ece(self) -> float:
        """Return the class-wise calibration error."""
        return float(self._gap.abs().sum() / (self.samples * len(self._gap)))


def reliability_curve(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> ReliabilityCurve:
    """Return accuracy against confidence (the largest softmax probability) for logits of any model.

    Args:
        logits: ``(..., C)``, floating point.
        labels: ``(...)`` integers.
        bins: how many, of equal width.

    Raises:
        InputError: malformed inputs, no samples, or fewer than one bin.

    Example:
        >>> curve = reliability_curve([[2.0, 0.0], [0.0, 2.0], [0.0, 0.5]], [0, 1, 0], bins=4)
        >>> curve.count.tolist(), curve.accuracy.tolist()
        ([0, 0, 1, 2], [nan, nan, 0.0, 1.0])
    """
    return _tally(logits, labels, bins).curve()


def reliability_from(confidence: ArrayLike, hits: ArrayLike, bins: int = 15) -> ReliabilityCurve:
    """Return accuracy against confidence from these alone, where a model's logits are not at hand.

    Args:
        confidence: ``(N,)`` probabilities of the predicted classes.
        hits: ``(N,)`` booleans: whether the prediction was right.
        bins: how many, of equal width.

    Raises:
        InputError: other shapes, confidences outside 0 to 1, or fewer than one bin. No samples are fine.

    Example:
        >>> reliability_from([0.9, 0.8, 0.4], [True, False, True], bins=2).accuracy.tolist()
        [1.0, 0.5]
    """
    chances, right = as_float(confidence, "confidence"), as_tensor(hits, "hits")
    if chances.ndim != 1 or not bool(((chances >= 0) & (chances <= 1)).all()):
        raise InputError(
            f"confidence has shape {tuple(chances.shape)} or values outside 0 to 1",
            fix="expected (N,) fractions",
        )
    if right.shape != chances.shape or right.dtype != torch.bool:
        raise InputError(
            f"hits has shape {tuple(right.shape)} and dtype {right.dtype}",
            fix=f"expected ({len(chances)},) bool",
        )
    tally = _ReliabilityTally(bins)
    tally.add(chances, right)
    return tally.curve()


def expected_calibration_error(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    r"""Return the expected calibration error :math:`\sum_b n_b / N \, |acc_b - conf_b|` (Guo et al. 2017).

    Args and errors as in :func:`reliability_curve`.

    Example:
        >>> round(expected_calibration_error([[2.0, 0.0], [0.0, 2.0]], [0, 1]), 3)
        0.119
    """
    return _tally(logits, labels, bins).curve().ece


def classwise_calibration_error(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    r"""Return the calibration error of every class's probability, averaged over the C classes.

    :math:`\frac1C \sum_c \sum_b \frac{n_{bc}}{N} |freq_{bc} - \bar p_{bc}|`: bin b of class c holds the samples whose
    probability of c lies in it, ``freq`` is how often c is their label. Unlike ECE it sees classes that
    are never predicted. Nixon et al. 2019 (arXiv 1904.01685, "static calibration error"); Kull et al.,
    NeurIPS 2019 (arXiv 1910.12656). Classes absent from the labels count too: their probabilities should be small.

    Args and errors as in :func:`reliability_curve`.

    Example:
        >>> round(classwise_calibration_error([[2.0, 0.0], [0.0, 2.0]], [0, 1]), 3)
        0.119
    """
    return _tally(logits, labels, bins).classwise_ece()


def _tally(logits: ArrayLike, labels: ArrayLike, bins: int) -> CalibrationTally:
    rows = logit_rows(logits, labels)
    tally = CalibrationTally(rows.num_classes, bins)
    for chunk, target in rows:
        tally.add(torch.softmax(chunk, 1), target)
    return tally


def _sums(index: Tensor, weights: Tensor, size: int) -> Tensor:
    return torch.bincount(index.cpu(), weights=weights.cpu(), minlength=size)
