"""AdaptFormer: a bottleneck beside the MLP of every block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dualtail.models.blocks import Block
from dualtail.models.tuners.base import Site, Tuner
from dualtail.models.tuners.bottleneck import Bottleneck
from dualtail.schema import Size


class ParallelBottleneck(Bottleneck):
    """``scale * Up(ReLU(Down(LN(x))))`` of the residual stream, added to its block's output.

    It reads ``x`` where the block's MLP norm does, so it fits any pre-norm block, with or without layer scale.

    Args:
        width: D.
        bottleneck: width between ``Down`` and ``Up``.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__(width, bottleneck)
        self.scale = nn.Parameter(torch.ones(1))
        self._residual: Tensor | None = None

    def forward(self, residual: Tensor) -> Tensor:
        """Return what is added to the residual stream ``(B, T, D)``."""
        branch = super().forward(residual)
        return self.scale.to(branch.dtype) * branch  # a float32 scale would widen the stream under autocast

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook on the MLP norm: note its input."""
        self._residual = args[0]

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook on the block: add the branch."""
        residual, self._residual = self._residual, None
        return output + self(residual)


class AdaptFormer(Tuner):
    """``x + MLP(LN2(x)) + s * Up(ReLU(Down(LN(x))))`` in every chosen block, ``x`` the stream after the attention.

    ``Up`` starts at zero, so the first forward is the frozen backbone's; ``s`` is learnt from 1. With 1,000 classes on
    ViT-B/16 (12 blocks, D = 768): width 32, 617,868 parameters.

    Args:
        site: where it goes.
        width: bottleneck; None for LIFT's ``2 ** max(0, floor(log2(C / (2 * blocks))))``.

    Source:
        Chen et al., AdaptFormer, NeurIPS 2022 (arXiv 2205.13535); Shi et al., LIFT, ICML 2024 (arXiv 2309.10019).
    """

    name = "adaptformer"

    def __init__(self, site: Site, *, width: Size | None = None) -> None:
        super().__init__(site)
        bottleneck = site.bottleneck(width)
        self.blocks = nn.ModuleDict(
            {str(block.index): ParallelBottleneck(block.width, bottleneck) for block in site.blocks}
        )
        for block in site.blocks:
            self._attach(block)

    def _attach(self, block: Block) -> None:
        branch: Any = self.blocks[str(block.index)]
        self.on_detach(block.mlp_norm.register_forward_pre_hook(branch.read))
        self.on_detach(block.module.register_forward_hook(branch.add))
