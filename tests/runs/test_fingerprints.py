"""Fingerprints of every stage, pinned: a change of the code must not make finished runs start again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualtail.files import write_json
from dualtail.process_group import ProcessGroup, resolve_device
from dualtail.runs.context import RunContext
from dualtail.runs.dataset import build_manifest
from dualtail.runs.directory import RunDirectory
from dualtail.runs.observer import Observer
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import apply_override, parse_recipe
from dualtail.runs.stages import STAGES

PINNED = json.loads((Path(__file__).parent / "data" / "fingerprints.json").read_text())
VARIANTS: dict[str, list[str]] = {
    "defaults": [],
    "prior from train, a loss with it": [
        "prior={split: train, per_class: 2, shrinkage: 0.5}", "finetune.loss={name: gla_train, options: {tau: 0.5}}"],
    "best epoch, second stage, fitted weights, crops": [
        "finetune={keep: best, second_stage: {epochs: 2}, ema_decay: 0.9, mixup: 0.2}", "adjust.weights=fitted",
        "evaluate={crops: 5, attribution: null, confidence: 0.9}"],
    "seeds, random weights, no text, bicubic": [
        "members.0.seeds=[0, 3]", "members.1={name: plain, backbone: \"timm:test_vit\", weights: random}",
        "data.interpolation=bicubic", "seed=7", "text.templates=photo"],
}  # fmt: skip


def write_inputs(root: Path) -> None:
    """Write what the recipes name: files of fixed sizes and contents, never decoded."""
    sizes = {"cat": (5, 2, 3), "dog": (3, 2, 3), "owl": (1, 2, 3)}
    for number, (name, counts) in enumerate(sizes.items()):
        for split, size in zip(("train", "val", "test"), counts, strict=True):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for image in range(size):
                (folder / f"{image}.png").write_bytes(b"x" * (10 + 3 * number + image))
    for name in ("first", "second"):
        (root / name).mkdir()
        (root / name / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"name": name}}))


def recipe_of(root: Path, overrides: list[str]) -> Recipe:
    """Return a recipe over the inputs in ``root``."""
    content: dict[str, Any] = {
        "name": "pinned",
        "data": {"root": str(root / "images")},
        "members": [
            {"backbone": f"open_clip:{root / name}", "weights": "random", "name": name}
            for name in ("first", "second")
        ],
        "runtime": {"device": "cpu"},
    }
    for override in overrides:
        content = apply_override(content, override)
    return parse_recipe(content)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fingerprints_of_stages_are_what_they_were(variant: str, tmp_path: Path):
    write_inputs(tmp_path)
    recipe = recipe_of(tmp_path, VARIANTS[variant])
    run = RunDirectory(tmp_path / "run", recipe)
    manifest = build_manifest(recipe.data, recipe.seed)
    context = RunContext(run, manifest, ProcessGroup(), Observer(), resolve_device("cpu"))
    for plan in run.backbones:
        write_json(run.backbone(plan.name).info, {"has_text": plan.backbone.startswith("open_clip")})
    found = {}
    for kind in STAGES:
        stage = kind(context)
        for unit in stage.units():
            found[stage.key(unit)] = inputs = stage.inputs(unit)
            run.records.add(stage.key(unit), inputs, [], 0.0)
    assert found == PINNED[variant]
