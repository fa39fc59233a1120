"""Visual prompt tuning: learnt tokens beside the image's."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dualtail.errors import InputError
from dualtail.models.tuners.base import Site, Tuner

Tokens = Annotated[int, Field(gt=0, le=1000)]


class Prompt(nn.Module):
    """Learnt tokens that are appended before a block and dropped after one.

    Args:
        tokens: how many.
        width: D.
        bound: they start uniform in ``[-bound, bound]``.
    """

    def __init__(self, tokens: int, width: int, bound: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, width).uniform_(-bound, bound))

    def append(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook before a block: append the tokens to its input ``(B, T, D)``."""
        x, *rest = args
        return (torch.cat([x, self.tokens.to(x.dtype).expand(len(x), -1, -1)], dim=1), *rest)

    def drop(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook after a block: drop as many tokens from the end."""
        return output[:, : -len(self.tokens)]


def _bound(site: Site) -> float:
    """Return the paper's Xavier bound, as if the prompt were a patch: ``sqrt(6 / (3 p ** 2 + D))``."""
    patches = [module for module in site.backbone.visual.modules() if isinstance(module, nn.Conv2d)]
    patch_inputs = patches[0].weight[0].numel() if patches else 3 * 16**2
    return math.sqrt(6 / (patch_inputs + site.blocks[0].width))


def _check(site: Site, tokens: int) -> None:
    if tokens < 1:
        raise InputError(f"tokens is {tokens}", fix="give at least one prompt token")
    indices = [block.index for block in site.blocks]
    if indices != list(range(indices[0], indices[0] + len(indices))):
        raise InputError(f"blocks {indices} have gaps", fix="prompts go through consecutive blocks")


class VptShallow(Tuner):
    """Learnt tokens are appended before the first chosen block and go with the image's through all others.

    They are dropped after the last chosen block, so any pooling sees the image's tokens only.

    Args:
        site: where it goes; consecutive blocks.
        tokens: how many.

    Source:
        Jia et al., Visual prompt tuning, ECCV 2022 (arXiv 2203.12119).
    """

    name = "vpt_shallow"
    families = frozenset({"open_clip_vit", "timm_vit"})
    neutral = False

    def __init__(self, site: Site, *, tokens: Tokens = 10) -> None:
        super().__init__(site)
        _check(site, tokens)
        first, last = site.blocks[0], site.blocks[-1]
        self.prompt = Prompt(tokens, first.width, _bound(site))
        self.on_detach(first.module.register_forward_pre_hook(self.prompt.append))
        self.on_detach(last.module.register_forward_hook(self.prompt.drop))


class VptDeep(Tuner):
    """Every chosen block gets learnt tokens of its own; what it made of them is dropped after it.

    Args:
        site: where it goes; consecutive blocks.
        tokens: how many a block.

    Source:
        Jia et al., Visual prompt tuning, ECCV 2022 (arXiv 2203.12119).
    """

    name = "vpt_deep"
    families = frozenset({"open_clip_vit", "timm_vit"})
    neutral = False

    def __init__(self, site: Site, *, tokens: Tokens = 10) -> None:
        super().__init__(site)
        _check(site, tokens)
        bound = _bound(site)
        self.blocks = nn.ModuleDict()
        for block in site.blocks:
            prompt = Prompt(tokens, block.width, bound)
            self.blocks[str(block.index)] = prompt
            self.on_detach(block.module.register_forward_pre_hook(prompt.append))
            self.on_detach(block.module.register_forward_hook(prompt.drop))
