"""What to say when memory runs out: a batch and an accumulation that were tried and fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualtail.engine.optimize import Stepper
from dualtail.errors import TrainingError

_CPU_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the device or the machine had too little memory."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return any(message in str(error) for message in _CPU_MESSAGES)


def out_of_memory_error(stepper: Stepper, batch: Any, accumulation: int) -> TrainingError:
    """Try halves of the batch until one fits, and say so."""
    size = len(batch.labels)
    fitting = largest_fitting(stepper, batch.images, batch.labels)
    what = f"out of memory with batches of {size} images"
    if fitting is None:
        return TrainingError(
            what, fix="even one image does not fit: use a smaller backbone or another device"
        )
    times = -(-size // fitting)
    return TrainingError(
        what,
        fix=f"batch_size {fitting} with accumulation {accumulation * times} fits and gives the same gradient",
    )


def largest_fitting(stepper: Stepper, images: Tensor, labels: Tensor) -> int | None:
    """Return the largest of size/2, size/4, ... whose forward and backward pass fit in memory."""
    size = len(labels) // 2
    while size and not _fits(stepper, images[:size], labels[:size]):
        size //= 2
    return size or None


def _fits(stepper: Stepper, images: Tensor, labels: Tensor) -> bool:
    stepper.optimizer.zero_grad(set_to_none=True)
    if stepper.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        logits = stepper.model(images.to(stepper.device))
        stepper.loss(logits, labels.to(stepper.device)).backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        stepper.optimizer.zero_grad(set_to_none=True)
    return True
