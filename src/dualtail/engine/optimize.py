"""One optimizer step: forward, backward, and an update that a loss which is not finite cannot spoil."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dualtail.engine.average import WeightAverage
from dualtail.engine.launch import Crew
from dualtail.engine.mixing import Mixed, mix
from dualtail.engine.precision import training_attention
from dualtail.engine.settings import FinetuneSettings

Loss = Callable[[Tensor, Tensor], Tensor]


def random_seed(*place: int) -> int:
    """Return a seed that is a function of the place alone (run seed, step, process, ...).

    Nothing random in a run depends on what was drawn before, so a resumed run repeats it without stored generators.

    Example:
        >>> random_seed(0, 1) == random_seed(0, 1) != random_seed(1, 0)
        True
    """
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require a gradient, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def build_optimizer(weights: Mapping[str, Tensor], settings: FinetuneSettings) -> torch.optim.Optimizer:
    """Return the optimizer of the settings, its state already there, so that it can be stored and restored.

    The fused kernels are used: one launch for all tensors, and an update that a flag on the device can skip.
    """
    parameters = list(weights.values())
    rate, decay = settings.learning_rate, settings.weight_decay
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            parameters, lr=rate, betas=settings.betas, weight_decay=decay, fused=True
        )
    else:
        optimizer = torch.optim.SGD(
            parameters, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=True
        )
    for parameter in parameters:
        if settings.optimizer == "adamw":
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        elif settings.momentum:
            # From zero, the first step gives the gradient itself, as torch's own lazy start does. The lazy start
            # would leave uninitialised memory behind if the very first step were skipped.
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
    return optimizer


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
    """What one optimizer step left on the device, read later; and which samples it saw.

    Attributes:
        sums: float (3,): sum of the losses, number of right answers, number of images; of this process.
        bad: float scalar: not zero when this step or one before it had a loss or gradient that was not finite.
        index: rows of the manifest, one tensor a batch.
        broken: bool, one tensor a batch: the samples whose logits are not finite.
    """

    sums: Tensor
    bad: Tensor
    index: list[Tensor] = field(default_factory=list)
    broken: list[Tensor] = field(default_factory=list)


class Stepper:
    """Hold model, loss and optimizer, and make optimizer steps of one or more batches.

    The gradient is that of the mean loss over all images of the step: of all its batches, on all processes,
    whatever their sizes.

    Args:
        classifier: images to logits, on the accelerator's device after this.
        loss: (logits, labels) to a mean over the batch.
        settings: optimizer, accumulation, clipping, mixing, average.
        accelerator: its mixed precision must be what the settings say.
        crew: the processes that share each step.

    Attributes:
        weights: the trained tensors by name.
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
        crew: Crew,
    ) -> None:
        self.settings, self.accelerator, self.device = settings, accelerator, accelerator.device
        self.crew = crew
        classifier.to(self.device)
        self.loss = loss.to(self.device) if isinstance(loss, nn.Module) else loss
        self.weights = trained_tensors(classifier)
        self.model = accelerator.prepare_model(
            _Forward(classifier, compiled=settings.compile),
            evaluation_mode=crew.size == 1,  # else it would be wrapped for all processes
        )
        self.optimizer = build_optimizer(self.weights, settings)
        self._prepared = accelerator.prepare_optimizer(self.optimizer)
        self.average = None if settings.ema_decay is None else WeightAverage(self.weights, settings.ema_decay)
        self.bad = torch.zeros((), device=self.device)
        self.unit: int | None = None
        self._record = self._new_record()

    @property
    def _plain(self) -> bool:
        """Whether a step is one batch on one process, so that the batch's mean loss is the step's."""
        return self.settings.accumulation == 1 and self.crew.size == 1

    def _new_record(self) -> StepRecord:
        return StepRecord(torch.zeros(3, device=self.device), self.bad)

    def batch(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor,
        *,
        seed: int,
        last: bool,
        weight: int | None = None,
    ) -> None:
        """Add the gradient of one batch to the step's; ``last`` says that it is the step's last one.

        ``weight`` is the number of its images that count (all by default; 0 for a stand-in on a process that ran
        out of data).
        """
        mixed = self._mixed(images, labels, seed)
        torch.manual_seed(seed)
        self.unit = self.unit or len(labels) * self.settings.accumulation
        share = 1.0 if self._plain else len(labels) / self.unit
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            with training_attention(self.device, self.accelerator.mixed_precision):
                logits = self.model(mixed.images)
            value = mixed.loss(self.loss, logits)
            if self.accelerator.scaler is not None:
                # Under loss scaling the scaler decides which step is skipped: a NaN loss makes it skip them all.
                value = torch.where(self.bad > 0, torch.nan, value)
            self.accelerator.backward(value * share if share != 1.0 else value)
        self._count(value.detach(), logits.detach(), mixed, index)

    def _mixed(self, images: Tensor, labels: Tensor, seed: int) -> Mixed:
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        s = self.settings
        return mix(images, labels, mixup=s.mixup, cutmix=s.cutmix, probability=s.mix_probability, seed=seed)

    def _count(self, value: Tensor, logits: Tensor, mixed: Mixed, index: Tensor) -> None:
        record, images = self._record, len(index)
        right = (logits.argmax(-1) == mixed.majority).sum()
        # Filled on the device: a number sent there from here would wait for it.
        count = torch.full_like(value, images, dtype=torch.float32)
        record.sums += torch.stack([value.float() * images, right.float(), count])
        record.index.append(index)
        record.broken.append(~torch.isfinite(logits.float().sum(-1)))

    def finish(self, learning_rate: float) -> StepRecord:
        """Make the optimizer step from the gradients gathered so far, unless one of them is not finite."""
        record, self._record = self._record, self._new_record()
        shared = torch.stack([record.sums[2], (~torch.isfinite(record.sums[0])).float()])
        if self.crew.size > 1:
            shared = self.accelerator.reduce(shared, "sum")
        self._rescale(record, shared[0])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer)
        clip = math.inf if self.settings.gradient_clip is None else self.settings.gradient_clip
        norm = nn.utils.clip_grad_norm_(list(self.weights.values()), clip)
        flags = shared[1]
        if self.accelerator.scaler is None:
            flags = flags + (~torch.isfinite(norm)).float()
        self.bad = torch.clamp(self.bad + flags, max=1.0)
        record.bad = self.bad
        self._update(learning_rate)
        return record

    def _rescale(self, record: StepRecord, images: Tensor) -> None:
        """Turn the gradient of (sum of losses / unit), averaged over processes by DDP, into that of the mean."""
        if self._plain or self.unit is None:
            return
        factor = self.unit * self.crew.size / images
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
