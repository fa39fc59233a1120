"""What a fine-tuning run is asked to do, and the learning rate that follows from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from dualtail.errors import InputError, nearest

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "constant")
SCHEDULE_STEPS = ("epoch", "step")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
KEEPS = ("last", "best")

# They change how the work is done or stored, never what comes out: a resumed run may change them.
_WITHOUT_EFFECT = ("checkpoint_steps", "checkpoint_minutes")


@dataclass(frozen=True)
class FinetuneSettings:
    """The choices of :func:`dualtail.engine.finetune.finetune`; the defaults are LIFT's recipe.

    The effective batch is (batch of the loader) x ``accumulation``; the loss is the mean over it, also when the
    last one of an epoch is smaller.

    Attributes:
        epochs: passes over the training set.
        optimizer: ``"sgd"`` or ``"adamw"``.
        learning_rate: the peak learning rate.
        momentum: momentum of SGD.
        betas: the two decay rates of AdamW.
        weight_decay: applied to every trained tensor, biases and scales included, as LIFT does.
        schedule: ``"cosine"`` (to zero) or ``"constant"``, after the warm-up.
        schedule_step: the learning rate changes once an ``"epoch"`` or every ``"step"``.
        warmup_epochs: epochs over which the learning rate rises linearly to its peak.
        accumulation: batches of the loader to one optimizer step.
        gradient_clip: largest total norm of the gradient; None leaves it as it is.
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"`` (with loss scaling), or ``"auto"``: bf16 where the device
            computes in it, else fp32. Trained tensors stay in float32 always.
        ema_decay: decay of the moving average of the trained tensors that is evaluated and kept in their place;
            None for none.
        mixup: alpha of Mixup's Beta(alpha, alpha) (Zhang et al., 2018, arXiv 1710.09412); 0 is off.
        cutmix: alpha of CutMix (Yun et al., 2019, arXiv 1905.04899); 0 is off. With both, a coin chooses a batch's.
        mix_probability: share of the batches that are mixed.
        keep: which weights the run ends with: of the ``"last"`` epoch, or of the ``"best"`` by ``keep_metric``.
        keep_metric: key of what ``evaluate`` returns; higher is better.
        seed: of dropout and mixing (the loader has its own).
        compile: run the model through :func:`torch.compile`.
        checkpoint_steps: optimizer steps between checkpoints; None leaves it to the clock and the epochs' ends.
        checkpoint_minutes: minutes between checkpoints (an epoch that took half a minute ends with one too).

    Raises:
        InputError: a value is of the wrong kind or out of range.

    Source:
        Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024,
        arXiv 2309.10019.

    Example:
        >>> FinetuneSettings(epochs=5, learning_rate=0.02).momentum
        0.9
        >>> FinetuneSettings(optimizer="adam")
        Traceback (most recent call last):
        dualtail.errors.InputError: optimizer: unknown value 'adam'; did you mean 'adamw'?
    """

    epochs: int = 10
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    schedule_step: str = "epoch"
    warmup_epochs: float = 0.0
    accumulation: int = 1
    gradient_clip: float | None = None
    precision: str = "auto"
    ema_decay: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    keep: str = "last"
    keep_metric: str = "macro"
    seed: int = 0
    compile: bool = False
    checkpoint_steps: int | None = None
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        for key, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("schedule_step", SCHEDULE_STEPS),
            ("precision", PRECISIONS),
            ("keep", KEEPS),
        ):
            _check_choice(key, getattr(self, key), known)
        _check_range("epochs", self.epochs, low=1)
        _check_range("accumulation", self.accumulation, low=1)
        _check_range("learning_rate", self.learning_rate, low=0.0, above=True)
        for key in ("weight_decay", "mixup", "cutmix"):
            _check_range(key, getattr(self, key), low=0.0)
        _check_range("momentum", self.momentum, low=0.0, high=1.0)
        _check_range("mix_probability", self.mix_probability, low=0.0, high=1.0)
        _check_range("warmup_epochs", self.warmup_epochs, low=0.0, high=float(self.epochs))
        if self.gradient_clip is not None:
            _check_range("gradient_clip", self.gradient_clip, low=0.0, above=True)
        if self.ema_decay is not None:
            _check_range("ema_decay", self.ema_decay, low=0.0, high=1.0)
        if self.checkpoint_steps is not None:
            _check_range("checkpoint_steps", self.checkpoint_steps, low=1)
        _check_range("checkpoint_minutes", self.checkpoint_minutes, low=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for JSON."""
        return {**asdict(self), "betas": list(self.betas)}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Say which settings of ``other`` (a :meth:`to_dict`) would lead to other weights.

        Example:
            >>> FinetuneSettings(epochs=5).differences(FinetuneSettings().to_dict())
            ['epochs 10 there, 5 here']
        """
        mine = self.to_dict()
        return [
            f"{field.name} {other.get(field.name)} there, {mine[field.name]} here"
            for field in fields(self)
            if field.name not in _WITHOUT_EFFECT and other.get(field.name) != mine[field.name]
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


def _check_choice(key: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        close = nearest(str(value), known)
        fix = f"did you mean {close!r}?" if close else f"choose one of {', '.join(known)}"
        raise InputError(f"unknown value {value!r}", where=key, fix=fix)


def _check_range(key: str, value: float, *, low: float, high: float = math.inf, above: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (low < value if above else low <= value) or value > high:
        bound = f"{'above' if above else 'at least'} {low:g}" + (
            f" and at most {high:g}" if high < math.inf else ""
        )
        raise InputError(f"{value!r} is out of range", where=key, fix=f"give a number {bound}")
