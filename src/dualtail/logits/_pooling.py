"""How members are read and averaged: chunks of rows of every member, and what each rule does to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualtail.errors import InputError, check_choice
from dualtail.logits._arrays import ArrayLike, as_float, as_logits, as_tensor, check_finite, row_chunks
from dualtail.logits.prior import LabelPrior, as_log_prior

# Entries of a chunk. The chunks of all members and their partial sums stay in cache, and torch runs operations of
# fewer than 2^15 entries on one thread: waiting for the others at each of so many would cost more than it gains.
CHUNK_ENTRIES = (1 << 15) - 1


class Rule(NamedTuple):
    """A way to average members: ``finish(add(add(term_0, term_1), term_2), total weight)``.

    Sums over subsets share their partial sums through ``add``, which must not change its arguments.
    """

    term: Callable[[Tensor, float], Any]
    add: Callable[[Any, Any], Any]
    finish: Callable[[Any, float], Tensor]


def _weighted(scores: Tensor, weight: float) -> Tensor:
    return scores if weight == 1 else scores * weight


def _divide(total: Tensor, weight: float) -> Tensor:
    return total if weight == 1 else total / weight


def _median(terms: list[tuple[Tensor, float]], total: float) -> Tensor:
    """Return the elementwise weighted median; halfway between two where the weights split evenly."""
    if len({weight for _, weight in terms}) == 1:
        ranked = _sorted([scores for scores, _ in terms])
        return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2
    # The least value with at least half of the weight at or below it, and the least with more than half.
    half, slack = total / 2, total * 1e-6
    low = high = torch.stack([scores for scores, _ in terms]).amax(0)
    for scores, _ in terms:
        below = torch.zeros_like(scores)
        for other, weight in terms:
            below.add_(other <= scores, alpha=weight)
        low = torch.minimum(low, scores.masked_fill(below < half - slack, math.inf))
        high = torch.minimum(high, scores.masked_fill(below <= half + slack, math.inf))
    return (low + high) / 2


def _sorted(values: list[Tensor]) -> list[Tensor]:
    """Sort elementwise over the list by insertion; for few tensors far faster than sorting a stack of them."""
    ranked: list[Tensor] = []
    for value in values:
        for i, other in enumerate(ranked):
            ranked[i], value = torch.minimum(other, value), torch.maximum(other, value)
        ranked.append(value)
    return ranked


_RULES: dict[str, Rule] = {
    "logits": Rule(_weighted, torch.add, _divide),
    "log_probabilities": Rule(lambda z, w: _weighted(z.log_softmax(-1), w), torch.add, _divide),
    "probabilities": Rule(
        lambda z, w: z.log_softmax(-1) + math.log(w),
        torch.logaddexp,
        lambda acc, total: acc - math.log(total),
    ),
    "median": Rule(lambda z, w: [(z.log_softmax(-1), w)], lambda acc, term: acc + term, _median),
}

RULES = tuple(_RULES)


def get_rule(name: str) -> Rule:
    """Return the rule called ``name``, or refuse it naming the nearest."""
    check_choice("rule", name, RULES)
    return _RULES[name]


class Members:
    """Member logits of one shape, read by chunks of rows as each is needed.

    A member may be a tensor, a numpy array or a memory map; only the rows of a chunk are converted (half
    precision is widened to float32). A chunk holds what is averaged: ``(f_c + f_zs,c - log P_P,c - log P_S) /
    T_c``, where the terms that were not given are left out.
    """

    def __init__(
        self,
        members: Sequence[ArrayLike] | ArrayLike,
        temperatures: ArrayLike | None = None,
        zero_shot_logits: Sequence[ArrayLike | None] | None = None,
        pretrain_priors: Sequence[LabelPrior | ArrayLike | None] | None = None,
        source_prior: LabelPrior | ArrayLike | None = None,
    ) -> None:
        self.given = _as_sequence(members, "members")
        self.shape = _shape(self.given[0], "members[0]")
        self._rows = [self._flat(value, f"members[{i}]") for i, value in enumerate(self.given)]
        self.temperatures = as_temperatures(temperatures, len(self))
        self.device = self.given[0].device if isinstance(self.given[0], Tensor) else torch.device("cpu")
        zero_shot = _per_member(zero_shot_logits, len(self), "zero_shot_logits")
        priors = _per_member(pretrain_priors, len(self), "pretrain_priors")
        self._zero_shot = [
            None if value is None else self._flat(value, f"zero_shot_logits[{i}]")
            for i, value in enumerate(zero_shot)
        ]
        self._offsets = self._prior_offsets(zero_shot, priors, source_prior)
        doubles = [
            str(array.dtype).endswith("float64")
            for array in (*self._rows, *self._zero_shot)
            if array is not None
        ]
        self.dtype = torch.float64 if any(doubles) else torch.float32

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def num_classes(self) -> int:
        return self.shape[-1]

    def chunks(self) -> list[slice]:
        """Return slices of rows that are good to work on."""
        return row_chunks(self.num_rows, self.num_classes, CHUNK_ENTRIES)

    def read(self, rows: slice) -> list[Tensor]:
        """Return a ``(rows, C)`` tensor for each member."""
        return [self.read_member(i, rows) for i in range(len(self))]

    def read_member(self, index: int, rows: slice) -> Tensor:
        """Return ``(rows, C)`` of one member, adjusted and divided by its temperature."""
        scores = self._read(self._rows[index], rows, f"members[{index}]")
        zero_shot = self._zero_shot[index]
        if zero_shot is not None:
            scores = scores + self._read(zero_shot, rows, f"zero_shot_logits[{index}]")
        offset = self._offsets[index]
        if offset is not None:
            scores = scores - offset.to(scores)
        temperature = float(self.temperatures[index])
        return scores if temperature == 1 else scores / temperature

    def _read(self, array: ArrayLike, rows: slice, name: str) -> Tensor:
        chunk = as_float(array[rows], name).to(self.device, self.dtype)
        if chunk.numel() and not bool(torch.isfinite(chunk.sum())):
            check_finite(as_float(array, name), name)  # names the row in the whole member
        return chunk

    def _flat(self, value: ArrayLike, name: str) -> ArrayLike:
        """Return ``(N, C)`` without reading it, after checking kind and shape."""
        if not isinstance(value, np.ndarray):
            value = as_tensor(value, name)
        if _shape(value, name) != self.shape:
            raise InputError(
                f"shape {_shape(value, name)}", where=name, fix=f"expected {self.shape}, as of members[0]"
            )
        flat = value.reshape(-1, self.num_classes)
        as_logits(flat[:0], name, finite=False)
        return flat

    def _prior_offsets(
        self,
        zero_shot: list[ArrayLike | None],
        priors: list[LabelPrior | ArrayLike | None],
        source_prior: LabelPrior | ArrayLike | None,
    ) -> list[Tensor | None]:
        """Return for each member the log priors that are taken off it."""
        source = (
            None if source_prior is None else as_log_prior(source_prior, self.num_classes, "source_prior")
        )
        offsets = []
        for i, (logits, prior) in enumerate(zip(zero_shot, priors, strict=True)):
            if (logits is None) != (prior is None):
                here, missing = ("pretrain_priors", "zero_shot_logits")[:: 1 if logits is None else -1]
                raise InputError(
                    f"{here}[{i}] has no {missing}[{i}]",
                    fix="a member's zero-shot term is f_zs - log P_P: pass both or neither",
                )
            parts = [source] if source is not None else []
            if prior is not None:
                parts.append(as_log_prior(prior, self.num_classes, f"pretrain_priors[{i}]"))
            offsets.append(sum(parts[1:], parts[0]) if parts else None)
        return offsets


def as_weights(weights: ArrayLike | None, num_members: int) -> list[float]:
    """Return P(c) as numbers; all 1 for the uniform distribution, so that sums need no multiplication."""
    if weights is None:
        return [1.0] * num_members
    values = _vector(weights, num_members, "weights")
    if bool((values < 0).any()):
        raise InputError(f"weights holds a negative value at [{int((values < 0).nonzero()[0])}]")
    if abs(float(values.sum()) - 1) > 1e-4:
        raise InputError(f"weights sum to {float(values.sum()):.6g}", fix="P(c) sums to 1: divide by the sum")
    return values.tolist()


def as_temperatures(temperatures: ArrayLike | None, num_members: int) -> Tensor:
    """Return ``(M,)`` positive float64 temperatures, 1 by default."""
    if temperatures is None:
        return torch.ones(num_members, dtype=torch.float64)
    values = _vector(temperatures, num_members, "temperatures")
    if not bool((values > 0).all()):
        raise InputError(f"temperatures holds {float(values.min())}", fix="expected positive numbers")
    return values


def _vector(value: ArrayLike, num_members: int, name: str) -> Tensor:
    tensor = as_float(value, name).detach().double().cpu()
    if tensor.shape != (num_members,):
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}", fix=f"expected ({num_members},), one a member"
        )
    return check_finite(tensor, name)


def _as_sequence(members: Sequence[ArrayLike] | ArrayLike, name: str) -> list[ArrayLike]:
    if isinstance(members, (Tensor, np.ndarray)) and members.ndim < 3:
        raise InputError(
            f"{name} is one array of shape {tuple(members.shape)}", fix="pass a list with one array a member"
        )
    try:
        values = list(members)
    except TypeError:
        raise InputError(f"{name} is {type(members).__name__}", fix="pass a list of arrays") from None
    if not values:
        raise InputError(f"{name} is empty", fix="pass at least one array")
    if not isinstance(values[0], (Tensor, np.ndarray)):
        values[0] = as_tensor(values[0], f"{name}[0]").numpy()
    return values


def _per_member(values: Sequence[Any] | None, num_members: int, name: str) -> list[Any]:
    if values is None:
        return [None] * num_members
    if isinstance(values, LabelPrior) or not hasattr(values, "__len__") or len(values) != num_members:
        raise InputError(
            f"{name} does not hold {num_members} entries", fix="pass a list with one a member (or None)"
        )
    return list(values)


def _shape(value: ArrayLike, name: str) -> tuple[int, ...]:
    shape = tuple(value.shape)
    if not shape or shape[-1] < 2:
        raise InputError(f"{name} has shape {shape}", fix="expected (..., C) with at least 2 classes")
    return shape
