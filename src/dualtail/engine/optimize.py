"""One optimizer step: forward, backward, and an update that a loss which is not finite cannot spoil."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dualtail.engine.average import WeightAverage
from dualtail.engine.loaders import Batch
from dualtail.engine.mixing import Mixed, mix
from dualtail.engine.precision import training_attention
from dualtail.engine.settings import FinetuneSettings
from dualtail.process_group import ProcessGroup

Loss = Callable[[Tensor, Tensor], Tensor]


def random_seed(*key: int) -> int:
    """Return a seed that is a function of its key alone (run seed, step, process, ...).

    Nothing random in a run depends on what was drawn before, so a resumed run repeats it without stored generators.

    Example:
        >>> random_seed(0, 1) == random_seed(0, 1) != random_seed(1, 0)
        True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require a gradient, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


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


def build_optimizer(weights: Mapping[str, Tensor], settings: FinetuneSettings) -> torch.optim.Optimizer:
    """Return the optimizer of the settings, its state already there, so that it can be stored and restored.

    The fused kernels are used: one launch for all tensors, and an update that a flag on the device can skip.
    """
    parameters = list(weights.values())
    shared: dict[str, Any] = {
        "lr": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "fused": True,
    }
    if settings.optimizer == "adamw":
        adamw = torch.optim.AdamW(parameters, betas=settings.betas, **shared)
        for parameter in parameters:
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            adamw.state[parameter] = {"step": step, **moments}
        return adamw
    sgd = torch.optim.SGD(parameters, momentum=settings.momentum, **shared)
    for parameter in parameters if settings.momentum else ():
        # From zero, the first step gives the gradient itself, as torch's own lazy start does. The lazy start
        # would leave uninitialised memory behind if the very first step were skipped.
        sgd.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
    return sgd


class _Forward(nn.Module):
    """What Accelerate may wrap and patch (autocast, DDP, compile), so that the classifier itself stays as it is."""

    def __init__(self, classifier: nn.Module, *, compiled: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self._run = torch.compile(classifier.forward) if compiled else classifier.forward

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)


@dataclass
class StepRecord:
    """Where an optimizer step stands, what it left on the device to be read later, and which samples it saw.

    Attributes:
        step: optimizer steps before it.
        batch: batches of the epoch before it.
        learning_rate: its own.
        sums: float (3,): sum of the losses, number of right answers, number of images; of this process.
        bad: float scalar: not zero when this step or one before it had a loss or gradient that was not finite.
        index: rows of the manifest, one tensor a batch.
        broken: bool, one tensor a batch: the samples whose logits are not finite.
    """

    step: int
    batch: int
    learning_rate: float
    sums: Tensor
    bad: Tensor
    index: list[Tensor] = field(default_factory=list)
    broken: list[Tensor] = field(default_factory=list)


