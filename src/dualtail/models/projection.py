"""The map from a tower's pooled feature to the joint image-text space, kept apart from the tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.errors import BackboneError


class Projection(nn.Module):
    """Linear map ``z @ weight + bias`` from features ``(B, D)`` to embeddings ``(B, E)``.

    Args:
        weight: ``(D, E)``, or None for towers whose feature already lies in the joint space.
        bias: ``(E,)`` or None.

    Example:
        >>> projection = Projection(torch.eye(3, 2))
        >>> projection(torch.ones(1, 3)).shape, projection.back(torch.ones(1, 2)).shape
        (torch.Size([1, 2]), torch.Size([1, 3]))
    """

    def __init__(self, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Project ``(..., D)`` to ``(..., E)``."""
        if self.weight is None:
            return features
        return F.linear(features, self.weight.T, self.bias)

    def back(self, embeddings: Tensor) -> Tensor:
        """Map embeddings ``(..., E)`` back to feature space: ``t @ weight.T``, LIFT's text initialisation."""
        return embeddings if self.weight is None else embeddings @ self.weight.T


class ModuleProjection(nn.Module):
    """A projection that is not linear (an MLP): features go through it, nothing comes back."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Tensor) -> Tensor:
        """Project ``(..., D)`` to ``(..., E)``."""
        return self.module(features)

    def back(self, embeddings: Tensor) -> Tensor:
        """Refuse: there is no map from the joint space back to the features."""
        raise BackboneError(
            "this backbone's projection is not linear, so text features give no head weights",
            fix="initialise the head with class_mean",
        )


def linear_projection(layer: nn.Module) -> Projection | ModuleProjection:
    """Return a projection that does what ``layer`` does (``nn.Linear``, ``nn.Identity`` or any other module)."""
    if isinstance(layer, nn.Linear):
        return Projection(layer.weight.T, layer.bias)
    if isinstance(layer, nn.Identity):
        return Projection()
    return ModuleProjection(layer)


class AttentionPoolFeature(nn.Module):
    """CLIP ResNets' attention pooling up to, but without, its output projection ``c_proj``.

    The query is the mean of the feature map; keys and values are that mean and every position. Source: Radford
    et al., 2021 (arXiv 2103.00020).

    Args:
        pool: open_clip's ``AttentionPool2d``; its parameters are shared, its ``c_proj`` is left out.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.num_heads = int(pool.num_heads)
        self.positional_embedding = pool.positional_embedding
        self.q_proj, self.k_proj, self.v_proj = pool.q_proj, pool.k_proj, pool.v_proj

    def forward(self, feature_map: Tensor) -> Tensor:
        """Pool ``(B, D, H, W)`` to ``(B, D)``."""
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1)
