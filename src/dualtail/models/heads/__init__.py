"""Classifier heads on the feature before the projection. One registry; ``build_head`` makes one by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualtail.errors import InputError
from dualtail.models.backbone import Backbone
from dualtail.models.heads.base import Head
from dualtail.models.heads.text import CoOpHead, TextHead
from dualtail.models.heads.weight import CosineHead, L2NormedHead, LayerNormedHead, LinearHead
from dualtail.models.parts import seeded
from dualtail.registry import Registry
from dualtail.schema import Seed

__all__ = ["HEADS", "Head", "build_head", "check_head_options"]

_OWN: tuple[type[Head], ...] = (CosineHead, LinearHead, L2NormedHead, LayerNormedHead, TextHead, CoOpHead)
HEADS: Registry[type[Head]] = Registry(
    "head",
    {head.name: head for head in _OWN},
    group="dualtail.heads",
    given=("feature_dim", "num_classes"),
    common={"seed": Seed},
    base=Head,
)
"""The classes of heads: ``head(feature_dim, num_classes, **options)``."""


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
        InputError: as for ``check_head_options``, or a text head without a backbone.
        BackboneError: a text head on a backbone without a text tower.

    Example:
        >>> build_head("cosine", 8, 3).weight.shape
        torch.Size([3, 8])
    """
    options = check_head_options(name, {**options, "seed": seed})
    seed = options.pop("seed")
    if HEADS[name].reads_text and (backbone is None or class_names is None):
        raise InputError(f"the head {name!r} reads the text tower", fix="give its backbone and class_names")
    with seeded(seed):
        head = HEADS[name](feature_dim, num_classes, **options)
        if backbone is not None and class_names is not None:
            head.bind(backbone, class_names)
    head.options = {**options, "seed": seed}
    return head if backbone is None else head.to(backbone.device)


def check_head_options(name: object, options: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Return a head's options as its signature has them, refusing a head or an option that does not exist.

    Args:
        name: of a head, as the user gave it.
        options: the head's own, and ``seed`` as of ``build_head``.
        where: the recipe key or argument they were found in.

    Raises:
        InputError: an unknown name or option (with the nearest), or an option that is missing or of another type.

    Example:
        >>> check_head_options("cosin", {}, where="finetune.head")
        Traceback (most recent call last):
        dualtail.errors.InputError: finetune.head: unknown head 'cosin'; did you mean 'cosine'?
    """
    HEADS.find(name, where)
    return HEADS.check_options(str(name), options, where)
