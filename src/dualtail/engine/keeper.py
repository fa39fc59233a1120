"""The state of a training run, and what keeps it: checkpoints, going on from one, and the best epoch's weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from dualtail.engine.checkpoint import CHECKPOINT_NAME, read_checkpoint, restore_into, write_checkpoint
from dualtail.engine.optimize import Stepper
from dualtail.errors import InputError, TrainingError

SHORT_MINUTES = 0.5  # epochs that end sooner after a checkpoint than this write none
_BEST = "best."  # before the names of the best epoch's tensors


@dataclass
class Counts:
    """Sum of the losses, number of right answers and number of images of some steps, over all processes."""

    loss_sum: float = 0.0
    right: float = 0.0
    images: int = 0

    def add(self, other: Counts) -> None:
        """Count the other's steps too."""
        self.loss_sum += other.loss_sum
        self.right += other.right
        self.images += other.images

    def means(self) -> dict[str, float]:
        """Return the mean ``loss`` and the ``accuracy``."""
        images = max(self.images, 1)
        return {"loss": self.loss_sum / images, "accuracy": self.right / images}


@dataclass
class TrainingState(Counts):
    """Where a run is, and what it has to tell; all of it goes to the checkpoint's header. It counts the current epoch.

    Attributes:
        epoch: whole epochs done.
        batch: batches of the current one that are used.
        step: optimizer steps done.
        unit: see :class:`~dualtail.engine.optimize.Stepper`.
        ema_updates: updates of the moving average.
        images_before: of the epochs before.
        seconds: of training so far; ``seconds_before`` at the start of this epoch.
        history: one record an epoch.
        best_value: of ``keep_metric``, reached in ``best_epoch`` (from 1).
        finished: whether the weights are the final ones.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    unit: int | None = None
    ema_updates: int = 0
    images_before: int = 0
    seconds: float = 0.0
    seconds_before: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_value: float | None = None
    best_epoch: int | None = None
    finished: bool = False

    def close_epoch(self, rate: float, metrics: Mapping[str, float] | None) -> None:
        """Write the epoch into the history and start counting the next one."""
        seconds = self.seconds - self.seconds_before
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            **self.means(),
            "learning_rate": rate,
            "seconds": seconds,
            "images_per_second": self.images / seconds if seconds else 0.0,
        }
        self.history.append(record if metrics is None else {**record, "val": dict(metrics)})
        self.images_before += self.images
        self.seconds_before = self.seconds
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.right, self.images = 0.0, 0.0, 0


class Keeper:
    """Save a run now and then, go on from what was saved, and keep the best epoch's weights.

    Args:
        stepper: its tensors are saved and restored.
        directory: of the checkpoint; None keeps nothing.
        identity: what else decides the result; a checkpoint of another identity is refused.
        batches: of an epoch.
    """

    def __init__(self, stepper: Stepper, directory: Path | None, *, identity: str, batches: int) -> None:
        self.stepper, self.settings, self.directory = stepper, stepper.settings, directory
        self._run = {"identity": identity, "batches": batches}
        self._best: dict[str, Tensor] = {}
        self._saved_at = time.monotonic()

    def resume(self) -> TrainingState | None:
        """Put the tensors of the checkpoint in place and return its state; None where there is none.

        Raises:
            TrainingError: the checkpoint is damaged or belongs to another run.
        """
        kept = read_checkpoint(self.directory) if self.directory else None
        if kept is None:
            return None
        tensors, header, note = kept
        assert self.directory is not None  # where it was read
        self._check_same_run(header)
        state = TrainingState(**{entry.name: header[entry.name] for entry in fields(TrainingState)})
        restore_into(self.stepper.state(), tensors, str(self.directory))
        if note and self.stepper.group.leads:  # else the next checkpoint would take it for the one before
            (self.directory / CHECKPOINT_NAME).unlink(missing_ok=True)
        self._best = {
            name.removeprefix(_BEST): tensor.to(self.stepper.device)
            for name, tensor in tensors.items()
            if name.startswith(_BEST)
        }
        self.stepper.unit = state.unit
        if self.stepper.average:
            self.stepper.average.updates = state.ema_updates
        return state

    def _check_same_run(self, header: Mapping[str, Any]) -> None:
        differences = self.settings.differences(header["settings"])
        if header["batches"] != self._run["batches"]:
            differences.append(f"{header['batches']} batches an epoch there, {self._run['batches']} here")
        if header["identity"] != self._run["identity"]:
            differences.append("data, model or loader are others")
        if differences:
            raise TrainingError(
                f"the checkpoint belongs to another run: {'; '.join(differences)}",
                where=str(self.directory),
                fix="restore what it was started with, use another directory, or delete the checkpoint",
            )

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint (a no-op without a directory, or beside the first process)."""
        self._saved_at = time.monotonic()
        if self.directory is None or not self.stepper.group.leads:
            return
        state.unit = self.stepper.unit
        state.ema_updates = self.stepper.average.updates if self.stepper.average else 0
        best = {_BEST + name: tensor for name, tensor in self._best.items()}
        header = {"settings": self.settings.to_dict(), **self._run, **asdict(state)}
        write_checkpoint(self.directory, {**self.stepper.state(), **best}, header)

    def due(self, state: TrainingState, *, all_read: bool) -> bool:
        """Say whether to save within an epoch; ``all_read`` that no step waits to be read."""
        if self.directory is None:
            return False
        every = self.settings.checkpoint_steps
        by_step = every is not None and state.step % every == 0
        # Only the first process writes, and it reads the clock alone: the others must not follow it into a reading.
        return by_step or (all_read and self._minutes >= self.settings.checkpoint_minutes)

    def save_if_long_ago(self, state: TrainingState) -> None:
        """Save at the end of an epoch, unless epochs are so short that saving would be a good part of the work."""
        if self._minutes >= min(self.settings.checkpoint_minutes, SHORT_MINUTES):
            self.save(state)

    @property
    def _minutes(self) -> float:
        return (time.monotonic() - self._saved_at) / 60

    def compare(self, state: TrainingState, metrics: Mapping[str, float]) -> None:
        """Note whether the epoch that ends is the best so far, and keep its weights if they are asked for.

        Raises:
            InputError: the metric to compare by is not there.
        """
        key, keep = self.settings.keep_metric, self.settings.keep == "best"
        if key not in metrics:
            if keep:
                raise InputError(
                    f"the evaluation returned no {key!r}",
                    where="keep_metric",
                    fix=f"it has {', '.join(metrics)}",
                )
            return
        if state.best_value is None or metrics[key] > state.best_value:
            state.best_value, state.best_epoch = float(metrics[key]), state.epoch + 1
            if keep:
                with self.stepper.averaged():
                    self._best = {name: value.detach().clone() for name, value in self.stepper.kept().items()}

    def finish(self, state: TrainingState) -> None:
        """Put the weights to keep in place, for good, and save."""
        if self.stepper.average is not None:
            self.stepper.average.swap()
        if self._best:
            restore_into(self.stepper.kept(), self._best, "best epoch")
        state.finished, self._best = True, {}
        self.save(state)
