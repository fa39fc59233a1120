"""A training run in progress: the loop, its checkpoints and its evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from dualtail.engine.checkpoint import read_checkpoint, restore_into, write_checkpoint
from dualtail.engine.events import EventLog
from dualtail.engine.launch import Crew, check_share
from dualtail.engine.memory import is_out_of_memory, out_of_memory_error
from dualtail.engine.optimize import Loss, Stepper, StepRecord, random_seed
from dualtail.engine.progress import WINDOW, Progress, ProgressCallback, Rate
from dualtail.engine.settings import FinetuneSettings, learning_rate
from dualtail.engine.stop import GracefulStop
from dualtail.errors import InputError, Interrupted, TrainingError

SHORT_MINUTES = 0.5  # epochs that end sooner after a checkpoint than this write none

Evaluate = Callable[[nn.Module], Mapping[str, float]]


class TrainBatch(Protocol):
    """What a training loader yields.

    Attributes:
        images: uint8 (B, 3, S, S).
        labels: int64 (B,).
        index: int64 (B,), each image's row in its manifest.
    """

    images: Any
    labels: Tensor
    index: Tensor


class TrainLoader(Protocol):
    """What :func:`finetune` needs of a loader: ``len`` is the number of batches of a whole epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Make the next iteration that of ``epoch``, without its first ``skip_batches`` batches."""


@dataclass
class Place:
    """Where a run is, and what it has to tell; all of it goes to the checkpoint's header.

    Attributes:
        epoch: whole epochs done.
        batch: batches of the current one that are used.
        step: optimizer steps done.
        unit: see :class:`~dualtail.engine.optimize.Stepper`.
        ema_updates: updates of the moving average.
        loss_sum: over the images of this epoch, as ``right`` (answers) and ``images`` (their number) are.
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
    loss_sum: float = 0.0
    right: float = 0.0
    images: int = 0
    images_before: int = 0
    seconds: float = 0.0
    seconds_before: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_value: float | None = None
    best_epoch: int | None = None
    finished: bool = False

    def count(self, loss_sum: float, right: float, images: float) -> None:
        """Add a step to the numbers of the epoch."""
        self.loss_sum += loss_sum
        self.right += right
        self.images += round(images)

    def close_epoch(self, rate: float, metrics: Mapping[str, float] | None) -> None:
        """Write the epoch into the history and start counting the next one."""
        images = max(self.images, 1)
        seconds = self.seconds - self.seconds_before
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / images,
            "accuracy": self.right / images,
            "learning_rate": rate,
            "seconds": seconds,
            "images_per_second": self.images / seconds if seconds else 0.0,
        }
        self.history.append(record if metrics is None else {**record, "val": dict(metrics)})
        self.images_before += self.images
        self.seconds_before = self.seconds
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.right, self.images = 0.0, 0.0, 0


@dataclass
class Pending:
    """An optimizer step whose numbers are still on the device, and where the run stood before it."""

    record: StepRecord
    batch: int
    step: int
    learning_rate: float


