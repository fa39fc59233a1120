"""What a training is asked to do, and the learning rate that follows from it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from dualtail.errors import InputError
from dualtail.schema import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section, describe_faults

Precision = Literal["auto", "fp32", "bf16", "fp16"]

# They change how the work is done or stored, never what comes out: a resumed run may change them.
_WITHOUT_EFFECT = ("checkpoint_steps", "checkpoint_minutes")


class TrainingChoices(Section):
    """The choices of a training that a recipe makes too; the defaults are LIFT's.

    One declaration for both: a recipe's ``finetune`` section and :class:`FinetuneSettings` are made of it.
    """

    epochs: PositiveInt = 10
    """Passes over the training set."""
    accumulation: PositiveInt = 1
    """Batches whose gradients are added up before a step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    """The peak learning rate."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegativeFloat = 5e-4
    """Of every trained tensor, biases and scales included, as LIFT has it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """``cosine`` (to zero) or ``constant``, after the warm-up."""
    schedule_step: Literal["epoch", "step"] = "epoch"
    """The learning rate changes once an epoch (LIFT) or at every step."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the learning rate rises linearly to its peak."""
    gradient_clip: PositiveFloat | None = None
    """Largest total norm of the gradient."""
    ema_decay: Fraction | None = None
    """Decay of a moving average of the trained weights, which then takes their place."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of Mixup; 0 is off."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of CutMix; 0 is off."""
    keep: Literal["last", "best"] = "last"
    """``best``: the epoch with the highest macro accuracy on val, measured after every epoch."""
    compile: bool = False
    """Train through ``torch.compile``."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TrainingChoices:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) must not exceed epochs ({self.epochs})")
        return self

    def choices(self) -> dict[str, Any]:
        """Return these choices alone, without those of the sections that add to them.

        Example:
            >>> FinetuneSettings(epochs=5, seed=3).choices()["epochs"], "seed" in FinetuneSettings().choices()
            (5, False)
        """
        return {name: getattr(self, name) for name in TrainingChoices.model_fields}


class FinetuneSettings(TrainingChoices):
    """The choices of :func:`dualtail.engine.finetune.finetune`; the defaults are LIFT's recipe.

    The effective batch is (batch of the loader) x ``accumulation``; the loss is the mean over it, also when the
    last one of an epoch is smaller. With Mixup (Zhang et al., 2018, arXiv 1710.09412) and CutMix (Yun et al., 2019,
    arXiv 1905.04899) both on, a coin chooses a batch's.

    Raises:
        InputError: an unknown setting, or a value of the wrong kind or out of range.

    Source:
        Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024,
        arXiv 2309.10019.

    Example:
        >>> FinetuneSettings(epochs=5, learning_rate=0.02).momentum
        0.9
        >>> FinetuneSettings(optimizer="adam")
        Traceback (most recent call last):
        dualtail.errors.InputError: settings: optimizer is 'adam'; it should be 'sgd' or 'adamw'
    """

    betas: tuple[float, float] = (0.9, 0.999)
    """The two decay rates of AdamW."""
    precision: Precision = "auto"
    """``fp32``, ``bf16``, ``fp16`` (with loss scaling), or ``auto``: bf16 where the device computes in it, else fp32.
    Trained tensors stay in float32 always."""
    mix_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of the batches that are mixed."""
    keep_metric: str = "macro"
    """Key of what ``evaluate`` returns; higher is better."""
    seed: int = 0
    """Of dropout and mixing (the loader has its own)."""
    checkpoint_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; None leaves it to the clock and the epochs' ends."""
    checkpoint_minutes: NonNegativeFloat = 5.0
    """Minutes between checkpoints (an epoch that took half a minute ends with one too)."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(describe_faults(type(self), error.errors())[0], where="settings") from None

    def changed(self, **values: Any) -> FinetuneSettings:
        """Return these settings with others in the place of some.

        Example:
            >>> FinetuneSettings(epochs=5).changed(seed=2).epochs
            5
        """
        return type(self)(**{**dict(self), **values})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for JSON."""
        return {**dict(self), "betas": list(self.betas)}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Say which settings of ``other`` (a :meth:`to_dict`) would lead to other weights.

        Example:
            >>> FinetuneSettings(epochs=5).differences(FinetuneSettings().to_dict())
            ['epochs 10 there, 5 here']
        """
        mine = self.to_dict()
        return [
            f"{name} {other.get(name)} there, {value} here"
            for name, value in mine.items()
            if name not in _WITHOUT_EFFECT and other.get(name) != value
        ]


def learning_rate(settings: FinetuneSettings, epoch: int, batch: int, batches: int) -> float:
    r"""Return the learning rate of a step as a function of its place alone, so that a schedule has no state.

    With :math:`t` the epochs done (whole ones, or with their fraction under ``schedule_step="step"``),
    :math:`W` the warm-up and :math:`T` all epochs, cosine is
    :math:`\tfrac{\eta}{2} (1 + \cos(\pi (t - W) / (T - W)))`. The warm-up rises linearly and its first step or epoch
    is never zero.

    Args:
        settings: peak, schedule, warm-up and number of epochs.
        epoch: the current epoch, from 0.
        batch: the first batch of the step in this epoch, from 0.
        batches: batches in an epoch.

    Source:
        Loshchilov and Hutter, 2017, arXiv 1608.03983 (cosine without restarts).

    Example:
        >>> s = FinetuneSettings(epochs=4)
        >>> [round(learning_rate(s, epoch, 0, 100), 5) for epoch in range(4)]
        [0.01, 0.00854, 0.005, 0.00146]
        >>> s = FinetuneSettings(epochs=4, warmup_epochs=2, schedule="constant")
        >>> [round(learning_rate(s, epoch, 0, 100), 5) for epoch in range(4)]
        [0.005, 0.01, 0.01, 0.01]
    """
    by_step = settings.schedule_step == "step"
    # A warm-up counts the step it is in as done (it must not start at zero); the cosine starts at its peak.
    tick = settings.accumulation / batches if by_step else 1.0
    done = epoch + batch / batches if by_step else float(epoch)
    if done + 1e-9 < settings.warmup_epochs:
        return settings.learning_rate * min(1.0, (done + tick) / settings.warmup_epochs)
    if settings.schedule == "constant":
        return settings.learning_rate
    rest = max(settings.epochs - settings.warmup_epochs, 1e-9)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - settings.warmup_epochs) / rest))
