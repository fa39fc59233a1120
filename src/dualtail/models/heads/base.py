"""What every head is.

Every head computes in float32, also under autocast: at scale 25 bfloat16 would round logits to a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dualtail.errors import InputError
from dualtail.models.backbone import Backbone
from dualtail.models.parts import require_name


class Head(nn.Module):
    """Maps features ``(..., D)`` to logits ``(..., C)``.

    Attributes:
        name: its key in ``HEADS``, which messages and saved configurations call it by; every class needs one.
        reads_text: whether it asks the backbone's text tower for its weights at every forward.
        options: what it was made with, JSON-able, for the saved configuration.
        feature_dim: D.
        num_classes: C.
    """

    name: ClassVar[str]
    reads_text: ClassVar[bool] = False

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        require_name(type(self))
        self.options: dict[str, Any] = {}
        self.feature_dim, self.num_classes = feature_dim, num_classes

    def bind(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        """Get to know the backbone and classes; heads with weights of their own need neither."""

    def set_weight(self, weight: Tensor) -> None:
        """Start from ``weight (C, D)``: text features, class means, a linear probe.

        Raises:
            InputError: another shape, or a head without such weights.
        """
        raise InputError(f"the head {self.name!r} has no weights to set", fix="leave its initialisation out")

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(..., C)`` float32."""
        with torch.autocast(features.device.type, enabled=False):
            return self.score(features.float())

    def score(self, features: Tensor) -> Tensor:
        """Return logits of float32 features."""
        raise NotImplementedError
