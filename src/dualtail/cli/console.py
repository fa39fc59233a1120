"""Progress on stderr: a live bar in a terminal, plain lines elsewhere; results go to stdout untouched."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dualtail.report.words import shown
from dualtail.runs.observer import Observer

PLAIN_SECONDS = 15.0  # between two progress lines where there is no terminal


class ConsoleObserver(Observer):
    """Render what a run says on stderr.

    Args:
        quiet: print notes and errors only.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self._live = self.console.is_terminal and not quiet
        self._bar: Progress | None = None
        self._printed = time.monotonic()

    def stage(self, title: str) -> None:
        """Announce a stage."""
        self._end_bar()
        self._printed = time.monotonic()
        if not self.quiet:
            self.console.print(f"[bold]{shown(title)}[/bold]")

    def skipped(self, title: str) -> None:
        """Say that a stage's results are there."""
        self._end_bar()
        if not self.quiet:
            self.console.print(f"[dim]{shown(title)}: up to date[/dim]")

    def finished(self, title: str, seconds: float) -> None:
        """Say how long a stage took."""
        self._end_bar()
        if not self.quiet and seconds >= 1:
            self.console.print(f"  [dim]done in {duration(seconds)}[/dim]")

    def note(self, text: str) -> None:
        """Print a note, above the bar if there is one."""
        console = self._bar.console if self._bar else self.console
        console.print(f"  [yellow]note:[/yellow] {shown(text)}", soft_wrap=True)

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Move the bar, or print a line now and then."""
        if self.quiet:
            return
        if self._live:
            if self._bar is None:
                self._bar = Progress(
                    TextColumn("  "), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(compact=True),
                    TextColumn("{task.description}"), console=self.console, transient=True,
                )  # fmt: skip
                self._bar.add_task("", total=total)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=shown(text))
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self.console.print(f"  {done}/{total} {shown(text)}", soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Return seconds as a person says them.

    Example:
        >>> duration(42), duration(605), duration(7322)
        ('42 s', '10 min 5 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
