"""Tuners: what fine-tuning adds to, or trains in, a frozen foundation model. One module each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualtail.errors import BackboneError, DualtailError, InputError, check_choice
from dualtail.models.backbone import Backbone
from dualtail.models.blocks import Block
from dualtail.models.parts import FAMILIES, seeded
from dualtail.models.tuners.adapter import Adapter
from dualtail.models.tuners.adaptformer import AdaptFormer
from dualtail.models.tuners.base import Site, Tuner, bottleneck_width
from dualtail.models.tuners.full import Full
from dualtail.models.tuners.low_rank import Dora, Ia3, Loha, Lokr, Lora, Oft
from dualtail.models.tuners.masked import Masked
from dualtail.models.tuners.none import NoTuner
from dualtail.models.tuners.selected import BitFit, LayerNormTuning, Partial
from dualtail.models.tuners.ssf import Ssf
from dualtail.models.tuners.vpt import VptDeep, VptShallow
from dualtail.registry import Registry
from dualtail.schema import Seed

__all__ = [
    "FAMILIES",
    "TUNERS",
    "Site",
    "Tuner",
    "attach_tuner",
    "bottleneck_width",
    "check_tuner_options",
    "support_table",
]

_OWN: tuple[type[Tuner], ...] = (
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
TUNERS: Registry[type[Tuner]] = Registry(
    "tuner",
    {tuner.name: tuner for tuner in _OWN},
    group="dualtail.tuners",
    given=("site",),
    common={"blocks": Sequence[int] | None, "seed": Seed},
    base=Tuner,
)
"""The classes of tuners: ``tuner(site, **options)`` attaches one to a backbone."""

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
        InputError: as for ``check_tuner_options``, or an unknown block.

    Example:
        >>> from dualtail.models.backbone import load_backbone
        >>> tuner = attach_tuner(load_backbone("timm:test_vit", weights="random"), num_classes=100)
        >>> tuner.num_parameters > 0
        True
    """
    options = check_tuner_options(name, {**options, "blocks": blocks, "seed": seed})
    blocks, seed = options.pop("blocks"), options.pop("seed")
    check_choice("tower", tower, TOWERS)
    _check_fit(backbone, name, tower)
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
            tuner = TUNERS[name](site, **options)
    except DualtailError:
        site.roll_back()
        raise
    tuner.options = {**options, **({} if blocks is None else {"blocks": list(blocks)}), "seed": seed}
    backbone.tuned[tower] = tuner
    tuner.on_detach(lambda: backbone.tuned.pop(tower, None))  # type: ignore[arg-type]
    return tuner.to(backbone.device)


def check_tuner_options(name: object, options: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Return a tuner's options as its signature has them, refusing what no backbone is needed to refuse.

    Args:
        name: of a tuner, as the user gave it.
        options: the tuner's own, and ``blocks`` and ``seed`` as of ``attach_tuner``.
        where: the recipe key or argument they were found in.

    Raises:
        InputError: an unknown name or option (with the nearest), an option that is missing or of another
            type.

    Example:
        >>> check_tuner_options("lora", {"blocks": [-1], "rnk": 4}, where="finetune.tuner")
        Traceback (most recent call last):
        dualtail.errors.InputError: finetune.tuner: the tuner 'lora' has no option 'rnk'; did you mean 'rank'?
    """
    TUNERS.find(name, where)
    return TUNERS.check_options(str(name), options, where)


def _check_fit(backbone: Backbone, name: str, tower: str) -> None:
    family = backbone.family if tower == "vision" else backbone.text_family
    families = TUNERS[name].families
    if family in families:
        return
    fitting = [other for other, tuner in TUNERS.items() if family in tuner.families]
    raise BackboneError(
        f"the tuner {name!r} does not fit this {tower} tower ({family}); it fits "
        f"{', '.join(known for known in FAMILIES if known in families)}",
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
        [name, *("yes" if family in tuner.families else "no" for family in FAMILIES)]
        for name, tuner in TUNERS.items()
    ]
    return [["tuner", *FAMILIES], *rows]
