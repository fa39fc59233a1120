"""Every file operation of a process below one folder, counted, so that one of them can kill the process or fail.

Opening, renaming, deleting and making folders are heard by an audit hook; writing, flushing to the disk and
safetensors' own writer are wrapped. Only the main thread counts, so that the count is the same every time.
"""

from __future__ import annotations

import builtins
import io
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_AUDITED = {
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.chmod": "chmod",
}


@dataclass(frozen=True)
class Operation:
    """One file operation: the how-manieth, its kind, and the file, relative to the folder."""

    number: int
    kind: str
    file: str

    def __str__(self) -> str:
        return f"operation {self.number}, {self.kind} of {self.file}"


Heard = Callable[[Operation], "Callable[[], NoReturn] | None"]
"""Called before each operation; returns what stops it, if it is to be stopped. A write is stopped in the middle."""


class Operations:
    """Hear the operations of this process below ``folder``; cannot be undone, so it is for a forked child."""

    def __init__(self, folder: Path, heard: Heard, *, reads: bool = False) -> None:
        self.folder, self.heard, self.reads, self.count = os.path.realpath(folder), heard, reads, 0
        self._main, self._deep = threading.main_thread(), False
        sys.addaudithook(self._audit)
        self._wrap_writes()

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writing = bool((flags or 0) & _WRITING)
            if isinstance(path, (str, bytes, os.PathLike)) and (writing or self.reads):
                self._meet("open" if writing else "read", path)
        elif event in _AUDITED:
            folder = arguments[{"os.rename": 2, "os.chmod": 2}.get(event, len(arguments) - 1)]
            self._meet(_AUDITED[event], arguments[0], folder)

    def _meet(self, kind: str, path: Any, folder: int = -1) -> None:
        stop = self._step(kind, path, folder)
        if stop:
            stop()

    def _step(self, kind: str, path: Any, folder: int = -1) -> Callable[[], NoReturn] | None:
        if self._deep or threading.current_thread() is not self._main:
            return None
        self._deep = True
        try:
            base = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""
            full = os.path.join(os.path.realpath(base or "."), os.fsdecode(path))
            if full != self.folder and not full.startswith(self.folder + os.sep):
                return None
            self.count += 1
            name = os.path.relpath(full, self.folder).replace(f".{os.getpid()}.", ".PID.")
            return self.heard(Operation(self.count, kind, name))
        except OSError:
            return None
        finally:
            self._deep = False

    def _wrap_writes(self) -> None:
        plain_open, plain_fsync = io.open, os.fsync

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            stream = plain_open(file, mode, *args, **kwargs)
            if set(mode) & set("wax+") and not isinstance(file, int):
                stream.write = self._writer(stream, file)
            return stream

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._meet("fsync", os.readlink(f"/proc/self/fd/{number}"))
            plain_fsync(descriptor)

        io.open = builtins.open = opened  # type: ignore[assignment]
        os.fsync = fsync
        if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10 keeps its own
            pathlib._NormalAccessor.open = staticmethod(opened)
        self._wrap_safetensors()

    def _writer(self, stream: Any, file: Any) -> Callable[[Any], Any]:
        plain = stream.write

        def write(content: Any) -> Any:
            stop = self._step("write", file)
            if stop:
                plain(content[: len(content) // 2])
                stream.flush()
                stop()
            return plain(content)

        return write

    def _wrap_safetensors(self) -> None:
        import safetensors
        import safetensors.numpy
        import safetensors.torch

        plain = safetensors.serialize_file

        def serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
            stop = self._step("open", filename)
            if stop:
                _as_safetensors(stop)
            stop = self._step("write", filename)
            if stop:
                plain(tensors, filename, metadata)
                os.truncate(filename, os.path.getsize(filename) // 2)
                _as_safetensors(stop)
            plain(tensors, filename, metadata)

        for module in (safetensors.torch, safetensors.numpy):
            if hasattr(module, "serialize_file"):
                module.serialize_file = serialize_file


def _as_safetensors(stop: Callable[[], NoReturn]) -> NoReturn:
    """Fail as the library does, which has an error of its own for what the operating system says."""
    from safetensors import SafetensorError

    try:
        stop()
    except OSError as error:
        raise SafetensorError(
            f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
        ) from None


def kill_at(number: int) -> Heard:
    """Return what kills the process at the operation of this number."""

    def stop() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    return lambda operation: stop if operation.number == number else None


def kill_where(chosen: Callable[[Operation], bool], nth: int = 1) -> Heard:
    """Return what kills the process at the n-th operation that is ``chosen``."""
    met: list[Operation] = []

    def heard(operation: Operation) -> Callable[[], NoReturn] | None:
        met.extend([operation] * chosen(operation))
        return kill_at(operation.number)(operation) if chosen(operation) and len(met) == nth else None

    return heard


def fail_at(number: int, code: int, *, onwards: bool) -> Heard:
    """Return what makes the operation of this number fail, and all that write after it if ``onwards``."""

    def heard(operation: Operation) -> Callable[[], NoReturn] | None:
        due = operation.number == number or (
            onwards and operation.number > number and operation.kind != "read"
        )

        def stop() -> NoReturn:
            raise OSError(code, os.strerror(code), operation.file)

        return stop if due else None

    return heard
