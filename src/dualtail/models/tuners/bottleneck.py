"""The bottleneck that AdaptFormer and Adapter share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """``Up(ReLU(Down(LN(x))))``, zero at the start because ``Up`` is.

    Args:
        width: D of the input ``(..., D)`` and output.
        bottleneck: width between ``Down`` and ``Up``.

    Example:
        >>> import torch
        >>> Bottleneck(8, 2)(torch.ones(1, 8)).abs().sum()
        tensor(0., grad_fn=<SumBackward0>)
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the bottleneck adds, shaped as ``x``."""
        return self.up(F.relu(self.down(self.norm(x))))
