"""Several processes over one run directory: all compute, the first one decides and writes."""

from __future__ import annotations

from typing import TypeVar

from accelerate.utils import broadcast_object_list, wait_for_everyone

from dualtail.engine.launch import join_processes, process_rank

T = TypeVar("T")


class Team:
    """The processes that ``torchrun`` or ``accelerate launch`` started together; usually a single one.

    Args:
        device: the run's device.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.size = process_rank()
        if self.size > 1:
            join_processes(device)

    @classmethod
    def alone(cls) -> Team:
        """Return this process by itself, although others were started with it."""
        team = cls.__new__(cls)
        team.rank, team.size = 0, 1
        return team

    @property
    def leads(self) -> bool:
        """Whether this process writes to the run directory."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Return the first process's ``value`` on every one of them."""
        if self.size == 1:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def wait(self) -> None:
        """Return once every process is here."""
        if self.size > 1:
            wait_for_everyone()
