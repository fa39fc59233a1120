"""What a change redoes: the page says what the stages say, and what stands is what a fresh run would hold."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dualtail.runs.pipeline import run_pipeline
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import apply_override, parse_recipe
from dualtail.runs.stages import STAGES
from dualtail.schema import Section

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "what_is_redone"))
TIMES = {"seconds", "images_per_second"}


def sections(annotation: object) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in sections(part)]


def keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = sections(field.annotation)
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_of_the_recipe_is_in_the_table():
    told = {key.replace("members.0.", "members.") for key in SCRIPT["CHANGES"]} | set(SCRIPT["BY_INPUT"])
    wanted = {key for key in keys(Recipe) if not key.startswith("finetune.text_tuner.")}
    assert wanted - told == set()
    assert told - wanted == {"finetune.text_tuner", "evaluate.attribution"}


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "what-is-redone.md").read_text() == SCRIPT["page"](), "run scripts/what_is_redone"


LATER = ["adjust", "evaluate", "attribution"]
AFTER = {
    "zero_shot": ["prior", *LATER],
    "prior": LATER,
    "finetune": ["logits", *LATER],
    "logits": LATER,
    "adjust": ["evaluate", "attribution"],
    "evaluate": [],
    "attribution": [],
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("loss", ["la", "gla_train"])
def test_another_version_of_a_stage_redoes_it_and_its_dependants(
    stage: Any, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    SCRIPT["write_inputs"](tmp_path)
    given = [f"finetune.loss.name={loss}"]
    before = SCRIPT["stamps"](tmp_path, given)
    monkeypatch.setattr(stage, "version", 2)
    cells = SCRIPT["redone"](before, SCRIPT["stamps"](tmp_path, given))
    found = {kind.name for kind, cell in zip(STAGES, cells, strict=True) if cell}
    trained = (
        {"finetune", "logits"} if loss == "gla_train" and stage.name in ("zero_shot", "prior") else set()
    )
    assert found == {stage.name, *AFTER[stage.name]} | trained


def test_prompts_that_nobody_reads_train_nobody_again(tmp_path: Path):
    SCRIPT["write_inputs"](tmp_path)
    for given, trained in (
        (["finetune.head.init=class_mean"], False),
        (["finetune.head.name=text"], False),
        (["members.1={backbone: \"timm:test_vit\", name: second}", "finetune.head.init=class_mean"], False),
        ([], True),
    ):  # fmt: skip
        before = SCRIPT["stamps"](tmp_path, given)
        after = SCRIPT["stamps"](tmp_path, [*given, "text.templates=a picture of a {}."])
        changed = {key for key, stamp in after.items() if before[key] != stamp}
        assert any(key.startswith("finetune") for key in changed) == trained, given
        assert "prior/first" in changed


# Against fresh runs.

CHANGES: list[tuple[str, list[str], list[str]]] = [
    ("confidence", [], ["evaluate.confidence=0.8"]),
    ("maps off", [], ["evaluate.attribution=null"]),
    ("maps on", ["evaluate.attribution=null"], []),
    ("more maps", [], ["evaluate.attribution.images=4"]),
    ("name", [], ["name=another"]),
    ("groups", [], ["evaluate.groups={many: 20, few: 5}"]),
    ("neighbours", [], ["evaluate.neighbors.k=3"]),
    ("crops", [], ["evaluate.crops=5"]),
    ("prompts", [], ["text.templates=a picture of a {}."]),
    ("prior from train", [], ["prior={split: train, per_class: 2}"]),
    ("some more of train", ["prior={split: train, per_class: 2}"], ["prior={split: train, per_class: 3}"]),
    ("fitted weights", [], ["adjust.weights=fitted"]),
    ("seed", [], ["seed=3"]),
    ("a seed beside", ["members.0.seeds=[0, 1]"], ["members.0.seeds=[0, 1]", "seed=3"]),
    ("a member less", [], ["members.1=null"]),
    ("notes alone", ["data.long_tail={ratio: 1}"], ["data.long_tail={ratio: 1, profile: pareto}"]),
    ("loss", [], ["finetune.loss.name=ce"]),
    ("class means", ["finetune.head.init=class_mean"], ["finetune.head.init=class_mean", "text.templates=a {}."]),
]  # fmt: skip


def recipe_of(workshop: Path, overrides: Sequence[str]) -> Recipe:
    content: dict[str, Any] = yaml.safe_load((workshop / "recipe.yaml").read_text())
    content["data"]["root"] = str(workshop / "images")
    for member in content["members"]:
        member["backbone"] = f"open_clip:{workshop / member['backbone'].removeprefix('open_clip:./')}"
    for override in ("finetune.epochs=1", "evaluate.attribution={images: 2, steps: 2}", *overrides):
        content = apply_override(content, override)
    content["members"] = [member for member in content["members"] if member]
    return parse_recipe(content)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def results(run: Path) -> dict[str, Any]:
    """Return everything that a run holds but when and how long."""
    held: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        if path.suffix == ".json" and path.name not in ("stages.json", "provenance.json"):
            held[str(path.relative_to(run))] = without_times(json.loads(path.read_text()))
        elif path.suffix in (".csv", ".safetensors", ".yaml"):
            held[str(path.relative_to(run))] = path.read_bytes()
    return held


@pytest.mark.slow
@pytest.mark.parametrize(("what", "before", "after"), CHANGES, ids=[change[0] for change in CHANGES])
def test_an_updated_run_holds_what_a_fresh_one_does(
    workshop: Path, tmp_path: Path, what: str, before: list[str], after: list[str]
):
    run_pipeline(recipe_of(workshop, before), tmp_path / "run")
    run_pipeline(recipe_of(workshop, after), tmp_path / "run", update=True)
    run_pipeline(recipe_of(workshop, after), tmp_path / "fresh")
    updated, fresh = results(tmp_path / "run"), results(tmp_path / "fresh")
    assert updated.keys() == fresh.keys()
    assert [name for name, held in fresh.items() if updated[name] != held] == []
    shutil.rmtree(tmp_path / "run")
