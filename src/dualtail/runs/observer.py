"""How a run says what it is doing, without knowing who listens."""

from __future__ import annotations


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
