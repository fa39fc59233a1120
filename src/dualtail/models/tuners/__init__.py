"""Tuners: what fine-tuning adds to, or trains in, a frozen foundation model. One module each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dualtail.errors import BackboneError, InputError, nearest
from dualtail.models._parts import seeded
from dualtail.models.backbone import Backbone
from dualtail.models.heads import check_options
from dualtail.models.tuners.adaptformer import AdaptFormer
from dualtail.models.tuners.base import NoTuner, Site, Tuner, bottleneck_width
from dualtail.models.tuners.full import Full

__all__ = ["TUNERS", "Tuner", "attach_tuner", "bottleneck_width"]

TUNERS: dict[str, type[Tuner]] = {tuner.name: tuner for tuner in (AdaptFormer, Full, NoTuner)}


def attach_tuner(
    backbone: Backbone,
    name: str = "adaptformer",
    *,
    num_classes: int,
    blocks: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Tuner:
    """Attach a tuner to a backbone's vision tower.

    Args:
        backbone: frozen; ``tuner.detach()`` leaves it as it was.
        name: a key of ``TUNERS``.
        num_classes: C; automatic widths follow from it.
        blocks: which blocks, from 0, negative from the last; None for all.
        seed: of the tuner's random weights; torch's global generator is left alone.
        **options: the tuner's own (``width``).

    Returns:
        The tuner, on the backbone's device.

    Raises:
        BackboneError: the tuner does not fit the backbone, or another one is attached.
        InputError: unknown name, option or block.

    Example:
        >>> from dualtail.models.backbone import load_backbone
        >>> tuner = attach_tuner(load_backbone("timm:test_vit", weights="random"), num_classes=100)
        >>> tuner.num_parameters > 0
        True
    """
    if name not in TUNERS:
        guess = nearest(name, list(TUNERS))
        raise InputError(
            f"unknown tuner {name!r}",
            fix=f"did you mean {guess!r}?" if guess else f"choose from {', '.join(TUNERS)}",
        )
    check_options(f"tuner {name!r}", TUNERS[name], options)
    if backbone.tuner_name is not None:
        raise BackboneError(
            f"the tuner {backbone.tuner_name!r} is attached already",
            where=backbone.name,
            fix="detach() it first",
        )
    site = Site(backbone, _chosen(backbone, name, blocks), len(backbone.blocks), num_classes)
    with seeded(seed):
        tuner = TUNERS[name](site, **options)
    tuner.options = {**options, **({} if blocks is None else {"blocks": list(blocks)}), "seed": seed}
    backbone.tuner_name = name
    tuner.on_detach(backbone.forget_tuner)
    return tuner.to(backbone.device)


def _chosen(backbone: Backbone, name: str, blocks: Sequence[int] | None) -> tuple:
    if name in ("full", "none"):
        return backbone.blocks
    if not backbone.blocks:
        raise BackboneError(
            f"the tuner {name!r} does not fit this backbone: it has no plain transformer blocks",
            where=backbone.name,
            fix="use 'full' or 'none'",
        )
    if blocks is None:
        return backbone.blocks
    depth = len(backbone.blocks)
    wrong = [index for index in blocks if not -depth <= index < depth]
    if wrong or not blocks:
        raise InputError(
            f"no block {wrong[0]}" if wrong else "no blocks were chosen", fix=f"choose from 0 to {depth - 1}"
        )
    return tuple(backbone.blocks[index] for index in sorted({index % depth for index in blocks}))
