"""The training loop: epochs of steps, read, saved and evaluated as they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from dualtail.engine.keeper import Keeper, TrainingState
from dualtail.engine.loaders import TrainLoader
from dualtail.engine.memory import is_out_of_memory, out_of_memory_error
from dualtail.engine.meter import Meter
from dualtail.engine.optimize import Stepper, StepRecord, train_mode
from dualtail.engine.settings import learning_rate
from dualtail.engine.stop import GracefulStop
from dualtail.errors import DualtailError, Interrupted, TrainingError

_ONE_IMAGE = "Expected more than 1 value per channel when training"  # torch's words
Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass
class TrainingLoop:
    """Train from ``state`` to the end.

    Attributes:
        stepper: makes the optimizer steps.
        loader: gives their batches.
        state: where the run is; kept up to date.
        meter: counts and tells.
        keeper: saves.
        stop: says when to stop.
        evaluate: as of :func:`~dualtail.engine.finetune.finetune`, as ``sample_ids`` is.
    """

    stepper: Stepper
    loader: TrainLoader
    state: TrainingState
    meter: Meter
    keeper: Keeper
    stop: GracefulStop
    evaluate: Evaluate | None
    sample_ids: Sequence[str] | None

    def run(self) -> None:
        """Go on from the state to the end of the last epoch.

        Raises:
            NotFiniteError: a loss or gradient is not finite.
            TrainingError: memory does not suffice.
            Interrupted: somebody asked to stop; the state is saved.
        """
        state, settings = self.state, self.stepper.settings
        while state.epoch < settings.epochs:
            self.meter.start_clock()
            if state.batch < len(self.loader):
                self._train_epoch()
            metrics = self._evaluate()
            if metrics is not None:
                self.keeper.compare(state, metrics)
            self.meter.close_epoch(learning_rate(settings, state.epoch, 0, len(self.loader)), metrics)
            if state.epoch < settings.epochs:
                self.keeper.save_if_long_ago(state)
        if not state.finished:
            self.keeper.finish(state)

    def _train_epoch(self) -> None:
        state, total = self.state, len(self.loader)
        self.loader.set_epoch(state.epoch, skip_batches=state.batch)
        batches = iter(self.loader)
        while state.batch < total and self._step(batches):
            if (self.meter.full or self._asked_alone) and self._read():
                self._save_and_stop()
            if self.keeper.due(state, all_read=not self.meter.unread):
                self._read()
                self.keeper.save(state)
        self._read()
        state.batch = total

    def _step(self, batches: Iterator[Any]) -> bool:
        """Make one optimizer step; False when the loader gave nothing more."""
        state, settings, total = self.state, self.stepper.settings, len(self.loader)
        count = min(settings.accumulation, total - state.batch)
        rate = learning_rate(settings, state.epoch, state.batch, total)
        record = self.stepper.start(state.step, state.batch, rate)
        for number in range(1, count + 1):
            batch = self._next(batches)
            if batch is None:
                break
            try:
                self.stepper.add(record, batch, last=number == count)
            except (RuntimeError, MemoryError, ValueError) as error:
                if _ONE_IMAGE in str(error):
                    raise self._one_image() from None
                if not is_out_of_memory(error):
                    raise
                raise out_of_memory_error(self.stepper, batch, settings.accumulation) from None
        if not record.index:
            return False
        self.stepper.finish(record)
        self.meter.unread.append(record)
        state.batch, state.step = state.batch + count, state.step + 1
        return True

    def _one_image(self) -> TrainingError:
        return TrainingError(
            f"batch {self.state.batch + 1} of {len(self.loader)} has a single image, of which batch normalisation "
            "can take no statistics",
            fix="choose a batch size that leaves no single image at the end of an epoch",
        )

    def _read(self) -> bool:
        """Read the steps' numbers; return whether to stop: all processes do at the same step, as all read the same."""
        stopping, bad = self.meter.read(self.stop.requested)
        if bad is not None:
            self._refuse(bad)
        return stopping or self._asked_alone

    @property
    def _asked_alone(self) -> bool:
        return self.stop.requested and self.stepper.group.size == 1

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches, None)
        except Exception as error:
            # What stops this process stops the loader's workers too: their death is the request, not a fault.
            if self.stop.requested:
                self._read()
                self._save_and_stop()
            if (
                isinstance(error, DualtailError) and self.stepper.group.size == 1
            ):  # others would wait in a reading
                self._read()
                self.keeper.save(self.state)
            raise

    def _evaluate(self) -> dict[str, float] | None:
        """Evaluate on the caller's terms; a Ctrl-C in it stops at once, with the epoch saved as trained."""
        if self.evaluate is None:
            return None
        self.keeper.save_if_long_ago(self.state)
        classifier = self.stepper.classifier
        try:
            with self.stop.at_once(), self.stepper.averaged(), torch.random.fork_rng(devices=[]):
                classifier.eval()
                return dict(self.evaluate(classifier))
        except KeyboardInterrupt:
            self._save_and_stop()
        except DualtailError:
            self.keeper.save(self.state)
            raise
        finally:
            train_mode(classifier)

    def _save_and_stop(self) -> NoReturn:
        self.keeper.save(self.state)
        epochs, fix = self.stepper.settings.epochs, "run the same command again to go on from there"
        stopped = f"stopped at step {self.state.step} (epoch {self.state.epoch + 1} of {epochs})"
        if self.keeper.directory is None:
            stopped, fix = f"{stopped}; nothing was kept", "give a checkpoint directory next time"
        interrupted = Interrupted(stopped, fix=fix)
        interrupted.signal = self.stop.number
        raise interrupted from None

    def _refuse(self, bad: StepRecord) -> NoReturn:
        """Keep the state from before the bad step, name its samples and stop."""
        self.state.batch, self.state.step = bad.batch, bad.step
        self.keeper.save(self.state)
        broken = [i[mask.cpu()] for i, mask in zip(bad.index, bad.broken, strict=True)]
        rows = self._of_all(torch.cat(broken)) or self._of_all(torch.cat(bad.index))
        names = [str(self.sample_ids[row]) if self.sample_ids is not None else str(row) for row in rows]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        directory = self.keeper.directory
        kept = f"the state before it is kept in {directory}; " if directory else ""
        raise NotFiniteError(
            f"the loss or its gradient is not finite at step {bad.step + 1} (epoch {self.state.epoch + 1}), "
            f"samples {shown}",
            fix=f"{kept}lower the learning rate, clip the gradient, or use precision fp32",
            step=bad.step + 1,
            sample_ids=names,
        )

    def _of_all(self, rows: Tensor) -> list[int]:
        """Return the rows of all processes."""
        return gather_object(rows.tolist()) if self.stepper.group.size > 1 else rows.tolist()


class NotFiniteError(TrainingError):
    """A loss or gradient that is not finite.

    Attributes:
        step: optimizer step, from 1.
        sample_ids: the samples whose logits are not finite, or all of the step's if the logits are.
    """

    def __init__(self, what: str, *, fix: str, step: int, sample_ids: list[str]) -> None:
        super().__init__(what, fix=fix)
        self.step, self.sample_ids = step, sample_ids
