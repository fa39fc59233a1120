"""Recipes as YAML files: reading with overrides, keys that have moved, writing, and how two recipes differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from dualtail.errors import RecipeError, shown
from dualtail.files import read_text
from dualtail.plain_yaml import YamlFault, dump_yaml, parse_yaml
from dualtail.runs.recipe import Recipe
from dualtail.schema import describe_faults, text_faults

MOVED = {"finetune.precision": "runtime.precision"}
"""Keys that older recipes have elsewhere."""
_DEEPEST_KEY = 16


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply ``key=value`` overrides and validate.

    Relative paths in the file are relative to the file's folder; those in an override to the working directory.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` each; the value is YAML, list items are named by number
            (``members.0.weights=random``).

    Raises:
        RecipeError: the file or an override cannot be read, or the recipe is not valid; every fault is in
            ``error.faults``, the message shows the first.
    """
    path = Path(path)
    content = _read_mapping(path)
    for override in overrides:
        content = apply_override(content, override)
    return parse_recipe(_absolute_paths(content, Path.cwd(), str(path)), where=str(path))


def read_stored_recipe(path: Path) -> Recipe:
    """Read the recipe that a run directory keeps, whichever dualtail wrote it.

    Raises:
        RecipeError: it cannot be read, or is not valid.
    """
    try:
        content = _read_mapping(path)
        for old, new in MOVED.items():
            section, _, key = old.partition(".")
            if isinstance(content.get(section), dict) and key in content[section]:
                content = apply_override(content, f"{new}={content[section].pop(key)}")
        return parse_recipe(content, where=str(path))
    except RecipeError as error:
        fix = "put the recipe that the run was started with in its place"
        raise RecipeError(error.what, where=error.where, fix=fix) from None


def _read_mapping(path: Path) -> dict[str, Any]:
    """Return what a recipe file says, its paths made absolute."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), fix="give the path of a recipe (YAML)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read ({error})", where=str(path)) from None
    content = _parse_yaml(text, where=str(path))
    if not isinstance(content, dict):
        raise RecipeError("is not a mapping of keys", where=str(path), fix="start from a file in recipes/")
    return _absolute_paths(content, Path(os.path.realpath(path)).parent, str(path))


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except YamlFault as error:
        place = f"{where}, line {error.line}" if error.line else where
        raise RecipeError(f"is not valid YAML: {error.what}", where=place) from None


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a recipe given as nested dictionaries.

    Raises:
        RecipeError: with every fault in ``error.faults`` (one line each).

    Example:
        >>> parse_recipe({"name": "x", "data": {"root": "."}, "members": [{"backbon": "timm:x"}]})
        Traceback (most recent call last):
        dualtail.errors.RecipeError: recipe: members.0.backbone is missing; add it (2 faults in all...)
    """
    _refuse_odd_text(content, where)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        _refuse(describe_faults(Recipe, error.errors(), MOVED), where)


def apply_override(content: dict[str, Any], override: str) -> dict[str, Any]:
    """Return ``content`` with ``dotted.key=value`` set; sections that are not there yet are made.

    Example:
        >>> apply_override({"finetune": {"epochs": 10}}, "finetune.learning_rate=1e-3")
        {'finetune': {'epochs': 10, 'learning_rate': 0.001}}
    """
    where = f"--set {override}"
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            "is not of the form key=value", where=where, fix="for example --set finetune.epochs=5"
        )
    if len(parts) > _DEEPEST_KEY:
        raise RecipeError(
            f"has a key of {len(parts)} parts", where=shown(where), fix="no key of a recipe has so many"
        )
    content = deepcopy(content)
    place: Any = content
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(place, list):
            if part not in map(str, range(len(place))):
                raise RecipeError(
                    f"{'.'.join(parts[:index])} is a list of {len(place)}, which has no item {shown(part)}",
                    where=where,
                )
            slot: Any = int(part)
        elif isinstance(place, dict):
            slot = part
        else:
            raise RecipeError(
                f"{'.'.join(parts[:index])} is a single value, which has no key {shown(part)}", where=where
            )
        if last:
            place[slot] = _parse_yaml(value, where)
        else:
            if isinstance(place, dict) and place.get(slot) is None:
                place[slot] = {}
            place = place[slot]
    return content


def _refuse_odd_text(content: dict[str, Any], where: str) -> None:
    """Refuse text that no file can be called, before a path is made of it."""
    faults = text_faults(content)
    if faults:
        _refuse(faults, where)


def _refuse(faults: list[str], where: str) -> NoReturn:
    """Raise an error that shows the first fault and holds all."""
    fault = faults[0]
    if len(faults) > 1:
        fault += f" ({len(faults)} faults in all: 'dualtail check' lists them)"
    raised = RecipeError(fault, where=where)
    raised.faults = tuple(faults)
    raise raised


def _absolute_paths(content: dict[str, Any], base: Path, where: str) -> dict[str, Any]:
    """Return ``content`` with its paths made absolute against ``base``."""
    _refuse_odd_text(content, where)
    content = deepcopy(content)
    data = content.get("data")
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        data["root"] = str(base / os.path.expanduser(data["root"]))
    members = content.get("members")
    for member in members if isinstance(members, list) else []:
        if not isinstance(member, dict):
            continue
        backbone, weights = member.get("backbone"), member.get("weights")
        if isinstance(backbone, str) and backbone.startswith(
            ("open_clip:./", "open_clip:../", "open_clip:~")
        ):
            member["backbone"] = f"open_clip:{os.path.realpath(base / os.path.expanduser(backbone[10:]))}"
        if isinstance(weights, str) and weights != "random":
            member["weights"] = str(base / os.path.expanduser(weights))
    for section, key in (("text", "descriptions"), ("runtime", "cache")):
        part = content.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str(base / os.path.expanduser(part[key]))
    return content


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, every default written out."""
    return dump_yaml(recipe.model_dump(mode="json"))


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ; of ``runtime`` the precision alone, which moves results.

    Example:
        >>> a = parse_recipe({"name": "a", "data": {"root": "."}, "members": [{"backbone": "timm:x"}]})
        >>> recipe_differences(a, a.model_copy(update={"seed": 1}))
        ['seed']
    """
    first, second = (
        _flatten(
            recipe.model_dump(mode="json", exclude={"runtime"})
            | {"runtime.precision": recipe.runtime.precision}
        )
        for recipe in (old, new)
    )
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(content, dict):
        items: Any = content.items()
    elif isinstance(content, list) and any(isinstance(item, dict) for item in content):
        items = enumerate(content)
    else:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
