"""QuickGELU that keeps one tensor for the backward pass instead of two."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE = 1.702


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, computed as ``silu(1.702 x) / 1.702``.

    The libraries' own form keeps both ``x`` and its sigmoid for the backward pass, this one a single tensor.

    Example:
        >>> import torch
        >>> x = torch.linspace(-4, 4, 9)
        >>> torch.allclose(QuickGELU()(x), x * torch.sigmoid(1.702 * x))
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation, shaped as ``x``."""
        return F.silu(_SLOPE * x) / _SLOPE


def replace_quick_gelu(tower: nn.Module) -> None:
    """Put this QuickGELU in the place of open_clip's and timm's throughout ``tower``."""
    for module in tower.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "QuickGELU":
                setattr(module, name, QuickGELU())
