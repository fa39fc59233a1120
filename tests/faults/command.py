"""The command line in a forked child of a warm process, so that a run takes a second and not ten."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 90.0
_ESCAPED = 99  # exit code of a child that an exception left


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code (None if it was killed or hung), what it printed."""

    code: int | None
    out: str
    err: str
    hung: bool = False

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return self.code is None and not self.hung

    @property
    def last_line(self) -> str:
        """The last line that it said."""
        return (self.err.strip().splitlines() or [""])[-1][:300]

    @property
    def failure(self) -> str | None:
        """The verdict where it neither went well nor refused in one line; None otherwise."""
        if self.hung:
            return "hung"
        if self.code == 0 or (self.code == 2 and self._one_line):
            return None
        return "traceback"

    @property
    def _one_line(self) -> bool:
        return self.last_line.startswith("error: ") and "Traceback (most recent" not in self.err


def warm() -> None:
    """Import all that commands import, on one thread, before anything is forked."""
    import torch

    torch.set_num_threads(1)
    import open_clip  # noqa: F401
    import timm  # noqa: F401
    import torch.utils.tensorboard

    import dualtail.cli.main
    import dualtail.data.check
    import dualtail.report.export
    import dualtail.report.page
    import dualtail.report.terminal
    import dualtail.runs.pipeline
    import dualtail.runs.predict
    import dualtail.runs.recipe_file  # noqa: F401


def in_child(work: Callable[[], None], *, timeout: float = TIMEOUT, memory: int | None = None) -> Done:
    """Do ``work`` in a forked child; an exception that leaves it is printed with its traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    pipes = os.pipe(), os.pipe()  # no files: their size may be limited
    child = os.fork()
    if not child:
        _be_child(work, pipes[0][1], pipes[1][1], memory)
    for read, write in pipes:
        os.close(write)
        os.set_blocking(read, False)
    said: list[list[bytes]] = [[], []]
    status, hung = _wait(child, timeout, lambda: [_drain(pipes[i][0], said[i]) for i in (0, 1)])
    for read, _ in pipes:
        os.close(read)
    out, err = (b"".join(parts).decode(errors="replace") for parts in said)
    code = os.waitstatus_to_exitcode(status)
    return Done(None if hung or code < 0 else code, out, err, hung)


def _drain(descriptor: int, parts: list[bytes]) -> None:
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)


def _be_child(work: Callable[[], None], out: int, err: int, memory: int | None) -> None:
    code = 0
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        work()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1 if done.code else 0
    except BaseException:
        traceback.print_exc()
        code = _ESCAPED
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # whatever happens, this child ends here
                stream.flush()
        os._exit(code)


def _wait(child: int, timeout: float, drain: Callable[[], object]) -> tuple[int, bool]:
    end, pause = time.monotonic() + timeout, 0.002
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        drain()
        if done:
            return status, False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], True


def dualtail(
    *arguments: object, before: Callable[[], object] = lambda: None, timeout: float = TIMEOUT
) -> Done:
    """Run a command line in a forked child; ``before`` is called there first."""

    def work() -> None:
        import dualtail.cli.main as main

        sys.argv = ["dualtail", *map(str, arguments)]
        os.environ["NO_COLOR"] = "1"
        before()
        main.run()

    return in_child(work, timeout=timeout)


def run(recipe: Path, out: Path, *more: str, before: Callable[[], object] = lambda: None) -> Done:
    """``dualtail run``."""
    return dualtail("run", recipe, "--out", out, "--quiet", *more, before=before)


def told(run: Path, images: Sequence[Path] = ()) -> Done:
    """Return what ``report``, or with images ``predict``, tells of a run."""
    if images:
        return dualtail("predict", run, *images, "--format", "jsonl", "--top", 3, "--device", "cpu")
    return dualtail("report", run, "--format", "json")
