"""Stopping on request: the first Ctrl-C lets the step finish, the second one does not wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class GracefulStop:
    """Turn the first signal to stop into a request, and the second into a :class:`KeyboardInterrupt`.

    The signals are SIGINT (Ctrl-C), SIGTERM (what ends a job), SIGHUP (a terminal that goes away; not under ``nohup``)
    and SIGUSR1 (a batch system's warning). A context manager; outside the main thread, where Python allows no signal
    handler, it does nothing. Of two, one in the other, the inner one hears the first signal.

    Attributes:
        requested: whether a signal has come.
        number: the last one's.

    Example:
        >>> with GracefulStop() as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(stop.requested)
        True
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.requested, self.number = False, int(signal.SIGINT)
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if number != signal.SIGINT and signal.getsignal(number) in (signal.SIG_IGN, None):
                    continue  # nohup wants it so
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While inside, the first signal already raises KeyboardInterrupt: for work that saves nothing."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.requested, self.number = self.requested, True, number
        if again or self._at_once:
            outer = self._previous.get(number)
            if callable(outer):
                outer(number, frame)
            raise KeyboardInterrupt
