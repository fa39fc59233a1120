"""Samples in chunks: any leading dimensions, numpy or torch, without a widened copy of all logits at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, as_labels, as_logits, as_tensor, check_finite, row_chunks

_BUDGET = 1 << 20  # entries of a chunk


@dataclass(frozen=True)
class LogitRows:
    """Logits ``(N, C)`` and labels ``(N,)`` that are converted and checked chunk by chunk when iterated."""

    values: Any
    labels: Tensor
    num_classes: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in row_chunks(len(self.labels), self.num_classes, _BUDGET):
            chunk = as_logits(self.values[rows], finite=False).detach()
            check_finite(chunk, f"logits (rows from {rows.start})")
            yield chunk, self.labels[rows].to(chunk.device)


def logit_rows(logits: ArrayLike, labels: ArrayLike) -> LogitRows:
    """Return the samples of ``logits (..., C)`` and ``labels (...)`` as rows, refusing malformed or no samples."""
    values = logits if isinstance(logits, np.ndarray) else as_tensor(logits, "logits")
    as_logits(values[:0] if values.ndim > 1 else values, finite=False)  # shape and dtype only
    target = as_labels(labels, values.shape[-1], tuple(values.shape[:-1])).reshape(-1)
    if not len(target):
        raise InputError("logits hold no samples")
    return LogitRows(values.reshape(-1, values.shape[-1]), target, values.shape[-1])


def as_predictions(value: ArrayLike, shape: tuple[int, ...], name: str) -> Tensor:
    """Return predicted classes ``shape`` from themselves (integers) or from logits ``(*shape, C)`` (floating point).

    Of equal logits the first class is predicted.
    """
    values = value if isinstance(value, np.ndarray) else as_tensor(value, name)
    floating = values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    expected = f"expected integers {shape} or floating-point logits {(*shape, 'C')}"
    if tuple(values.shape[: values.ndim - floating]) != shape:
        raise InputError(f"{name} has shape {tuple(values.shape)}", fix=expected)
    if not floating:
        tensor = as_tensor(values, name)
        if tensor.dtype == torch.bool or tensor.is_complex():
            raise InputError(f"{name} has dtype {tensor.dtype}", fix=expected)
        return tensor.long().reshape(-1).cpu()
    as_logits(values.reshape(-1)[:0].reshape(0, values.shape[-1]), name)  # number of classes and dtype only
    rows = values.reshape(-1, values.shape[-1])
    chunks = [
        check_finite(as_logits(rows[part], name, finite=False), name).argmax(1).cpu()
        for part in row_chunks(len(rows), rows.shape[1], _BUDGET)
    ]
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.int64)
