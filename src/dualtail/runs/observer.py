"""How a run says what it is doing, without knowing who listens."""

from __future__ import annotations

import time

PATIENCE = 2.0
"""Seconds that work may take before it is announced."""


class Observer:
    """Hears what a run does; the base class keeps silent.

    The command line renders these calls on stderr; a notebook or a service subclasses what it needs.
    """

    def stage(self, title: str) -> None:
        """A stage starts."""

    def skipped(self, title: str) -> None:
        """A stage is skipped: its outputs are there and its inputs have not changed."""

    def finished(self, title: str, seconds: float) -> None:
        """A stage has ended."""

    def note(self, text: str) -> None:
        """Say something the user should know, such as a split that was held out."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Report that ``done`` of ``total`` units of the current stage are done."""


class PatientProgress:
    """A callback of (done, total) that announces work to an observer only once it takes long.

    Args:
        observer: hears of it.
        title: what is being done.
    """

    def __init__(self, observer: Observer, title: str) -> None:
        self.observer, self.title = observer, title
        self._start, self._announced = time.monotonic(), False

    def __call__(self, done: int, total: int) -> None:
        """Pass on how far the work is."""
        seconds = time.monotonic() - self._start
        if not self._announced and seconds > PATIENCE:
            self._announced = True
            self.observer.stage(self.title)
        if self._announced:
            self.observer.progress(done, total)
            if done == total:
                self.observer.finished(self.title, seconds)
