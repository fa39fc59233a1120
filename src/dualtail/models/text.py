"""From class names to text features and zero-shot logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from dualtail.errors import InputError, nearest_fix
from dualtail.models.backbone import Backbone

PHOTO = "a photo of a {}."


def _as_strings(templates: Sequence[Any]) -> tuple[str, ...]:
    return tuple(template("{}") for template in templates)


# Named prompt sets; open_clip's are functions of the class name.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": (PHOTO,),
    "simple": _as_strings(open_clip.SIMPLE_IMAGENET_TEMPLATES),
    "openai": _as_strings(open_clip.OPENAI_IMAGENET_TEMPLATES),
}


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the class names, refusing empty and repeated ones.

    Raises:
        InputError: a name is empty or occurs twice.

    Example:
        >>> check_class_names(["cat", "dog"])
        ('cat', 'dog')
    """
    names = tuple(class_names)
    if not names:
        raise InputError("there are no class names")
    empty = [index for index, name in enumerate(names) if not name.strip()]
    if empty:
        raise InputError(f"the name of class {empty[0]} is empty", fix="give every class a name")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"class name {repeated[0]!r} occurs more than once", fix="make the names unique")
    return names


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return templates from a set's name (``photo``, ``simple``, ``openai``), one template or several.

    Raises:
        InputError: a template has no ``{}`` for the class name.

    Example:
        >>> resolve_templates("photo")
        ('a photo of a {}.',)
        >>> len(resolve_templates("openai"))
        80
    """
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        templates = (templates,)
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(
                f"template {template!r} has no single {{}} for the class name",
                fix=nearest_fix(template, TEMPLATES, f"write {PHOTO!r} or name {', '.join(TEMPLATES)}"),
            )
    if not templates:
        raise InputError("there are no templates", fix=f"write {PHOTO!r}")
    return tuple(templates)


def class_prompts(
    class_names: Sequence[str],
    templates: str | Sequence[str] = PHOTO,
    descriptions: Mapping[str, str | Sequence[str]] | None = None,
) -> list[list[str]]:
    """Return each class's prompts, underscores of its name read as spaces.

    Args:
        class_names: C names.
        templates: a set's name, one template or several, each with one ``{}``.
        descriptions: class name to one or several sentences, used in place of the templates.

    Raises:
        InputError: a name is empty or repeated, a template has no ``{}``, a class has no description.

    Example:
        >>> class_prompts(["tree_frog"])
        [['a photo of a tree frog.']]
        >>> class_prompts(["cat"], descriptions={"cat": ["a small pet with whiskers"]})
        [['a small pet with whiskers']]
    """
    names = check_class_names(class_names)
    if descriptions is None:
        patterns = resolve_templates(templates)
        return [[pattern.replace("{}", name.replace("_", " ")) for pattern in patterns] for name in names]
    missing = [name for name in names if not descriptions.get(name)]
    if missing:
        raise InputError(f"{len(missing)} classes have no description, the first is {missing[0]!r}")
    texts = (descriptions[name] for name in names)
    return [[text] if isinstance(text, str) else list(text) for text in texts]


def class_text_features(
    backbone: Backbone,
    class_names: Sequence[str],
    templates: str | Sequence[str] = PHOTO,
    descriptions: Mapping[str, str | Sequence[str]] | None = None,
) -> Tensor:
    """Return one normalised text feature a class, ``(C, E)`` float32: the mean over its prompts, renormalised.

    Args:
        backbone: with a text tower.
        class_names: C names.
        templates: as for ``class_prompts``.
        descriptions: as for ``class_prompts``.

    Raises:
        BackboneError: there is no text tower, or a prompt is too long for its tokenizer.
        InputError: as for ``class_prompts``.

    Source:
        Radford et al., Learning transferable visual models from natural language supervision, 2021
        (arXiv 2103.00020), section 3.1.4.
    """
    prompts = class_prompts(class_names, templates, descriptions)
    flat = backbone.encode_text([prompt for group in prompts for prompt in group])
    means = [group.mean(dim=0) for group in flat.split([len(group) for group in prompts])]
    return F.normalize(torch.stack(means), dim=-1)


def zero_shot_logits(backbone: Backbone, features: Tensor, text_features: Tensor) -> Tensor:
    """Return ``logit_scale * cos(project(features), text) + logit_bias``, ``(..., C)`` float32.

    For sigmoid-trained models (SigLIP) each logit is that of a binary question and carries the learnt bias, which
    shifts all classes alike: softmax, argmax and priors are those of the scaled cosines.

    Args:
        backbone: with a text tower.
        features: ``(..., D)`` from ``backbone.features``.
        text_features: ``(C, E)``, normalised.
    """
    embeddings = F.normalize(backbone.project(features.float()), dim=-1)
    return backbone.logit_scale * embeddings @ text_features.to(embeddings).T + backbone.logit_bias
