"""Other input sizes than the pre-trained one: position embeddings are resized, everything else stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.errors import BackboneError, first_line
from dualtail.models.parts import Parts
from dualtail.models.projection import AttentionPoolFeature


def resize_input(name: str, parts: Parts, size: int) -> None:
    """Make the vision tower of ``parts`` take ``size`` x ``size`` images, in place.

    Learnt grids are resized bicubically with antialiasing, as open_clip and timm do it.

    Raises:
        BackboneError: the size is no multiple of the patch or stride, or the tower's input is fixed.
    """
    visual: Any = parts.visual
    if hasattr(visual, "transformer"):
        _resize_open_clip_vit(name, visual, size)
    elif isinstance(getattr(visual, "attnpool", None), AttentionPoolFeature):
        _check_multiple(name, size, 32)
        visual.attnpool.positional_embedding = _resized(visual.attnpool.positional_embedding, size // 32)
    else:
        trunk = getattr(visual, "trunk", visual)
        _resize_timm(name, getattr(trunk, "model", trunk), size)
    parts.image_spec = replace(parts.image_spec, size=size)


def _resize_open_clip_vit(name: str, visual: Any, size: int) -> None:
    patch = visual.patch_size[0]
    _check_multiple(name, size, patch)
    grid = size // patch
    visual.positional_embedding = _resized(visual.positional_embedding, grid)
    visual.image_size, visual.grid_size = (size, size), (grid, grid)


def _resize_timm(name: str, model: Any, size: int) -> None:
    if not hasattr(model, "set_input_size"):
        return  # convolutions take any size; load_backbone finds out about the rest
    try:
        model.set_input_size(img_size=(size, size))
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise BackboneError(
            f"cannot take images of {size} pixels ({reason})",
            where=name,
            fix="choose a multiple of its patch size",
        ) from error


def _check_multiple(name: str, size: int, step: int) -> None:
    if size < step or size % step:
        below = max(step, size // step * step)
        raise BackboneError(
            f"image_size {size} is no multiple of {step}", where=name, fix=f"use {below} or {below + step}"
        )


def _resized(embedding: Tensor, side: int) -> nn.Parameter:
    """Return position embeddings ``(1 + side ** 2, D)`` of a class token and a square grid."""
    token, grid = embedding.detach()[:1], embedding.detach()[1:]
    before = round(len(grid) ** 0.5)
    image = grid.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    resized = torch.cat([token, image.permute(0, 2, 3, 1).reshape(side * side, -1)])
    return nn.Parameter(resized, requires_grad=embedding.requires_grad)
