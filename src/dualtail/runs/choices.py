"""Whether the names and options in a recipe exist, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from dualtail.data.readers import READERS
from dualtail.data.samplers import SAMPLINGS
from dualtail.data.transforms import AUGMENTATIONS, build_augmentation
from dualtail.errors import DualtailError, RecipeError, check_choice
from dualtail.files import read_text
from dualtail.imagespec import ImageSpec
from dualtail.logits.losses import LOSSES, build_loss
from dualtail.logits.prior import LabelPrior
from dualtail.models.head_init import HEAD_INITS
from dualtail.models.heads import HEADS
from dualtail.models.text import resolve_templates
from dualtail.models.tuners import TUNERS
from dualtail.runs.members import plan_members
from dualtail.runs.recipe import Augment, Data, Loss, Recipe, Tuner


def find_choice_faults(recipe: Recipe) -> list[str]:
    """Return a line for every name or option of a recipe that does not exist."""
    faults: list[str] = []
    for check in _checks(recipe):
        try:
            faults += map(str, check() or [])
        except DualtailError as error:
            faults.append(str(error))
    return faults


def refuse_choice_faults(recipe: Recipe) -> None:
    """Raise the first fault of :func:`find_choice_faults`; all of them are in ``error.faults``."""
    faults = find_choice_faults(recipe)
    if faults:
        raised = RecipeError(faults[0], where="recipe")
        raised.faults = tuple(faults)
        raise raised


def reader_stands(data: Data) -> bool:
    """Whether a data section names a reader that there is and options that it takes."""
    try:
        return not _reader(data)
    except DualtailError:
        return False


def _checks(recipe: Recipe) -> Iterator[Callable[[], list[DualtailError] | None]]:
    """Yield what raises a fault, or returns several."""
    tuned, second = recipe.finetune, recipe.finetune.second_stage
    yield lambda: _reader(recipe.data)
    yield lambda: _tuner(tuned.tuner, "finetune.tuner")
    if tuned.text_tuner is not None:
        yield lambda: _tuner(tuned.text_tuner, "finetune.text_tuner")  # type: ignore[arg-type]
    yield lambda: HEADS.option_faults(tuned.head.name, tuned.head.options, where="finetune.head")
    yield lambda: check_choice(
        "head initialisation", tuned.head.init, ["auto", *HEAD_INITS], where="finetune.head.init"
    )
    yield lambda: _loss(tuned.loss, "finetune.loss")
    if second is not None:
        yield lambda: _loss(second.loss, "finetune.second_stage.loss")
        yield lambda: check_choice(
            "sampling", second.sampling, SAMPLINGS, where="finetune.second_stage.sampling"
        )
    yield lambda: _text(recipe)
    yield lambda: _augment(tuned.augment)
    yield lambda: check_choice("sampling", tuned.sampling, SAMPLINGS, where="finetune.sampling")
    yield lambda: _weights(recipe)
    yield lambda: _second_stage(recipe)


def _reader(data: Data) -> list[DualtailError]:
    READERS.find(data.reader, where="data.reader")
    return READERS.option_faults(data.reader, data.options, where="data.options")


def _tuner(tuner: Tuner, where: str) -> list[DualtailError]:
    return TUNERS.option_faults(tuner.name, tuner.options, where=where)


def _augment(augment: Augment) -> list[DualtailError]:
    faults = AUGMENTATIONS.option_faults(augment.name, augment.options, where="finetune.augment")
    if not faults:
        build_augmentation(ImageSpec(size=32), augment.name, **augment.options)
    return faults


def _text(recipe: Recipe) -> None:
    resolve_templates(recipe.text.templates)
    if recipe.text.descriptions is not None:
        read_descriptions(recipe.text.descriptions)


def read_descriptions(path: str) -> dict[str, Any]:
    """Return class descriptions: a JSON object of class name to one or several sentences.

    Raises:
        RecipeError: it cannot be read, or is something else.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"cannot be read ({error})", where=path, fix="give a JSON object of class descriptions"
        ) from None
    if not isinstance(content, dict):
        raise RecipeError("is not a JSON object", where=path, fix='write {"class name": "a sentence", ...}')
    return content


def _loss(loss: Loss, where: str) -> list[DualtailError]:
    faults = LOSSES.option_faults(loss.name, loss.options, where=where)
    if not faults:
        build_loss(loss.name, counts=[1, 1], pretrain_prior=LabelPrior.uniform(2), **loss.options)
    return faults


def _second_stage(recipe: Recipe) -> None:
    second, tuner = recipe.finetune.second_stage, recipe.finetune.tuner.name
    if second is not None and second.only == ["tuner"] and tuner == "none":
        raise RecipeError(
            "finetune.second_stage.only is the tuner, and the tuner 'none' trains nothing",
            fix="train the head",
        )


def _weights(recipe: Recipe) -> None:
    weights, members = recipe.adjust.weights, len(plan_members(recipe))
    if weights == "fitted" and recipe.adjust.rule == "median":
        raise RecipeError("adjust.weights cannot be fitted under the rule median", fix="choose another rule")
    if isinstance(weights, str):
        return
    if len(weights) != members:
        raise RecipeError(
            f"adjust.weights has {len(weights)} entries for {members} members", fix="give one for each member"
        )
    if sum(weights) <= 0:
        raise RecipeError("adjust.weights are all zero", fix="give at least one member a positive weight")
