"""One at a time: locks on disk that end with the process that holds them, and say who that is."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from dualtail.files import file_error


class Lock:
    """A lock that one process holds until it lets go or ends, however it ends.

    Processes that the holder forks, such as those that read images, do not hold it: they may outlive it.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; return whether it is ours now.

        Args:
            wait: until its holder lets go.

        Raises:
            OSError: the file cannot be made or locked.
        """
        import fcntl

        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if self._is_current(descriptor):
                    break
                os.close(descriptor)  # who held it removed the file: another one counts now
            except BlockingIOError:
                os.close(descriptor)
                return False
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        _held.add(self)
        with contextlib.suppress(OSError):  # a courtesy: without room there is none
            os.ftruncate(descriptor, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            os.write(descriptor, f"process {os.getpid()} on {platform.node()} since {since}".encode())
        return True

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def holder(self) -> str:
        """Return who holds the lock: "process 12 on HOST since ..."; empty if that is not known."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def release(self, *, remove: bool = False) -> None:
        """Let go of the lock; ``remove`` its file as well."""
        if self._descriptor is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            self._drop()

    def _drop(self) -> None:
        """Close the file: here this releases the lock, in a forked process it leaves it to the parent alone."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _held.discard(self)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """While inside, nobody else is inside with the same ``path``; who comes later waits. The file is removed.

    Raises:
        FileError: the file cannot be made or locked.
    """
    lock = Lock(path)
    try:
        lock.acquire(wait=True)
    except OSError as error:
        raise file_error(path, error) from None
    try:
        yield
    finally:
        lock.release(remove=True)


_held: set[Lock] = set()


def _drop_all() -> None:
    for lock in list(_held):
        lock._drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_all)
