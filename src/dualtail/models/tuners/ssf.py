"""SSF: scale and shift what every layer of a block puts out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dualtail.models.blocks import Block
from dualtail.models.tuners.attention import input_projections, open_attention
from dualtail.models.tuners.base import Site, Tuner


class ScaleShift(nn.Module):
    """``scale * y + shift`` over the last dimension.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, y: Tensor) -> Tensor:
        """Return ``scale * y + shift``, shaped as ``y``."""
        return self.scale.to(y.dtype) * y + self.shift.to(y.dtype)

    def apply_to(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook on a layer: scale and shift its output."""
        return self(output)


class Ssf(Tuner):
    """``scale * y + shift`` after both norms and every linear layer of a block: attention's projections, the MLP's.

    Scale starts at 1 and shift at 0, so the first forward is the frozen backbone's (the paper draws them around these
    values with standard deviation 0.02).

    Args:
        site: where it goes.

    Source:
        Lian et al., Scaling and shifting your features, NeurIPS 2022 (arXiv 2210.08823).
    """

    name = "ssf"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.blocks = nn.ModuleDict()
        for block in site.blocks:
            self.blocks[str(block.index)] = made = nn.ModuleDict()
            for key, layer in self._layers(site, block).items():
                scale_shift = ScaleShift(_width(layer))
                made[key] = scale_shift
                self.on_detach(layer.register_forward_hook(scale_shift.apply_to))

    def _layers(self, site: Site, block: Block) -> dict[str, nn.Module]:
        attention = open_attention(self, site, block)
        mlp = {name: layer for name, layer in block.mlp.named_modules() if isinstance(layer, nn.Linear)}
        return {
            "attention_norm": block.attention_norm,
            **{f"attention_{key}": layer for key, layer in input_projections(attention).items()},
            "attention_proj": attention.proj,
            "mlp_norm": block.mlp_norm,
            **{f"mlp_{name}": layer for name, layer in mlp.items()},
        }


def _width(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.weight.numel()
