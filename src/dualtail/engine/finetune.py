"""Fine-tuning of any classifier with any loader and loss; resumable at any step, to the bit on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from dualtail.engine.accelerator import make_accelerator
from dualtail.engine.events import EventLog
from dualtail.engine.keeper import Keeper, TrainingState
from dualtail.engine.loaders import TrainLoader, check_share
from dualtail.engine.meter import Meter
from dualtail.engine.optimize import Loss, Stepper
from dualtail.engine.progress import ProgressCallback
from dualtail.engine.settings import FinetuneSettings
from dualtail.engine.stop import GracefulStop
from dualtail.engine.training import Evaluate, TrainingLoop
from dualtail.errors import InputError
from dualtail.process_group import ProcessGroup


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning run did; the classifier itself holds the weights.

    Attributes:
        history: one mapping an epoch: ``epoch`` (from 1), ``loss``, ``accuracy``, ``learning_rate``, ``seconds``,
            ``images_per_second`` and, with an evaluation, ``val`` (its metrics).
        steps: optimizer steps.
        best_epoch: epoch (from 1) with the highest ``keep_metric``; None without an evaluation.
        kept: ``"last"`` or ``"best"``, which of the two the classifier holds.
        seconds: of training, evaluation left out, interrupted parts added up.
        images: training images seen.
        precision: the resolved one.
        device: as text.
        processes: how many trained together.
        num_parameters: trained numbers.
        resumed_from: optimizer step of the checkpoint it went on from; None when it started afresh.
        peak_memory: bytes allocated on the GPU at most; None on other devices.
    """

    history: tuple[dict[str, Any], ...]
    steps: int
    best_epoch: int | None
    kept: str
    seconds: float
    images: int
    precision: str
    device: str
    processes: int
    num_parameters: int
    resumed_from: int | None = None
    peak_memory: int | None = None

    @property
    def images_per_second(self) -> float:
        """Training speed over the whole run."""
        return self.images / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "history": list(self.history), "images_per_second": self.images_per_second}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FinetuneResult:
        """Return the result that a :meth:`to_dict` tells of; keys of others are ignored.

        Raises:
            InputError: a key is missing.
        """
        names = [entry.name for entry in fields(cls) if entry.name in record]
        try:
            return cls(**{name: record[name] for name in names} | {"history": tuple(record["history"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"is no record of a fine-tuning ({error})", where="training record") from None


def finetune(
    classifier: nn.Module,
    loader: TrainLoader,
    loss: Loss,
    settings: FinetuneSettings | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
    events_dir: str | Path | None = None,
    progress: ProgressCallback | None = None,
    evaluate: Evaluate | None = None,
    sample_ids: Sequence[str] | None = None,
    identity: str = "",
    device: str = "auto",
    group: ProcessGroup | None = None,
    accelerator: Accelerator | None = None,
) -> FinetuneResult:
    """Train the parameters of ``classifier`` that require a gradient, in place.

    With ``checkpoint_dir`` the run can be stopped anywhere, by Ctrl-C or by force, and the same call goes on from the
    last checkpoint; on a CPU it ends with the same weights to the bit as a run that was never stopped. The order of
    the data must be a function of the loader's own seed and the epoch, as dualtail's loaders' is.

    Under ``torchrun`` or ``accelerate launch`` every process calls this with the same arguments and a loader that
    yields its own part of each batch (``train_loader(..., group=ProcessGroup.launched())``); the gradient is that of
    the whole batch.

    Args:
        classifier: images (uint8, (B, 3, S, S)) to logits (B, C).
        loader: yields batches with ``images``, ``labels`` and ``index``.
        loss: (logits float32 (B, C), labels int64 (B,)) to the batch's mean loss.
        settings: LIFT's recipe by default.
        checkpoint_dir: where the unfinished run is kept; shared by all processes. None keeps nothing.
        events_dir: where TensorBoard events go; None for none.
        progress: called with a :class:`~dualtail.engine.progress.Progress` now and then, on the first process.
        evaluate: called with the classifier (in eval mode, averaged weights in place) after each epoch, on every
            process; what it returns is recorded as ``val``.
        sample_ids: names of the manifest's rows, for messages.
        identity: what else decides the result (a fingerprint of data, loader and model, say); a checkpoint of
            another identity is refused.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        group: the processes that train together: all that were started together by default; ``ProcessGroup()`` is
            this one by itself, with a classifier of its own and a loader that yields whole batches.
        accelerator: one's own, with the wanted mixed precision and trackers; ``precision`` and ``device`` are then
            its affair.

    Raises:
        InputError: nothing to train, an empty loader, or ``keep="best"`` without ``evaluate``.
        TrainingError: the loss is not finite, memory does not suffice, or the checkpoint belongs to another run.
        Interrupted: after the first Ctrl-C or SIGTERM, once a checkpoint is written.

    Example:
        >>> from types import SimpleNamespace
        >>> class Loader:
        ...     def __len__(self): return 1
        ...     def set_epoch(self, epoch, skip_batches=0): self.skip = skip_batches
        ...     def __iter__(self):
        ...         images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
        ...         yield SimpleNamespace(images=images, labels=torch.arange(2), index=torch.arange(2))
        >>> class Classifier(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = nn.Linear(12, 2)
        ...     def forward(self, images): return self.head(images.flatten(1) / 255)
        >>> settings = FinetuneSettings(epochs=20, learning_rate=0.5, precision="fp32")
        >>> result = finetune(Classifier(), Loader(), nn.CrossEntropyLoss(), settings, device="cpu")
        >>> result.history[-1]["accuracy"], result.steps
        (1.0, 20)
    """
    settings = settings or FinetuneSettings()
    _check_inputs(classifier, loader, settings, evaluate)
    group = group or ProcessGroup.join(device)
    check_share(loader, group)
    accelerator = accelerator or make_accelerator(device, settings.precision)
    directory = None if checkpoint_dir is None else Path(checkpoint_dir)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), GracefulStop() as stop:
        stepper = Stepper(classifier, loss, settings, accelerator, group)
        if devices:
            torch.cuda.reset_peak_memory_stats(accelerator.device)
        keeper = Keeper(stepper, directory, identity=identity, batches=len(loader))
        resumed = keeper.resume()
        state, resumed_from = resumed or TrainingState(), resumed.step if resumed else None
        writer = EventLog(events_dir if group.leads else None, accelerator, from_step=state.step + 1)
        with closing(writer) as events:
            meter = Meter(state, stepper, len(loader), events, progress)
            TrainingLoop(stepper, loader, state, meter, keeper, stop, evaluate, sample_ids).run()
    classifier.eval()
    return _result(stepper, state, resumed_from)


def _check_inputs(
    classifier: nn.Module, loader: TrainLoader, settings: FinetuneSettings, evaluate: Evaluate | None
) -> None:
    if not any(parameter.requires_grad for parameter in classifier.parameters()):
        raise InputError("no parameter of the classifier requires a gradient", where="classifier")
    if len(loader) == 0:
        raise InputError("the loader has no batch", where="loader", fix="give it training images")
    if settings.keep == "best" and evaluate is None:
        raise InputError(
            "keeping the best epoch needs an evaluation", where="keep", fix="pass evaluate=, or keep the last"
        )


def _result(stepper: Stepper, state: TrainingState, resumed_from: int | None) -> FinetuneResult:
    device, precision = stepper.device, stepper.accelerator.mixed_precision
    return FinetuneResult(
        history=tuple(state.history),
        steps=state.step,
        best_epoch=state.best_epoch,
        kept=stepper.settings.keep,
        seconds=state.seconds,
        images=state.images_before,
        precision="fp32" if precision == "no" else precision,
        device=str(device),
        processes=stepper.group.size,
        num_parameters=sum(weight.numel() for weight in stepper.weights.values()),
        resumed_from=resumed_from,
        peak_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
