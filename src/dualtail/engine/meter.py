"""What the steps of a training run did: fetched from the device in one go, counted, timed and told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

import torch

from dualtail.engine.events import EventLog
from dualtail.engine.keeper import Counts, TrainingState
from dualtail.engine.optimize import Stepper, StepRecord
from dualtail.engine.progress import WINDOW, Progress, ProgressCallback, Rate


class Meter:
    """Count the steps of a run into its state, and tell about them.

    Args:
        state: gets counts and seconds.
        stepper: made the records.
        batches: of an epoch.
        events: hears of every reading and epoch.
        progress: hears of every reading, on the first process.

    Attributes:
        unread: the steps whose numbers are still on the device.
    """

    def __init__(
        self,
        state: TrainingState,
        stepper: Stepper,
        batches: int,
        events: EventLog,
        progress: ProgressCallback | None,
    ) -> None:
        self.state, self.stepper, self.events = state, stepper, events
        self.progress = progress if stepper.group.leads else None
        self.epochs = stepper.settings.epochs
        self.steps = -(-batches // stepper.settings.accumulation) * self.epochs
        self.unread: list[StepRecord] = []
        self._recent: deque[Counts] = deque(maxlen=WINDOW)
        self.start_clock()

    def start_clock(self) -> None:
        """Let time count from now on."""
        self._clock = time.monotonic()
        self._image_rate, self._step_rate = Rate(), Rate()

    @property
    def full(self) -> bool:
        """Whether it is time to read: reading waits for the device, but a CPU has nothing to wait for."""
        return self.stepper.device.type == "cpu" or len(self.unread) >= WINDOW

    def read(self, asked: bool) -> tuple[bool, StepRecord | None]:
        """Fetch the numbers of the unread steps of all processes, count them, and tell.

        Args:
            asked: whether this process was asked to stop.

        Returns:
            Whether any process was, and the first step that is not finite: it and those after it are not counted.
        """
        if not self.unread:
            return False, None
        unread, self.unread = self.unread, []
        rows = torch.stack([torch.cat([record.sums, record.bad[None]]) for record in unread])
        now = time.monotonic()
        self.state.seconds, self._clock = self.state.seconds + now - self._clock, now
        table = torch.cat([rows, rows.new_tensor([[0.0, 0.0, 0.0, float(asked)]])])
        if self.stepper.group.size > 1:
            table = self.stepper.accelerator.reduce(table, "sum")
        *values, (*_, stopping) = table.tolist()
        for record, (loss_sum, right, images, bad) in zip(unread, values, strict=True):
            if bad:
                return stopping > 0, record
            self._recent.append(Counts(loss_sum, right, round(images)))
            self.state.add(self._recent[-1])
        self._image_rate.add(sum(images for _, _, images, _ in values))
        self._step_rate.add(len(values))
        self._tell(unread[-1].learning_rate)
        return stopping > 0, None

    def _tell(self, rate: float) -> None:
        recent = Counts()
        for counts in self._recent:
            recent.add(counts)
        told = Progress(
            epoch=self.state.epoch + 1,
            epochs=self.epochs,
            step=self.state.step,
            steps=self.steps,
            **recent.means(),
            images_per_second=self._image_rate.per_second,
            seconds_left=self._step_rate.seconds_for(self.steps - self.state.step),
            learning_rate=rate,
        )
        keys = ("loss", "accuracy", "learning_rate", "images_per_second")
        self.events.log({f"train/{key}": getattr(told, key) for key in keys}, step=told.step)
        if self.progress is not None:
            self.progress(told)

    def close_epoch(self, rate: float, metrics: Mapping[str, float] | None) -> None:
        """Write the epoch, with its learning rate and what the evaluation gave, into history and events."""
        values = {f"epoch/{name}": value for name, value in self.state.means().items()}
        values |= {f"val/{name}": value for name, value in (metrics or {}).items()}
        self.state.close_epoch(rate, metrics)
        self.events.log(values, step=self.state.step)
