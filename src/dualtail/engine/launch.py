"""One Accelerator for each piece of work, in this process or in any number of them."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from dualtail.engine.precision import resolve_device, resolve_precision
from dualtail.errors import InputError


@dataclass(frozen=True)
class Crew:
    """The processes that do one piece of work together.

    Attributes:
        rank: this process, from 0.
        size: how many they are.

    Example:
        >>> Crew(0, 1).leads
        True
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process writes and tells for all."""
        return self.rank == 0

    @classmethod
    def of(cls, state: PartialState | Accelerator, *, alone: bool = False) -> Crew:
        """Return all processes that were started together, or this one by itself."""
        return cls(0, 1) if alone else cls(state.process_index, state.num_processes)


def make_accelerator(device: str = "auto", precision: str = "auto") -> Accelerator:
    """Return an Accelerator for ``device`` and ``precision``, whatever was used in this process before.

    Accelerate keeps one state a process and refuses a second precision or device; members of a run may differ in
    both, so that state is forgotten first (never the process group of a distributed run).

    Example:
        >>> make_accelerator("cpu", "fp32").device
        device(type='cpu')
    """
    AcceleratorState._reset_state()
    if join_processes(device).device != resolve_device(device) and PartialState().num_processes == 1:
        PartialState._reset_state()
    resolved = resolve_precision(precision, join_processes(device).device)
    return Accelerator(mixed_precision="no" if resolved == "fp32" else resolved)


def join_processes(device: str | torch.device = "auto") -> PartialState:
    """Return Accelerate's state of this process, having joined the other processes if there are any.

    Example:
        >>> join_processes("cpu").num_processes
        1
    """
    if not PartialState._shared_state:
        wanted = resolve_device(device)
        if wanted.type == "cuda":
            torch.cuda.set_device(wanted)
        # A process may wait for hours: for members that take longer, or for the first one's arithmetic.
        state = PartialState(cpu=wanted.type == "cpu", timeout=timedelta(days=7))
        if state.num_processes > 1 and torch.distributed.get_backend() == "gloo":
            # While the interpreter shuts down, a thread of Gloo that still drops a tensor would abort the process. NCCL
            # has no such threads, and a process that fails would wait there for the others.
            atexit.register(_leave_processes)
        return state
    return PartialState()


def _leave_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_share(loader: object, processes: int) -> None:
    """Refuse a loader that was cut for another number of processes: they would all work on the same images.

    Raises:
        InputError: it has a ``plan.world_size`` that is not ``processes``.
    """
    cut = getattr(getattr(loader, "plan", None), "world_size", processes)
    if cut != processes:
        raise InputError(
            f"the loader is cut for {cut} processes, but {processes} run",
            where="loader",
            fix="make it with world_size=processes and this process's rank",
        )


def process_rank() -> tuple[int, int]:
    """Return (this process's number, number of processes) as ``torchrun`` or ``accelerate launch`` set them.

    Known before anything distributed is started, so that loaders can be made first.

    Example:
        >>> process_rank()
        (0, 1)
    """
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
