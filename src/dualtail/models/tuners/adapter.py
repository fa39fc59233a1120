"""Adapter: a bottleneck after the MLP of every block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dualtail.models.tuners.base import Site, Tuner
from dualtail.models.tuners.bottleneck import Bottleneck
from dualtail.schema import Size


class SerialBottleneck(Bottleneck):
    """``y + Up(ReLU(Down(LN(y))))`` of a module's output ``y``."""

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook on the MLP: add the bottleneck of its output."""
        return output + self(output)


class Adapter(Tuner):
    """``x + A(MLP(LN2(x)))`` with ``A(y) = y + Up(ReLU(Down(LN(y))))`` in every chosen block.

    ``Up`` starts at zero, so the first forward is the frozen backbone's.

    Args:
        site: where it goes.
        width: bottleneck; None for LIFT's ``2 ** max(0, floor(log2(C / (2 * blocks))))``.

    Source:
        Houlsby et al., Parameter-efficient transfer learning for NLP, ICML 2019 (arXiv 1902.00751), in the form of
        Pfeiffer et al., 2020 (arXiv 2005.00052): one adapter a block, after the MLP.
    """

    name = "adapter"

    def __init__(self, site: Site, *, width: Size | None = None) -> None:
        super().__init__(site)
        bottleneck = site.bottleneck(width)
        self.blocks = nn.ModuleDict()
        for block in site.blocks:
            adapter = SerialBottleneck(block.width, bottleneck)
            self.blocks[str(block.index)] = adapter
            self.on_detach(block.mlp.register_forward_hook(adapter.add))
