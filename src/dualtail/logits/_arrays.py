"""Arrays in, arrays out: one place that converts and validates what the public functions take.

Every function accepts numpy arrays, tensors or nested lists, works on tensors and answers in the kind it was
given: numpy if its first array was numpy, a tensor on the same device otherwise. float16 and bfloat16 are
widened to float32; float32 and float64 keep their precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualtail.errors import InputError

ArrayLike = Any  # numpy array, torch tensor or nested list of numbers


_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # with which torch can do next to nothing


def as_tensor(value: ArrayLike, name: str) -> Tensor:
    """Return ``value`` as a dense tensor that shares memory where it can, refusing anything but numbers."""
    tensor = value if isinstance(value, Tensor) else _from_array(value, name)
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(
            f"{name} is a sparse or quantized tensor", fix="pass a dense one, such as x.to_dense()"
        )
    if tensor.is_meta:
        raise InputError(f"{name} has no data: it is on the device meta")
    if tensor.dtype not in _UNSIGNED:
        return tensor
    whole = tensor.long()
    if bool((whole < 0).any()):
        raise InputError(f"{name} holds whole numbers of more than 63 bits")
    return whole


def _from_array(value: ArrayLike, name: str) -> Tensor:
    try:
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Tensor) for item in value):
            return torch.stack([item.detach() for item in value])
        if np.ma.is_masked(value):
            raise InputError(f"{name} is a masked array that hides entries", fix="fill or drop them first")
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError
        # torch knows neither swapped bytes, steps backwards nor more than 64 bits.
        array = np.asarray(
            array, dtype=np.float64 if array.dtype.kind == "f" and array.itemsize > 8 else None
        )
        if not array.dtype.isnative or any(step < 0 or step % array.itemsize for step in array.strides):
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        with warnings.catch_warnings():
            # A read-only array, such as a memory map larger than the memory, is only read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            return torch.from_numpy(array)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not an array of numbers", fix="pass a tensor or a numpy array") from None


def as_float(value: ArrayLike, name: str) -> Tensor:
    """Return ``value`` as a float32 or float64 tensor (integers and half precision become float32)."""
    tensor = as_tensor(value, name)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{name} has dtype {tensor.dtype}", fix="expected real numbers")
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def check_finite(tensor: Tensor, name: str) -> Tensor:
    """Refuse NaN and infinities, naming the first place; one pass without a temporary of the input's size."""
    if tensor.numel() and not bool(torch.isfinite(tensor.sum())):
        # The sum may overflow although every entry is finite: look again before refusing.
        bad = torch.nonzero(~torch.isfinite(tensor))
        if len(bad):
            where = ", ".join(str(int(i)) for i in bad[0])
            raise InputError(f"{name} holds {len(bad)} values that are not finite, the first at [{where}]")
    return tensor


def as_logits(value: ArrayLike, name: str = "logits", *, finite: bool = True) -> Tensor:
    """Return logits ``(..., C)`` with C >= 2 as float32 or float64."""
    tensor = as_tensor(value, name)
    if tensor.ndim < 1 or tensor.shape[-1] < 2:
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}", fix="expected (..., C) with at least 2 classes"
        )
    if not tensor.is_floating_point():
        raise InputError(f"{name} has dtype {tensor.dtype}", fix="expected floating point")
    tensor = as_float(tensor, name)
    return check_finite(tensor, name) if finite else tensor


def as_labels(
    value: ArrayLike, num_classes: int | None, shape: tuple[int, ...] | None, name: str = "labels"
) -> Tensor:
    """Return int64 labels of ``shape`` with every value in ``[0, num_classes)``; None for any of the two."""
    tensor = as_tensor(value, name)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{name} has dtype {tensor.dtype}", fix="expected integers")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise InputError(f"{name} has shape {tuple(tensor.shape)}", fix=f"expected {tuple(shape)}")
    tensor = tensor.long()
    if tensor.numel():
        low, high = int(tensor.min()), int(tensor.max())
        most = high if num_classes is None else num_classes - 1
        if low < 0 or high > most:
            raise InputError(
                f"{name} holds {low if low < 0 else high}", fix=f"expected values from 0 to {max(most, 0)}"
            )
    return tensor


def as_counts(value: ArrayLike, name: str = "counts") -> Tensor:
    """Return class counts ``(C,)`` as float64: finite, not negative, not all zero."""
    tensor = as_float(value, name).double()
    if tensor.ndim != 1 or len(tensor) < 2:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}", fix="expected (C,) with C >= 2")
    check_finite(tensor, name)
    if bool((tensor < 0).any()):
        raise InputError(f"{name} holds a negative value at [{int((tensor < 0).nonzero()[0])}]")
    if not bool((tensor > 0).any()):
        raise InputError(f"{name} are all zero")
    return tensor


def check_saved(what: str, data: Mapping[str, Any], keys: Collection[str]) -> None:
    """Refuse a dictionary that was not saved from ``what``: its keys must be these."""
    wrong = sorted(set(keys) ^ set(data))
    if wrong:
        raise InputError(f"not a saved {what}: {wrong[0]!r} is missing or unknown")


def answer_like(example: ArrayLike, result: Tensor) -> Any:
    """Return ``result`` as numpy if ``example`` was not a tensor, else as the tensor it is."""
    return result if isinstance(example, Tensor) else result.detach().cpu().numpy()


def row_chunks(rows: int, columns: int, budget: int = 1 << 22) -> list[slice]:
    """Cut ``rows`` into slices of about ``budget`` entries, so that temporaries stay small and in cache."""
    step = max(1, budget // max(1, columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
