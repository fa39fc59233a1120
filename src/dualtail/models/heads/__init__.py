"""Classifier heads on the feature before the projection. One registry; ``build_head`` makes one by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dualtail.errors import InputError, nearest
from dualtail.models._parts import check_options, seeded
from dualtail.models.backbone import Backbone
from dualtail.models.head_init import class_mean_weight, text_weight
from dualtail.models.heads.base import Head
from dualtail.models.heads.text import CoOpHead, TextHead
from dualtail.models.heads.weight import CosineHead, L2NormedHead, LayerNormedHead, LinearHead

__all__ = ["HEADS", "Head", "build_head", "check_options", "class_mean_weight", "text_weight"]

_KINDS: tuple[type[Head], ...] = (CosineHead, LinearHead, L2NormedHead, LayerNormedHead, TextHead, CoOpHead)
HEADS: dict[str, type[Head]] = {kind.name: kind for kind in _KINDS}


def build_head(
    name: str,
    feature_dim: int,
    num_classes: int,
    *,
    backbone: Backbone | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Head:
    """Return a head by its registered name, on the backbone's device if there is one.

    Args:
        name: a key of ``HEADS``.
        feature_dim: D.
        num_classes: C.
        backbone: for the heads that read the text tower (``text``, ``coop``).
        class_names: C names, for the same.
        seed: of its random weights.
        **options: the head's own (``scale``, ``bias``, ``template``, ``context``, ...).

    Raises:
        InputError: unknown name or option, the nearest known one is named; a text head without a backbone.
        BackboneError: a text head on a backbone without a text tower.

    Example:
        >>> build_head("cosine", 8, 3).weight.shape
        torch.Size([3, 8])
    """
    if name not in HEADS:
        guess = nearest(name, list(HEADS))
        raise InputError(
            f"unknown head {name!r}",
            fix=f"did you mean {guess!r}?" if guess else f"choose from {', '.join(HEADS)}",
        )
    check_options(f"head {name!r}", HEADS[name], options)
    if HEADS[name].reads_text and (backbone is None or class_names is None):
        raise InputError(f"the head {name!r} reads the text tower", fix="give its backbone and class_names")
    with seeded(seed):
        head = HEADS[name](feature_dim, num_classes, **options)
        if backbone is not None and class_names is not None:
            head.bind(backbone, class_names)
    head.options = {**options, "seed": seed}
    return head if backbone is None else head.to(backbone.device)
