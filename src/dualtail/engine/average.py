"""Exponential moving average of the trained tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    r"""Keep :math:`a \leftarrow d_t a + (1 - d_t) w` with :math:`d_t = \min(d, (1 + t) / (10 + t))`.

    The decay warms up with the number of updates ``t``, so that a short run does not average mostly over its start.

    Args:
        weights: the trained tensors by name; only these are averaged, so it costs as much as they weigh.
        decay: ``d``.

    Source:
        Polyak and Juditsky, 1992; the warm-up is TensorFlow's ``ExponentialMovingAverage(num_updates=...)``.

    Example:
        >>> w = {"w": torch.zeros(1)}
        >>> average = WeightAverage(w, decay=0.5)
        >>> _ = w["w"].fill_(1.0)
        >>> average.update()
        >>> average.state["w"]
        tensor([0.8182])
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self._weights = weights
        self.decay = decay
        self.updates = 0
        self.state = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of now into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.state.values()), list(self._weights.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the weights' place while inside."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average."""
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.state[name])
            self.state[name].copy_(kept)