class TrainingRun:
    """A run in progress: the loop, its checkpoints and its evaluation."""

    progress: ProgressCallback | None = None
    evaluate: Evaluate | None = None
    sample_ids: Sequence[str] | None = None
    identity: str = ""
    directory: Path | None = None
    events: EventLog | None = None
    stopping = False

    def __init__(
        self,
        classifier: nn.Module,
        loader: TrainLoader,
        loss: Loss,
        settings: FinetuneSettings,
        accelerator: Accelerator,
        crew: Crew,
        stop: GracefulStop,
    ) -> None:
        self.classifier, self.settings, self.accelerator = classifier, settings, accelerator
        self.crew, self.stop = crew, stop
        self.loader = loader
        check_share(loader, crew.size)
        train_mode(classifier)
        self.stepper = Stepper(classifier, loss, settings, accelerator, crew)
        self.buffers = running_statistics(classifier)
        self.best: dict[str, Tensor] = {}
        self.place = Place()
        self.pending: list[Pending] = []
        self.window: list[tuple[float, float, float]] = []
        self.rate, self.step_rate = Rate(), Rate()
        self.clock = self.saved_at = time.monotonic()
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)

    # The loop ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Go on from the current place to the end."""
        self._start_clock()
        while self.place.epoch < self.settings.epochs:
            if self.place.batch < len(self.loader):
                self._train_epoch()
            self._end_epoch()
        if not self.place.finished:
            self._finish()

    def _train_epoch(self) -> None:
        self.loader.set_epoch(self.place.epoch, skip_batches=self.place.batch)
        batches = iter(self.loader)
        while self.place.batch < len(self.loader):
            if not self._one_step(batches):
                break
            if self._time_to_read():
                self._read()
                self._stop_if_asked()
            if self._checkpoint_due():
                self._read()
                self.save()
        self._read()
        self.place.batch = len(self.loader)

    def _one_step(self, batches: Iterator[Any]) -> bool:
        """Make one optimizer step; False when the loader gave nothing more."""
        place, total = self.place, len(self.loader)
        count = min(self.settings.accumulation, total - place.batch)
        rate = learning_rate(self.settings, place.epoch, place.batch, total)
        seen = 0
        for micro in range(count):
            batch = self._next(batches)
            if batch is None:
                break
            self._one_batch(batch, micro, last=micro == count - 1)
            seen += 1
        if not seen:
            return False
        record = self.stepper.finish(rate)
        self.pending.append(Pending(record, place.batch, place.step, rate))
        place.batch, place.step = place.batch + count, place.step + 1
        return True

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches, None)
        except Exception:
            # The terminal sends Ctrl-C to the loader's workers too: their death is the request, not a fault.
            if not self.stop.requested:
                raise
            self._read()
            self._stop_now()

    def _one_batch(self, batch: TrainBatch, micro: int, *, last: bool) -> None:
        seed = random_seed(self.settings.seed, self.place.step, micro, self.crew.rank)
        try:
            self.stepper.batch(batch.images, batch.labels, batch.index, seed=seed, last=last)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory_error(self.stepper, batch, self.settings.accumulation) from None

    def _time_to_read(self) -> bool:
        """Reading waits for the device; a CPU has nothing to wait for."""
        asked = self.stop.requested and self.crew.size == 1
        return asked or self.accelerator.device.type == "cpu" or len(self.pending) >= WINDOW

    def _read(self) -> None:
        """Fetch the numbers of the pending steps in one go, count them, and tell."""
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        rows = torch.stack([torch.cat([p.record.sums, p.record.bad[None]]) for p in pending])
        self._tick()
        asked = rows.new_tensor([[0.0, 0.0, 0.0, float(self.stop.requested)]])
        table = torch.cat([rows, asked])
        if self.crew.size > 1:
            # All processes stop at the same step, because all read the same sum.
            table = self.accelerator.reduce(table, "sum")
        *values, (_, _, _, stopping) = table.tolist()
        self.stopping = stopping > 0
        for step, (loss_sum, right, images, bad) in zip(pending, values, strict=True):
            if bad:
                self._refuse_bad_step(step)
            self.place.count(loss_sum, right, images)
            self.window = [*self.window, (loss_sum, right, images)][-WINDOW:]
        self.rate.add(sum(images for _, _, images, _ in values))
        self.step_rate.add(len(values))
        self._tell(pending[-1].learning_rate)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers to the events, if there are any."""
        if self.events is not None:
            self.events.log(values, step)

    def _tell(self, rate: float) -> None:
        loss_sum, right, images = (sum(column) for column in zip(*self.window, strict=True))
        per_epoch = -(-len(self.loader) // self.settings.accumulation)
        steps = per_epoch * self.settings.epochs
        told = Progress(
            epoch=self.place.epoch + 1,
            epochs=self.settings.epochs,
            step=self.place.step,
            steps=steps,
            loss=loss_sum / max(images, 1),
            accuracy=right / max(images, 1),
            images_per_second=self.rate.per_second,
            seconds_left=self.step_rate.seconds_for(steps - self.place.step),
            learning_rate=rate,
        )
        self.log(
            {
                "train/loss": told.loss,
                "train/accuracy": told.accuracy,
                "train/learning_rate": rate,
                "train/images_per_second": told.images_per_second,
            },
            step=told.step,
        )
        if self.progress is not None and self.crew.leads:
            self.progress(told)

    def _refuse_bad_step(self, bad: Pending) -> None:
        """Keep the state from before the bad step, name its samples and stop."""
        self.place.batch, self.place.step = bad.batch, bad.step
        self.save()
        broken = [i[mask.cpu()] for i, mask in zip(bad.record.index, bad.record.broken, strict=True)]
        rows = self._of_all(torch.cat(broken)) or self._of_all(torch.cat(bad.record.index))
        names = [str(self.sample_ids[row]) if self.sample_ids is not None else str(row) for row in rows]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        kept = f"the state before it is kept in {self.directory}; " if self.directory else ""
        raise NotFiniteError(
            f"the loss or its gradient is not finite at step {bad.step + 1} (epoch {self.place.epoch + 1}), "
            f"samples {shown}",
            fix=f"{kept}lower the learning rate, clip the gradient, or use precision fp32",
            step=bad.step + 1,
            sample_ids=names,
        )

    def _of_all(self, rows: Tensor) -> list[int]:
        """Return the rows of all processes."""
        return gather_object(rows.tolist()) if self.crew.size > 1 else rows.tolist()

    # Ends of epochs and of the run ----------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        metrics = self._evaluate()
        rate = learning_rate(self.settings, self.place.epoch, 0, len(self.loader))
        if metrics is not None:
            self._keep_best(metrics)
        self.place.close_epoch(rate, metrics)
        epoch = self.place.history[-1]
        scores = {f"val/{name}": value for name, value in (metrics or {}).items()}
        self.log(
            {"epoch/loss": epoch["loss"], "epoch/accuracy": epoch["accuracy"], **scores}, step=self.place.step
        )
        if self.place.epoch < self.settings.epochs:
            self._save_now_and_then()
            self._start_clock()

    def _evaluate(self) -> dict[str, float] | None:
        """Evaluate on the caller's terms; a Ctrl-C in it stops at once, with the epoch saved as trained."""
        if self.evaluate is None:
            return None
        self._save_now_and_then()
        averaged = nullcontext() if self.stepper.average is None else self.stepper.average.applied()
        try:
            with self.stop.at_once(), averaged, torch.random.fork_rng(devices=[]):
                self.classifier.eval()
                return dict(self.evaluate(self.classifier))
        except KeyboardInterrupt:
            self.save()
            raise self._interrupted() from None
        finally:
            train_mode(self.classifier)

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        key = self.settings.keep_metric
        if key not in metrics:
            if self.settings.keep == "best":
                raise InputError(
                    f"the evaluation returned no {key!r}",
                    where="keep_metric",
                    fix=f"it has {', '.join(metrics)}",
                )
            return
        if self.place.best_value is None or metrics[key] > self.place.best_value:
            self.place.best_value, self.place.best_epoch = float(metrics[key]), self.place.epoch + 1
            if self.settings.keep == "best":
                averaged = nullcontext() if self.stepper.average is None else self.stepper.average.applied()
                with averaged:
                    kept = {**self.stepper.weights, **self.buffers}
                    self.best = {name: value.detach().clone() for name, value in kept.items()}

    def _finish(self) -> None:
        """Put the weights to keep in place, for good."""
        if self.stepper.average is not None:
            self.stepper.average.swap()
        if self.best:
            restore_into({**self.stepper.weights, **self.buffers}, self.best, "", "best epoch")
        self.place.finished = True
        self.best = {}
        self.save()

    # Stopping and going on ------------------------------------------------------------------------------------

    def _stop_if_asked(self) -> None:
        alone = self.crew.size == 1
        if self.stopping or (alone and self.stop.requested):
            self._stop_now()

    def _stop_now(self) -> NoReturn:
        self.save()
        raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        place = f"at step {self.place.step} (epoch {self.place.epoch + 1} of {self.settings.epochs})"
        if self.directory is None:
            return Interrupted(
                f"stopped {place}; nothing was kept", fix="give a checkpoint directory next time"
            )
        return Interrupted(f"stopped {place}", fix="run the same command again to go on from there")

    def _checkpoint_due(self) -> bool:
        if self.directory is None:
            return False
        every = self.settings.checkpoint_steps
        by_step = every is not None and self.place.step % every == 0
        # Only the main process writes, and it reads the clock alone: the others must not follow it into _read.
        by_time = time.monotonic() - self.saved_at >= 60 * self.settings.checkpoint_minutes
        return by_step or (by_time and not self.pending)

    def _save_now_and_then(self) -> None:
        """Save at the end of an epoch, unless epochs are so short that saving would be a good part of the work."""
        if time.monotonic() - self.saved_at >= 60 * min(self.settings.checkpoint_minutes, SHORT_MINUTES):
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the current place (a no-op without a directory, or beside the main process)."""
        self.saved_at = time.monotonic()
        if self.directory is None or not self.crew.leads:
            return
        self.place.unit = self.stepper.unit
        average = self.stepper.average
        self.place.ema_updates = average.updates if average else 0
        header = {
            "settings": self.settings.to_dict(),
            "identity": self.identity,
            "batches": len(self.loader),
            **asdict(self.place),
        }
        write_checkpoint(self.directory, {**self._state(), **_prefixed("best.", self.best)}, header)

    def resume(self) -> int | None:
        """Go to the place of the checkpoint, if there is one; return its step."""
        found = read_checkpoint(self.directory) if self.directory else None
        if found is None:
            return None
        tensors, header = found
        where = str(self.directory)
        self._check_same_run(header, where)
        if self.stepper.average:
            self.stepper.average.updates = header["ema_updates"]
        restore_into(self._state(), tensors, "", where)
        self.best = {
            name.removeprefix("best."): tensor.to(self.accelerator.device)
            for name, tensor in tensors.items()
            if name.startswith("best.")
        }
        self.place = Place(**{key: header[key] for key in Place.__dataclass_fields__})
        self.stepper.unit = self.place.unit
        return self.place.step

    def _check_same_run(self, header: dict[str, Any], where: str) -> None:
        differences = self.settings.differences(header["settings"])
        if header["batches"] != len(self.loader):
            differences.append(f"{header['batches']} batches an epoch there, {len(self.loader)} here")
        if header["identity"] != self.identity:
            differences.append("data, model or loader are others")
        if differences:
            raise TrainingError(
                f"the checkpoint belongs to another run: {'; '.join(differences)}",
                where=where,
                fix="restore what it was started with, use another directory, or delete the checkpoint",
            )

    def _state(self) -> dict[str, Tensor]:
        """Every tensor that decides how the run goes on, by name; live ones, to be read or written in place."""
        stepper = self.stepper
        state = {**_prefixed("weight.", stepper.weights), **_prefixed("buffer.", self.buffers)}
        for name, weight in stepper.weights.items():
            for key, value in stepper.optimizer.state.get(weight, {}).items():
                state[f"optimizer.{key}.{name}"] = value
        if stepper.average:
            state |= _prefixed("average.", stepper.average.state)
        return state

    # Time -----------------------------------------------------------------------------------------------------

    def _start_clock(self) -> None:
        self.clock = time.monotonic()
        self.rate, self.step_rate = Rate(), Rate()

    def _tick(self) -> None:
        """Add the time since the last call to the training time."""
        now = time.monotonic()
        self.place.seconds += now - self.clock
        self.clock = now


class NotFiniteError(TrainingError):
    """A loss or gradient that is not finite.

    Attributes:
        step: optimizer step, from 1.
        sample_ids: the samples whose logits are not finite, or all of the step's if the logits are.
    """

    def __init__(self, what: str, *, fix: str, step: int, sample_ids: list[str]) -> None:
        super().__init__(what, fix=fix)
        self.step, self.sample_ids = step, sample_ids


def train_mode(classifier: nn.Module) -> None:
    """Switch to training mode, except batch normalisation whose scale and shift are frozen: its statistics are too."""
    classifier.train()
    for layer in classifier.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            own = list(layer.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                layer.eval()


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that training changes: the statistics of batch normalisation in training mode."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.training and layer.track_running_stats
        for key, buffer in layer.named_buffers(recurse=False)
    }


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
