"""Stopping on request: the first Ctrl-C lets the step finish, the second one does not wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class GracefulStop:
    """Turn the first SIGINT or SIGTERM into a request, and the second into a :class:`KeyboardInterrupt`.

    A context manager; outside the main thread, where Python allows no signal handler, it does nothing.

    Attributes:
        requested: whether a signal has come.

    Example:
        >>> with GracefulStop() as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(stop.requested)
        True
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
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

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if again or self._at_once:
            raise KeyboardInterrupt