class Stepper:
    """Hold model, loss and optimizer, and make optimizer steps of one or more batches.

    The gradient is that of the mean loss over all images of the step: of all its batches, on all processes,
    whatever their sizes.

    Args:
        classifier: images to logits; on the accelerator's device and in training mode after this.
        loss: (logits, labels) to a mean over the batch.
        settings: optimizer, accumulation, clipping, mixing, average.
        accelerator: its mixed precision must be what the settings say.
        group: the processes that share each step.

    Attributes:
        weights: the trained tensors by name.
        buffers: the running statistics by name.
        average: of the weights; None for none.
        bad: not zero once a loss or gradient was not finite; no update is made from then on.
        unit: number of images that the batches' mean losses are weighted by before they are summed (size of the
            run's first batch x accumulation). A resumed run must use the same, to round alike.
    """

    def __init__(
        self,
        classifier: nn.Module,
        loss: Loss,
        settings: FinetuneSettings,
        accelerator: Accelerator,
        group: ProcessGroup,
    ) -> None:
        self.settings, self.accelerator, self.device = settings, accelerator, accelerator.device
        self.group, self.classifier = group, classifier
        train_mode(classifier)
        classifier.to(self.device)
        self.loss = loss.to(self.device) if isinstance(loss, nn.Module) else loss
        self.weights, self.buffers = trained_tensors(classifier), running_statistics(classifier)
        self.model = accelerator.prepare_model(
            _Forward(classifier, compiled=settings.compile),
            evaluation_mode=group.size == 1,  # else it would be wrapped for all processes
        )
        self.optimizer = build_optimizer(self.weights, settings)
        self._prepared = accelerator.prepare_optimizer(self.optimizer)
        self.average = None if settings.ema_decay is None else WeightAverage(self.weights, settings.ema_decay)
        self.bad = torch.zeros((), device=self.device)
        self.unit: int | None = None

    @property
    def _plain(self) -> bool:
        """Whether a step is one batch on one process, so that the batch's mean loss is the step's."""
        return self.settings.accumulation == 1 and self.group.size == 1

    def averaged(self) -> AbstractContextManager[None]:
        """Return the context in which the weights are their average, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def kept(self) -> dict[str, Tensor]:
        """Return all that training changes of the classifier, by name; live tensors."""
        return {**self.weights, **self.buffers}

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that decides how the run goes on, by name; live ones, to be read or written in place."""
        state = {f"weight.{name}": weight for name, weight in self.weights.items()}
        state |= {f"buffer.{name}": buffer for name, buffer in self.buffers.items()}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                state[f"optimizer.{key}.{name}"] = value
        if self.average:
            state |= {f"average.{name}": value for name, value in self.average.state.items()}
        return state

    def start(self, step: int, batch: int, learning_rate: float) -> StepRecord:
        """Return the record of a new step."""
        return StepRecord(step, batch, learning_rate, torch.zeros(3, device=self.device), self.bad)

    def add(self, record: StepRecord, batch: Batch, *, last: bool) -> None:
        """Add the gradient of a batch (this process's part of it) to the step's; ``last`` says that no other comes."""
        seed = random_seed(self.settings.seed, record.step, len(record.index), self.group.rank)
        mixed = self._mixed(batch.images, batch.labels, seed)
        torch.manual_seed(seed)
        self.unit = self.unit or len(batch.labels) * self.settings.accumulation
        share = 1.0 if self._plain else len(batch.labels) / self.unit
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            with training_attention(self.device, self.accelerator.mixed_precision):
                logits = self.model(mixed.images)
            value = mixed.loss(self.loss, logits)
            if self.accelerator.scaler is not None:
                # Under loss scaling the scaler decides which step is skipped: a NaN loss makes it skip them all.
                value = torch.where(self.bad > 0, torch.nan, value)
            self.accelerator.backward(value * share if share != 1.0 else value)
        self._count(record, value.detach(), logits.detach(), mixed, batch.index)

    def _mixed(self, images: Tensor, labels: Tensor, seed: int) -> Mixed:
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        s = self.settings
        return mix(images, labels, mixup=s.mixup, cutmix=s.cutmix, probability=s.mix_probability, seed=seed)

    def _count(self, record: StepRecord, value: Tensor, logits: Tensor, mixed: Mixed, index: Tensor) -> None:
        images = len(index)
        right = (logits.argmax(-1) == mixed.majority).sum()
        # Filled on the device: a number sent there from here would wait for it.
        count = torch.full_like(value, images, dtype=torch.float32)
        record.sums += torch.stack([value.float() * images, right.float(), count])
        record.index.append(index)
        record.broken.append(~torch.isfinite(logits.float().sum(-1)))

    def finish(self, record: StepRecord) -> None:
        """Make the optimizer step from the gradients gathered so far, unless one of them is not finite."""
        shared = torch.stack([record.sums[2], (~torch.isfinite(record.sums[0])).float()])
        if self.group.size > 1:
            shared = self.accelerator.reduce(shared, "sum")
        self._rescale(shared[0])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer)
        clip = math.inf if self.settings.gradient_clip is None else self.settings.gradient_clip
        norm = nn.utils.clip_grad_norm_(list(self.weights.values()), clip)
        flags = shared[1]
        if self.accelerator.scaler is None:
            flags = flags + (~torch.isfinite(norm)).float()
        self.bad = torch.clamp(self.bad + flags, max=1.0)
        record.bad = self.bad
        self._update(record.learning_rate)

    def _rescale(self, images: Tensor) -> None:
        """Turn the gradient of (sum of losses / unit), averaged over processes by DDP, into that of the mean."""
        if self._plain or self.unit is None:
            return
        factor = self.unit * self.group.size / images
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        torch._foreach_mul_(gradients, factor)

    def _update(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.accelerator.scaler is None:
            # The fused kernels leave weights and momenta alone when this is 1: no step after a bad one counts.
            self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        self._prepared.step()
        self._prepared.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
