"""What the training and inference loops say while they work; somebody else renders it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 20


@dataclass(frozen=True)
class Progress:
    """Where a fine-tuning run is.

    Attributes:
        epoch: the current epoch, from 1.
        epochs: all of them.
        step: optimizer steps done, over all epochs.
        steps: optimizer steps of the whole run.
        loss: mean training loss of about the last 20 steps.
        accuracy: training accuracy of the same steps, a fraction.
        images_per_second: of all processes together, waiting for data included.
        seconds_left: of training, at that speed.
        learning_rate: of the last step.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float
    learning_rate: float


@dataclass(frozen=True)
class InferenceProgress:
    """How far a pass over a data set is: images ``done`` of ``total``, speed, and seconds left at that speed."""

    done: int
    total: int
    images_per_second: float
    seconds_left: float


ProgressCallback = Callable[[Progress], None]
InferenceCallback = Callable[[InferenceProgress], None]


class Rate:
    """Items per second over about the last 20 readings.

    Example:
        >>> rate = Rate(now=0.0)
        >>> rate.add(10, now=1.0)
        >>> rate.add(30, now=2.0)
        >>> rate.per_second, rate.seconds_for(40)
        (20.0, 2.0)
    """

    def __init__(self, now: float | None = None) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=WINDOW + 1)
        self._total = 0.0
        self.add(0, now)

    def add(self, items: float, now: float | None = None) -> None:
        """Count ``items`` as done since the last call."""
        self._total += items
        self._readings.append((time.perf_counter() if now is None else now, self._total))

    @property
    def per_second(self) -> float:
        """The rate; 0 before anything was counted."""
        (start, before), (end, after) = self._readings[0], self._readings[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def seconds_for(self, items: float) -> float:
        """How long ``items`` take at this rate; infinity before anything was counted."""
        return items / self.per_second if self.per_second > 0 else float("inf")


class PassMeter:
    """Count the images of a pass over a data set, and tell.

    Args:
        total: of them, over all processes.
        progress: called after each batch; None for none.
    """

    def __init__(self, total: int, progress: InferenceCallback | None) -> None:
        self.total, self.progress = total, progress
        self.done, self._rate = 0, Rate()

    def add(self, images: int) -> None:
        """Count ``images`` as done since the last call."""
        self.done = min(self.done + images, self.total)
        self._rate.add(images)
        if self.progress is not None:
            left = self._rate.seconds_for(self.total - self.done)
            self.progress(InferenceProgress(self.done, self.total, self._rate.per_second, left))
