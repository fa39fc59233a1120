"""SSF: scale and shift what every layer of a block puts out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dualtail.models.tuners.attention import input_projections, open_attention, output_projection
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
        return self.scale * y + self.shift

    def apply_to(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook on a layer: scale and shift its output."""
        return self(output)


class Ssf(Tuner):
    """``scale * y + shift`` after both norms, the attention's two projections and the MLP's two layers of a block.

    Scale starts at 1 and shift at 0, so the first forward is the frozen backbone's (the paper draws them around these
    values with standard deviation 0.02).

    Args:
        site: where it goes.

    References:
        Lian et al., Scaling and shifting your features, NeurIPS 2022 (arXiv 2210.08823).
    """

    name = "ssf"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.blocks = nn.ModuleDict()
        for block in site.blocks:
            attention = open_attention(self, site, block)
            first, last = block.mlp_layers(site.backbone.name)
            layers = {
                "attention_norm": block.attention_norm,
                **{f"attention_{key}": layer for key, layer in input_projections(attention).items()},
                "attention_out": output_projection(attention),
                "mlp_norm": block.mlp_norm,
                "mlp_in": first,
                "mlp_out": last,
            }
            self.blocks[str(block.index)] = made = nn.ModuleDict()
            for key, layer in layers.items():
                scale_shift = ScaleShift(_width(layer))
                made[key] = scale_shift
                self.on_detach(layer.register_forward_hook(scale_shift.apply_to))


def _width(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.weight.numel()
