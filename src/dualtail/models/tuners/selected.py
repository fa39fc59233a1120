"""Tuners that train parts of the backbone itself: biases, norms, the last blocks."""

from __future__ import annotations

from torch import nn

from dualtail.errors import InputError
from dualtail.models.blocks import Block
from dualtail.models.tuners.base import BackboneTuner, Site
from dualtail.schema import PositiveInt


class BitFit(BackboneTuner):
    """Trains every bias of the chosen blocks.

    Args:
        site: where it goes.

    Source:
        Ben Zaken et al., BitFit, ACL 2022 (arXiv 2106.10199).
    """

    name = "bitfit"

    def __init__(self, site: Site) -> None:
        chosen = {name: value for name, value in site.block_parameters().items() if name.endswith("bias")}
        super().__init__(site, chosen)


class LayerNormTuning(BackboneTuner):
    """Trains the weights and biases of the chosen blocks' normalisation layers.

    Args:
        site: where it goes.

    Source:
        Basu et al., Strong baselines for parameter-efficient few-shot fine-tuning, AAAI 2024 (arXiv 2304.01917).
    """

    name = "layer_norm"

    def __init__(self, site: Site) -> None:
        chosen = {
            f"blocks.{block.index}.{path}.{name}": value
            for block in site.blocks
            for path, module in block.module.named_modules()
            if _is_norm(module)
            for name, value in module.named_parameters(recurse=False)
        }
        super().__init__(site, chosen)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.startswith(
        ("LayerNorm", "RmsNorm", "RMSNorm")
    )


class Partial(BackboneTuner):
    """Trains the last blocks fully.

    Args:
        site: where it goes.
        last: how many of the chosen blocks, counted from the end.
    """

    name = "partial"

    def __init__(self, site: Site, *, last: PositiveInt = 1) -> None:
        if not 1 <= last <= len(site.blocks):
            raise InputError(f"last is {last}", fix=f"choose from 1 to {len(site.blocks)} blocks")
        chosen: tuple[Block, ...] = site.blocks[-last:]
        names = tuple(f"blocks.{block.index}." for block in chosen)
        super().__init__(
            site, {name: value for name, value in site.block_parameters().items() if name.startswith(names)}
        )
