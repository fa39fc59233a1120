"""Heads with one weight row a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.errors import InputError
from dualtail.models.heads.base import Head
from dualtail.schema import PositiveFloat


class WeightHead(Head):
    """A head with one weight row a class.

    Attributes:
        weight: ``(C, D)``, random unit rows until ``set_weight``.
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes)
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, feature_dim), dim=-1))

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Start from ``weight (C, D)``, refusing another shape."""
        if weight.shape != self.weight.shape:
            raise InputError(
                f"head weights have shape {tuple(weight.shape)}", fix=f"expected {tuple(self.weight.shape)}"
            )
        self.weight.copy_(weight)


class LinearHead(WeightHead):
    """``z @ weight.T + bias``.

    Args:
        feature_dim: D.
        num_classes: C.
        bias: whether to learn one.
    """

    name = "linear"

    def __init__(self, feature_dim: int, num_classes: int, *, bias: bool = True) -> None:
        super().__init__(feature_dim, num_classes)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None

    def score(self, features: Tensor) -> Tensor:
        """Return ``z @ weight.T + bias``, ``(..., C)``."""
        return F.linear(features, self.weight, self.bias)


class CosineHead(WeightHead):
    """``scale * <w / |w|, z / |z|>``: the head of LIFT (arXiv 2309.10019), scale 25, no bias.

    Args:
        feature_dim: D.
        num_classes: C.
        scale: of the cosine.

    Example:
        >>> head = CosineHead(4, 3)
        >>> logits = head(100 * torch.ones(2, 4))
        >>> logits.shape, bool((logits.abs() <= 25).all())
        (torch.Size([2, 3]), True)
    """

    name = "cosine"

    def __init__(self, feature_dim: int, num_classes: int, *, scale: PositiveFloat = 25.0) -> None:
        super().__init__(feature_dim, num_classes)
        self.scale = float(scale)

    def score(self, features: Tensor) -> Tensor:
        """Return ``scale * <w / |w|, z / |z|>``, ``(..., C)``."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class L2NormedHead(WeightHead):
    """``<w / |w|, z>``: no class can win by the length of its weights, no bias.

    Args:
        feature_dim: D.
        num_classes: C.
    """

    name = "l2_normed"

    def score(self, features: Tensor) -> Tensor:
        """Return ``<w / |w|, z>``, ``(..., C)``."""
        return F.linear(features, F.normalize(self.weight, dim=-1))


class LayerNormedHead(WeightHead):
    """``<w / |w|, LN(z)>`` with LN without learnt parameters, no bias.

    Args:
        feature_dim: D.
        num_classes: C.
    """

    name = "layer_normed"

    def score(self, features: Tensor) -> Tensor:
        """Return ``<w / |w|, LN(z)>``, ``(..., C)``."""
        return F.linear(
            F.layer_norm(features, (self.feature_dim,), eps=1e-12), F.normalize(self.weight, dim=-1)
        )
