"""A foundation model as it is: features, and logits where class prompts give them."""

from __future__ import annotations

from torch import Tensor, nn

from dualtail.models.backbone import Backbone
from dualtail.models.text import zero_shot_logits


class ZeroShotClassifier(nn.Module):
    """A frozen backbone and the text features of the classes.

    Args:
        backbone: the foundation model.
        text_features: ``(C, E)``, normalised, as of ``class_text_features``; None for a backbone without text tower,
            which gives features only.

    Example:
        >>> import torch
        >>> from dualtail.models.backbone import load_backbone
        >>> model = ZeroShotClassifier(load_backbone("timm:test_vit", weights="random"), None)
        >>> model.features(torch.zeros(1, 3, 160, 160, dtype=torch.uint8)).shape
        torch.Size([1, 64])
    """

    def __init__(self, backbone: Backbone, text_features: Tensor | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("text_features", text_features)

    def features(self, images: Tensor) -> Tensor:
        """Return features ``(B, D)`` float32."""
        return self.backbone.features(images)

    def head(self, features: Tensor) -> Tensor:
        """Return zero-shot logits ``(B, C)`` float32 of features, or none (``C = 0``) without a text tower."""
        if self.text_features is None:
            return features.new_empty(len(features), 0)
        return zero_shot_logits(self.backbone, features, self.text_features)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Return zero-shot logits ``(B, C)`` float32."""
        return self.head(self.features(images))
