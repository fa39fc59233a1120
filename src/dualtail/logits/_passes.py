"""Passes over ``softmax(scale * logits + offset)`` in chunks of rows.

Fitting a prior needs nothing of the ``(N, C)`` logits but a few sums over their rows. Each method here is one
pass: bandwidth-bound, with temporaries that stay in the processor's cache. While the exponentials of the logits
fit a budget they are kept, and a pass is then two matrix-vector products; beyond it they are computed again in
every pass, so that a memory-mapped array of any length is only streamed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, as_labels, as_tensor, row_chunks

CACHE_BYTES = 1 << 28
"""Exponentials are kept up to this size."""

# Entries of a chunk: within a core's second-level cache for every thread, or enough to occupy an accelerator.
_CPU_BUDGET, _CUDA_BUDGET, _PRODUCT_BUDGET = 1 << 18, 1 << 24, 1 << 22
# Kept exponentials are computed at one offset and reused at others up to this far from it: small against the
# 87 (float32) at which a weight would underflow.
_REUSE_RANGE = 20.0
# Smaller ones are raised to exp(-69) = 1e-30: far below rounding, yet their products are not subnormal numbers,
# which would slow a pass manyfold, and a class that is never predicted keeps a gradient.
_LOWEST_EXPONENT = -69.0


class SoftmaxSums(NamedTuple):
    """``sum_i log sum_k exp(scale f_ik + offset_k)`` and ``sum_i softmax(...)_i``, in float64."""

    log_partition: float
    expected: Tensor


class SlopeMoments(NamedTuple):
    """Derivatives with respect to the scale; ``<f>_i`` is the mean of ``f_i`` under its softmax."""

    mean: float
    """``sum_i <f>_i``."""
    covariance: Tensor
    """``sum_i p_ik (f_ik - <f>_i)``, ``(C,)``."""
    variance: float
    """``sum_i (<f^2>_i - <f>_i^2)``."""


class SoftmaxPasses:
    """Sums over the rows of ``P = softmax(scale * logits + offset)``; every pass is counted in ``count``.

    Args:
        logits: ``(..., C)`` floating point: a tensor, a numpy array or memory map, or anything with ``shape`` and
            slicing by rows (then two-dimensional), such as an HDF5 dataset. Checked for finite values in the
            first pass.
        labels: ``(...)`` integers, or None; ``label_sum`` is ``sum_i f_i,y_i``, and ``counts`` the ``(C,)``
            numbers of samples of each class, None without labels.
        cache_bytes: how much may be taken to keep exponentials (``CACHE_BYTES`` by default).
    """

    def __init__(
        self, logits: ArrayLike, labels: ArrayLike | None = None, cache_bytes: int | None = None
    ) -> None:
        self._source = _two_dimensional(logits)
        self.num_rows, self.num_classes = self._source.shape
        if self.num_rows == 0:
            raise InputError("logits hold no sample")
        first = self._read(slice(0, 1))
        self.device, self.dtype = first.device, first.dtype
        self.count = 0
        self._offset = torch.zeros(self.num_classes, dtype=torch.float64, device=self.device)
        self._scale = 1.0
        keeps = self.num_rows * self.num_classes * first.element_size() <= (
            CACHE_BYTES if cache_bytes is None else cache_bytes
        )
        self._kept = first.new_empty(self.num_rows, self.num_classes) if keeps else None
        self._tops = first.new_empty(self.num_rows)
        self.counts: Tensor | None = None
        self.label_sum = 0.0
        index = None
        if labels is not None:
            shape = tuple(np.shape(logits) if not hasattr(logits, "shape") else logits.shape)[:-1]
            index = as_labels(labels, self.num_classes, shape).reshape(-1).to(self.device)
            self.counts = torch.bincount(index, minlength=self.num_classes).double()
        self._first_pass(index)

    def evaluate(self, offset: Tensor, scale: float = 1.0) -> SoftmaxSums:
        """Return the summed log-partition and the expected counts."""
        weights = self._weights(offset, scale)
        expected = torch.zeros_like(offset)
        totals = torch.empty_like(self._tops)
        for rows, values in self._chunks(self._budget()):
            total = torch.mv(values, weights, out=totals[rows])
            expected += total.reciprocal() @ values
        log_partition = totals.double().log_().sum() + self._tops.sum(dtype=torch.float64)
        return SoftmaxSums(float(log_partition), expected * weights.double())

    def product(self, offset: Tensor, vectors: Tensor, scale: float = 1.0) -> Tensor:
        """Return ``P^T P V`` for ``V (C, m)``, float64."""
        weights = self._weights(offset, scale)
        operand = torch.cat([weights[:, None], weights[:, None] * vectors.to(self.dtype)], dim=1)
        result = torch.zeros_like(vectors.T)
        for _, values in self._chunks(self._budget()):
            both = values @ operand
            total = both[:, :1]
            # Dividing twice, not by the square, keeps a small total from underflowing.
            result += ((both[:, 1:] / total / total).T @ values).double()
        return result.T * weights.double()[:, None]

    def gram(self, offset: Tensor, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return ``P^T P`` ``(C, C)``, symmetric: C^2 N operations, about six tenths of them by symmetry.

        It is summed in ``dtype``, that of the logits by default; the memory beyond it is that of a few chunks.
        """
        weights = self._weights(offset, scale)
        classes = self.num_classes
        dtype = self.dtype if dtype is None else dtype
        result = torch.zeros(classes, classes, dtype=dtype, device=self.device)
        block = max(256, -(-classes // 8))
        starts = range(0, classes, block)
        buffer: Tensor | None = None
        for _, values in self._chunks(_PRODUCT_BUDGET):
            # One buffer for all chunks: allocating each anew would leave holes as large as all of them.
            buffer = torch.empty_like(values, dtype=dtype) if buffer is None else buffer
            share = torch.mul(values, weights, out=buffer[: len(values)])
            share /= share.sum(1, keepdim=True)
            # Products of what is left are at least 1e-36: subnormal numbers would slow the product manyfold.
            torch.threshold_(share, 1e-18, 0.0)
            for start in starts:
                result[start:, start : start + block].addmm_(
                    share[:, start:].T, share[:, start : start + block]
                )
        for start in starts:
            stop = min(start + block, classes)
            result[start:stop, stop:] = result[stop:, start:stop].T
        return result

    def gram_diagonal(self, offset: Tensor, scale: float = 1.0) -> Tensor:
        """Return the diagonal of ``P^T P``, ``sum_i p_ik^2``, float64."""
        weights = self._weights(offset, scale)
        result = torch.zeros_like(offset)
        for _, values in self._chunks(self._budget()):
            total = values @ weights
            result += ((1 / total) ** 2 @ values.square()).double()
        return result * weights.double().square()

    def slope(self, offset: Tensor, scale: float = 1.0) -> SlopeMoments:
        """Return the moments of the logits under their softmax, for derivatives with respect to the scale."""
        weights = self._weights(offset, scale)
        covariance = torch.zeros_like(offset)
        mean = torch.zeros((), dtype=torch.float64, device=self.device)
        variance = torch.zeros_like(mean)
        for rows, values in self._chunks(self._budget()):
            share = values * weights
            share /= share.sum(1, keepdim=True)
            logits = self._read(rows)
            # Moments about the largest logit of the row, so that float32 does not cancel.
            top = logits.amax(1, keepdim=True)
            centred = logits - top
            first = (share * centred).sum(1, keepdim=True)
            centred -= first
            mean += (first.double() + top.double()).sum()
            weighted = share * centred
            covariance += weighted.sum(0).double()
            variance += (weighted * centred).sum().double()
        return SlopeMoments(float(mean), covariance, float(variance))

    def _budget(self) -> int:
        return _CUDA_BUDGET if self.device.type == "cuda" else _CPU_BUDGET * torch.get_num_threads()

    def _read(self, rows: slice) -> Tensor:
        """Return rows of the logits as float32 or float64, on the device that computes."""
        chunk = self._source[rows]
        if not isinstance(chunk, Tensor):
            wide = np.dtype(self._source.dtype).itemsize > 4
            chunk = torch.from_numpy(np.array(chunk, dtype=np.float64 if wide else np.float32))
        if chunk.device.type not in ("cpu", "cuda"):
            chunk = chunk.cpu()  # the sums need float64, which other devices may lack
        return chunk if chunk.dtype == torch.float64 else chunk.float()

    def _first_pass(self, index: Tensor | None) -> None:
        """Check the values, sum the labels' logits and keep exponentials if there is room."""
        self.count += 1
        for rows in row_chunks(self.num_rows, self.num_classes, self._budget()):
            chunk = self._read(rows)
            if not bool(torch.isfinite(chunk.sum())):
                _refuse_not_finite(chunk, rows.start)
            if index is not None:
                self.label_sum += float(chunk.gather(1, index[rows, None]).double().sum())
            if self._kept is not None:
                self._tops[rows] = _exponentials(chunk, self._kept[rows])

    def _weights(self, offset: Tensor, scale: float) -> Tensor:
        """Choose where the exponentials are taken and return what they must be multiplied by, ``(C,)``."""
        moved = float((offset - self._offset).abs().max())
        if self._kept is None or scale != self._scale or moved > _REUSE_RANGE:
            self._offset, self._scale = offset, scale
            if self._kept is not None:
                for rows in row_chunks(self.num_rows, self.num_classes, self._budget()):
                    self._tops[rows] = self._exponentiate(rows, self._kept[rows])
        return (offset - self._offset).exp().to(self.dtype)

    def _exponentiate(self, rows: slice, out: Tensor) -> Tensor:
        torch.add(self._offset.to(self.dtype), self._read(rows), alpha=self._scale, out=out)
        return _exponentials(out, out)

    def _chunks(self, budget: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their ``exp(scale f + offset - top)``; ``_tops`` then holds the rows' tops."""
        self.count += 1
        slices = row_chunks(self.num_rows, self.num_classes, budget)
        buffer = None
        if self._kept is None:
            buffer = torch.empty(slices[0].stop, self.num_classes, dtype=self.dtype, device=self.device)
        for rows in slices:
            if buffer is None:
                assert self._kept is not None
                yield rows, self._kept[rows]
            else:
                out = buffer[: rows.stop - rows.start]
                self._tops[rows] = self._exponentiate(rows, out)
                yield rows, out


def _refuse_not_finite(chunk: Tensor, start: int) -> None:
    """Name the first value that is not finite; a sum alone may overflow although there is none."""
    bad = torch.nonzero(~torch.isfinite(chunk))
    if len(bad):
        row, column = bad[0].tolist()
        raise InputError(f"logits hold {float(chunk[row, column])} for sample {start + row}, class {column}")


def _exponentials(values: Tensor, out: Tensor) -> Tensor:
    """Write ``exp(values - top)`` to ``out`` and return the rows' tops, their largest values."""
    top = values.amax(1)
    torch.sub(values, top[:, None], out=out).clamp_(min=_LOWEST_EXPONENT).exp_()
    return top


def _two_dimensional(logits: ArrayLike) -> Any:
    """Return logits as something with a shape ``(N, C)`` that is sliced by rows, without reading it."""
    if not hasattr(logits, "shape"):
        logits = as_tensor(logits, "logits")
    shape = tuple(logits.shape)
    if len(shape) < 1 or shape[-1] < 2:
        raise InputError(f"logits has shape {shape}", fix="expected (..., C) with at least 2 classes")
    dtype = logits.dtype
    floating = dtype.is_floating_point if isinstance(dtype, torch.dtype) else np.dtype(dtype).kind == "f"
    if not floating:
        raise InputError(f"logits has dtype {dtype}", fix="expected floating point")
    if isinstance(logits, Tensor):
        logits = as_tensor(logits, "logits").detach()
    elif (
        isinstance(logits, np.ndarray) and logits.flags.writeable and logits.dtype in (np.float32, np.float64)
    ):
        logits = as_tensor(logits, "logits")
    if len(shape) == 2:
        return logits
    if not hasattr(logits, "reshape"):
        raise InputError(
            f"logits has shape {shape}", fix="expected (N, C) of an array that is read from a file"
        )
    return logits.reshape(math.prod(shape[:-1]), shape[-1])
