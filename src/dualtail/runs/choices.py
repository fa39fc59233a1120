"""Whether the names and options in a recipe exist, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from dualtail.data.readers import READERS, reader_options
from dualtail.data.samplers import SAMPLINGS
from dualtail.data.transforms import train_transform
from dualtail.engine.settings import FinetuneSettings
from dualtail.errors import DualtailError, RecipeError, nearest
from dualtail.imagespec import ImageSpec
from dualtail.logits.losses import LOSSES, build_loss
from dualtail.logits.prior import LabelPrior
from dualtail.models.head_init import HEAD_INITS
from dualtail.models.heads import HEADS, check_options
from dualtail.models.text import resolve_templates
from dualtail.models.tuners import TUNERS
from dualtail.runs.members import plan_members
from dualtail.runs.recipe import Loss, Recipe


def find_choice_faults(recipe: Recipe) -> list[str]:
    """Return a line for every name or option of a recipe that does not exist."""
    faults = []
    for check in _checks(recipe):
        try:
            check()
        except DualtailError as error:
            faults.append(str(error))
    return faults


def refuse_choice_faults(recipe: Recipe) -> None:
    """Raise the first fault of :func:`find_choice_faults`."""
    faults = find_choice_faults(recipe)
    if faults:
        raised = RecipeError(faults[0], where="recipe")
        raised.faults = tuple(faults)
        raise raised


def _checks(recipe: Recipe) -> Iterator[Callable[[], object]]:
    tuned = recipe.finetune
    yield lambda: _known("data.reader", recipe.data.reader, list(READERS))
    if recipe.data.reader in READERS:
        for option in recipe.data.options:
            yield lambda option=option: _known(
                "data.options", option, list(reader_options(recipe.data.reader))
            )  # type: ignore[misc]
    yield lambda: _known("finetune.tuner.name", tuned.tuner.name, list(TUNERS))
    if tuned.tuner.name in TUNERS:
        yield lambda: _tuner_options(recipe)
    yield lambda: _known("finetune.head.name", tuned.head.name, list(HEADS))
    if tuned.head.name in HEADS:
        yield lambda: check_options("finetune.head.options", HEADS[tuned.head.name], tuned.head.options)
    yield lambda: _known("finetune.head.init", tuned.head.init, ["auto", *HEAD_INITS])
    yield lambda: _loss(tuned.loss)
    if tuned.text_tuner is not None:
        yield lambda: _known("finetune.text_tuner.name", tuned.text_tuner.name, list(TUNERS))  # type: ignore[union-attr]
    if tuned.second_stage is not None:
        second = tuned.second_stage
        yield lambda: _loss(second.loss)
        yield lambda: _known("finetune.second_stage.sampling", second.sampling, SAMPLINGS)
    yield lambda: _text(recipe)
    yield lambda: train_transform(ImageSpec(size=32), tuned.augment.name, **tuned.augment.options)
    yield lambda: _known("finetune.sampling", tuned.sampling, SAMPLINGS)
    yield lambda: finetune_settings(recipe, recipe.seed)
    yield lambda: _weights(recipe)
    yield lambda: _second_stage(recipe)


def _known(key: str, value: str, known: list[str] | tuple[str, ...]) -> None:
    if value not in known:
        guess = nearest(value, known)
        fix = f"did you mean {guess!r}?" if guess else f"choose from {', '.join(known)}"
        raise RecipeError(f"unknown {key} {value!r}", fix=fix)


def _tuner_options(recipe: Recipe) -> None:
    options = {
        key: value for key, value in recipe.finetune.tuner.options.items() if key not in ("blocks", "seed")
    }
    check_options("finetune.tuner.options", TUNERS[recipe.finetune.tuner.name], options)


def _text(recipe: Recipe) -> None:
    resolve_templates(recipe.text.templates)
    if recipe.text.descriptions is not None:
        read_descriptions(recipe.text.descriptions)


def read_descriptions(path: str) -> dict[str, Any]:
    """Return class descriptions: a JSON object of class name to one or several sentences."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"cannot be read ({error})", where=path, fix="give a JSON object of class descriptions"
        ) from None
    if not isinstance(found, dict):
        raise RecipeError("is not a JSON object", where=path, fix='write {"class name": "a sentence", ...}')
    return found


def _loss(loss: Loss) -> None:
    uniform = (
        LabelPrior.uniform(2) if loss.name in LOSSES and "pretrain_prior" in LOSSES[loss.name].needs else None
    )
    build_loss(loss.name, counts=[1, 1], pretrain_prior=uniform, **loss.options)


def finetune_settings(recipe: Recipe, seed: int) -> FinetuneSettings:
    """Return the engine's settings of a recipe: the fields that both call by the same name, and the rest."""
    tuned = recipe.finetune
    shared = {field.name for field in fields(FinetuneSettings)} & set(type(tuned).model_fields)
    values = {name: getattr(tuned, name) for name in shared}
    return FinetuneSettings(**values, seed=seed, checkpoint_minutes=recipe.runtime.checkpoint_minutes)


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
