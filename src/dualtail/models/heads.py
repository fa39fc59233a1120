"""Classifier heads on the feature before the projection, and where their first weights come from.

Every head computes in float32, also under autocast: at scale 25 bfloat16 would round logits to a tenth.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.errors import BackboneError, InputError, nearest
from dualtail.models._parts import check_options, seeded
from dualtail.models.backbone import Backbone


class Head(nn.Module):
    """Maps features ``(..., D)`` to logits ``(..., C)`` with one weight row a class.

    Attributes:
        name: its key in ``HEADS``.
        options: what it was made with, JSON-able, for the saved configuration.
        feature_dim: D.
        weight: ``(C, D)``, random unit rows until ``set_weight``.
    """

    name: ClassVar[str]

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.options: dict[str, Any] = {}
        self.feature_dim = feature_dim
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, feature_dim), dim=-1))

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.weight)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Start from ``weight (C, D)``: text features, class means, a linear probe.

        Raises:
            InputError: another shape.
        """
        if weight.shape != self.weight.shape:
            raise InputError(
                f"head weights have shape {tuple(weight.shape)}", fix=f"expected {tuple(self.weight.shape)}"
            )
        self.weight.copy_(weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(..., C)`` float32."""
        with torch.autocast(features.device.type, enabled=False):
            return self.score(features.float())

    def score(self, features: Tensor) -> Tensor:
        """Return logits of float32 features."""
        raise NotImplementedError


class LinearHead(Head):
    """``z @ weight.T + bias``."""

    name = "linear"

    def __init__(self, feature_dim: int, num_classes: int, *, bias: bool = True) -> None:
        super().__init__(feature_dim, num_classes)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None

    def score(self, features: Tensor) -> Tensor:
        """Return the affine scores."""
        return F.linear(features, self.weight, self.bias)


class CosineHead(Head):
    """``scale * <w / |w|, z / |z|>``: the head of LIFT (arXiv 2309.10019), scale 25.

    Example:
        >>> head = CosineHead(4, 3)
        >>> logits = head(100 * torch.ones(2, 4))
        >>> logits.shape, bool((logits.abs() <= 25).all())
        (torch.Size([2, 3]), True)
    """

    name = "cosine"

    def __init__(self, feature_dim: int, num_classes: int, *, scale: float = 25.0) -> None:
        super().__init__(feature_dim, num_classes)
        self.scale = float(scale)

    def score(self, features: Tensor) -> Tensor:
        """Return the scaled cosines."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


HEADS: dict[str, type[Head]] = {head.name: head for head in (CosineHead, LinearHead)}


def build_head(name: str, feature_dim: int, num_classes: int, *, seed: int = 0, **options: Any) -> Head:
    """Return a head by its registered name.

    Args:
        name: a key of ``HEADS``.
        feature_dim: D.
        num_classes: C.
        seed: of its random weights.
        **options: the head's own (``scale``, ``bias``).

    Raises:
        InputError: unknown name or option; the nearest known one is named.

    Example:
        >>> build_head("cosine", 8, 3).weight.shape
        torch.Size([3, 8])
    """
    if name not in HEADS:
        guess = nearest(name, list(HEADS))
        raise InputError(
            f"unknown head {name!r}",
            fix=f"did you mean {guess!r}?" if guess else f"choose from {', '.join(HEADS)}",
        )
    check_options(f"head {name!r}", HEADS[name], options)
    with seeded(seed):
        head = HEADS[name](feature_dim, num_classes, **options)
    head.options = {**options, "seed": seed}
    return head


def text_weight(backbone: Backbone, text_features: Tensor) -> Tensor:
    """Return head weights from class text features: ``normalise(t @ proj.T)``, ``(C, D)``.

    The projection maps features to the joint space; its transpose maps text back to where the head reads. Source:
    Shi et al., LIFT, 2024 (arXiv 2309.10019).

    Args:
        backbone: whose projection is linear.
        text_features: ``(C, E)``, normalised.

    Raises:
        BackboneError: the projection is not linear, or the backbone has no text tower.
    """
    if not backbone.has_text:
        raise BackboneError(
            "has no text tower to initialise the head from",
            where=backbone.name,
            fix="initialise the head with class_mean",
        )
    projection: Any = backbone.projection
    return F.normalize(projection.back(text_features.float()), dim=-1)


def class_mean_weight(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return head weights from training features: each class's mean of unit features, normalised, ``(C, D)``.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)`` int64; every class occurs.
        num_classes: C.

    Raises:
        InputError: a class has no sample.

    Example:
        >>> class_mean_weight(torch.eye(2), torch.tensor([0, 1]), 2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if bool((counts == 0).any()):
        raise InputError(f"class {int((counts == 0).nonzero()[0])} has no sample to take a mean of")
    unit = F.normalize(features.float(), dim=-1)
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, labels.to(unit.device), unit)
    return F.normalize(sums / counts.to(unit)[:, None], dim=-1)
