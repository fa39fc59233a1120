"""The processes that do one piece of work together, and the device that each of them computes on.

``torchrun`` or ``accelerate launch`` starts them; usually there is one. Whatever shares work takes a
:class:`ProcessGroup` and never asks the environment itself.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch

from dualtail.errors import InputError, first_line

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that share work; by default this one alone.

    Attributes:
        rank: this process, from 0.
        size: how many they are.

    Raises:
        InputError: the rank does not exist.

    Example:
        >>> ProcessGroup().leads, ProcessGroup(1, 4).leads
        (True, False)
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise InputError(f"rank {self.rank} of {self.size} does not exist", fix="count ranks from 0")

    @classmethod
    def launched(cls) -> ProcessGroup:
        """Return all processes that were started together, as their launcher says; nothing is joined yet.

        Example:
            >>> ProcessGroup.launched()
            ProcessGroup(rank=0, size=1)
        """
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @classmethod
    def join(cls, device: str | torch.device = "auto") -> ProcessGroup:
        """Return all processes that were started together, having joined them.

        Args:
            device: what they compute on.
        """
        group = cls.launched()
        if group.size > 1:
            join_processes(device)
        return group

    @property
    def leads(self) -> bool:
        """Whether this process writes and tells for all."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Return the first process's ``value`` on every one of them."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box = [value]
        broadcast_object_list(box)
        return box[0]

    def wait(self) -> None:
        """Return once every process is here."""
        if self.size > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()


def is_lost_process(error: BaseException) -> bool:
    """Say whether an error means that another of the processes that share the work has ended.

    Example:
        >>> is_lost_process(RuntimeError("Connection closed by peer"))
        False
    """
    if ProcessGroup.launched().size == 1:
        return False
    return isinstance(error, torch.distributed.DistError) or "by peer" in str(error) or "gloo" in str(error)


def join_processes(device: str | torch.device = "auto") -> PartialState:
    """Return Accelerate's state of this process, having joined the other processes if there are any.

    Example:
        >>> join_processes("cpu").num_processes
        1
    """
    from accelerate.state import PartialState

    if PartialState._shared_state:
        return PartialState()
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


def _leave_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def own_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device that this process computes on: of several processes each has its own.

    Example:
        >>> own_device("cpu")
        device(type='cpu')
    """
    if ProcessGroup.launched().size == 1:
        return resolve_device(device)
    return join_processes(device).device


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to work on: ``"auto"`` is CUDA (this process's own GPU), then Apple's MPS, then the CPU.

    Raises:
        InputError: the device does not exist here.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            own = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
            return torch.device("cuda", own % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if str(device).partition(":")[0] == "meta":
        raise InputError("computes nothing", where=f"device {device}", fix="use 'auto'")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"cannot be used: {reason}", where=f"device {device}", fix="use 'auto'") from None
    return chosen
