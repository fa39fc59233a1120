"""Numbers over time for TensorBoard and for Accelerate's other trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from dualtail.files import writing


class EventLog:
    """Write scalars to TensorBoard files, and to the trackers of an Accelerator that has any.

    Args:
        directory: of the TensorBoard files; None for none.
        accelerator: its trackers, if it was given some, hear everything too.
        from_step: what an earlier part of the run logged from this step on is hidden: it is about to come again.
    """

    def __init__(self, directory: str | Path | None, accelerator: Accelerator, from_step: int = 0) -> None:
        self._accelerator = accelerator
        self._writer = None
        if directory is not None:
            # It takes a second to import, which a run without events need not wait for.
            from torch.utils.tensorboard import SummaryWriter

            self._directory = Path(directory)
            with writing(self._directory):
                self._writer = SummaryWriter(str(directory), purge_step=from_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write every value under its name."""
        self._accelerator.log(dict(values), step=step)
        if self._writer is not None:
            with writing(self._directory):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            with writing(self._directory):
                self._writer.close()
