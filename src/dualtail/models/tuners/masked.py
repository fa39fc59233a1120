"""Arbitrary (masked) fine-tuning: a small random part of every weight matrix."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.errors import InputError
from dualtail.models.tuners.attention import open_attention
from dualtail.models.tuners.base import Site, Tuner


class MaskedLinear(nn.Module):
    """A frozen linear layer with some entries of its weight matrix trained.

    Args:
        linear: the frozen layer.
        index: ``(n,)`` int64, positions in its flattened weights.
    """

    index: Tensor

    def __init__(self, linear: nn.Linear, index: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("index", index.to(linear.weight.device), persistent=False)
        self.values = nn.Parameter(linear.weight.detach().flatten()[self.index])

    @property
    def weight(self) -> Tensor:
        """The frozen weights, whose dtype some towers ask for."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the affine map with the trained entries in place."""
        frozen = self.linear.weight
        weight = frozen.flatten().index_copy(0, self.index, self.values.to(frozen.dtype)).view_as(frozen)
        return F.linear(x, weight, self.linear.bias)


class Masked(Tuner):
    """Trains a random fraction of the entries of every weight matrix of the chosen blocks, and nothing else.

    Weight decay pulls the trained entries towards zero, as in full fine-tuning; the others do not move. Which entries
    they are follows from the seed and is saved with them.

    Args:
        site: where it goes.
        ratio: fraction of each matrix, above 0 and at most 1.

    Source:
        Shi et al., LIFT, ICML 2024 (arXiv 2309.10019), "arbitrary lightweight fine-tuning".
    """

    name = "masked"

    def __init__(self, site: Site, *, ratio: Annotated[float, Field(gt=0, le=1)] = 0.01) -> None:
        super().__init__(site)
        if not 0 < ratio <= 1:
            raise InputError(f"ratio is {ratio}", fix="give a fraction above 0 and at most 1")
        generator = torch.Generator().manual_seed(site.seed)
        self._layers: dict[str, MaskedLinear] = {}
        for block in site.blocks:
            open_attention(self, site, block)
            for path, linear in list(block.module.named_modules()):
                if isinstance(linear, nn.Linear):
                    entries = linear.weight.numel()
                    chosen = torch.randperm(entries, generator=generator)[: max(1, round(ratio * entries))]
                    masked = MaskedLinear(linear, chosen.sort().values)
                    owner_path, _, name = path.rpartition(".")
                    self.replace(block.module.get_submodule(owner_path), name, masked)
                    self._layers[f"blocks.{block.index}.{path}"] = masked

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained entries, which live in the blocks, as ``blocks.INDEX.LAYER.values``."""
        return {f"{path}.values": layer.values for path, layer in self._layers.items()}

    def extra_state(self) -> dict[str, Tensor]:
        """Return where the trained entries are."""
        return {f"{path}.index": layer.index for path, layer in self._layers.items()}
