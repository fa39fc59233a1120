"""Tuners: what fine-tuning adds to, or trains in, a frozen foundation model. One module each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dualtail.errors import BackboneError, DualtailError, InputError, nearest
from dualtail.models._parts import check_options, seeded
from dualtail.models.backbone import Backbone
from dualtail.models.blocks import Block
from dualtail.models.tuners.adapter import Adapter
from dualtail.models.tuners.adaptformer import AdaptFormer
from dualtail.models.tuners.base import FAMILIES, Site, Tuner, bottleneck_width
from dualtail.models.tuners.full import Full
from dualtail.models.tuners.low_rank import Dora, Ia3, Loha, Lokr, Lora, Oft
from dualtail.models.tuners.masked import Masked
from dualtail.models.tuners.none import NoTuner
from dualtail.models.tuners.selected import BitFit, LayerNormTuning, Partial
from dualtail.models.tuners.ssf import Ssf
from dualtail.models.tuners.vpt import VptDeep, VptShallow

__all__ = ["FAMILIES", "TUNERS", "Tuner", "attach_tuner", "bottleneck_width", "support_table"]

_KINDS: tuple[type[Tuner], ...] = (
    AdaptFormer,
    Adapter,
    Lora,
    Dora,
    Loha,
    Lokr,
    Oft,
    Ia3,
    VptShallow,
    VptDeep,
    Ssf,
    BitFit,
    LayerNormTuning,
    Masked,
    Partial,
    Full,
    NoTuner,
)
TUNERS: dict[str, type[Tuner]] = {kind.name: kind for kind in _KINDS}
TOWERS = ("vision", "text")


def attach_tuner(
    backbone: Backbone,
    name: str = "adaptformer",
    *,
    num_classes: int,
    tower: str = "vision",
    blocks: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Tuner:
    """Attach a tuner to one of a backbone's towers.

    Args:
        backbone: frozen; ``tuner.detach()`` leaves it as it was.
        name: a key of ``TUNERS``.
        num_classes: C; automatic widths follow from it.
        tower: ``"vision"``, or ``"text"`` for use with the heads ``text`` and ``coop``.
        blocks: which blocks, from 0, negative from the last; None for all.
        seed: of the tuner's random weights; torch's global generator is left alone.
        **options: the tuner's own (``width``, ``rank``, ``tokens``, ...).

    Returns:
        The tuner, on the backbone's device.

    Raises:
        BackboneError: the tuner does not fit the tower (the message quotes its row of ``support_table``), or another
            one is attached there.
        InputError: unknown name, option or block.

    Example:
        >>> from dualtail.models.backbone import load_backbone
        >>> tuner = attach_tuner(load_backbone("timm:test_vit", weights="random"), num_classes=100)
        >>> tuner.num_parameters > 0
        True
    """
    kind = _kind(name)
    check_options(f"tuner {name!r}", kind, options)
    if tower not in TOWERS:
        raise InputError(f"unknown tower {tower!r}", fix="choose vision or text")
    _check_fit(backbone, kind, tower)
    if tower in backbone.tuned:
        raise BackboneError(
            f"the tuner {backbone.tuned[tower].name!r} is attached already",
            where=backbone.name,
            fix="detach() it first",
        )
    own = backbone.blocks if tower == "vision" else backbone.text_blocks
    site = Site(backbone, tower, _chosen(own, blocks), len(own), num_classes, seed)
    try:
        with seeded(seed):
            tuner = kind(site, **options)
    except DualtailError:
        site.roll_back()
        raise
    tuner.options = {**options, **({} if blocks is None else {"blocks": list(blocks)}), "seed": seed}
    backbone.tuned[tower] = tuner
    tuner.on_detach(lambda: backbone.tuned.pop(tower, None))  # type: ignore[arg-type]
    return tuner.to(backbone.device)


def _kind(name: str) -> type[Tuner]:
    if name in TUNERS:
        return TUNERS[name]
    guess = nearest(name, list(TUNERS))
    raise InputError(
        f"unknown tuner {name!r}",
        fix=f"did you mean {guess!r}?" if guess else f"choose from {', '.join(TUNERS)}",
    )


def _check_fit(backbone: Backbone, kind: type[Tuner], tower: str) -> None:
    family = backbone.family if tower == "vision" else backbone.text_family
    if family in kind.families:
        return
    fitting = [other.name for other in _KINDS if family in other.families]
    raise BackboneError(
        f"the tuner {kind.name!r} does not fit this {tower} tower ({family}); it fits "
        f"{', '.join(known for known in FAMILIES if known in kind.families)}",
        where=backbone.name,
        fix=f"this tower takes {', '.join(fitting)} (docs/choose-a-tuner.md)",
    )


def _chosen(own: tuple[Block, ...], blocks: Sequence[int] | None) -> tuple[Block, ...]:
    if blocks is None:
        return own
    depth = len(own)
    wrong = [index for index in blocks if not -depth <= index < depth]
    if wrong or not blocks:
        raise InputError(
            f"there is no block {wrong[0]}" if wrong else "no blocks were chosen",
            fix=f"choose from 0 to {depth - 1}" if depth else "this tower has no blocks to choose from",
        )
    return tuple(own[index] for index in sorted({index % depth for index in blocks}))


def support_table() -> list[list[str]]:
    """Return which tuner fits which tower: a header row, then one row a tuner.

    Example:
        >>> header, *rows = support_table()
        >>> header[:2], rows[0][:3]
        (['tuner', 'open_clip_vit'], ['adaptformer', 'yes', 'no'])
    """
    rows = [
        [kind.name, *("yes" if family in kind.families else "no" for family in FAMILIES)] for kind in _KINDS
    ]
    return [["tuner", *FAMILIES], *rows]
