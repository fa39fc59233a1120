from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dualtail.errors import RecipeError, RunError
from dualtail.files import write_json
from dualtail.runs.directory import RunDirectory
from dualtail.runs.provenance import write_provenance
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import parse_recipe


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe({"name": "x", "data": {"root": "/d"}, "members": [{"backbone": "timm:a"}]})


def test_a_directory_of_another_recipe_is_refused_with_both_ways_out(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe) as run:
        run.records.add("prior", "f1", [], 1.0)
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(RunError) as error:
        RunDirectory.open(tmp_path, other)
    assert str(error.value) == (
        f"{tmp_path}: belongs to another recipe (seed); choose another --out, or add --update to go on here and "
        "redo only the stages it changes"
    )
    with RunDirectory.open(tmp_path, other, update=True):
        assert RunDirectory.read(tmp_path).recipe == other


def test_damaged_records_and_recipes_say_what_to_do(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe) as run:
        run.records.add("prior", "f1", [], 1.0)
    run.records.path.write_text("{")
    with pytest.raises(RunError, match="delete it and run again: every stage is then done again"):
        RunDirectory.read(tmp_path).records.read()
    (tmp_path / "recipe.yaml").write_text("name: [")
    with pytest.raises(RecipeError, match="put the recipe that the run was started with in its place"):
        RunDirectory.read(tmp_path)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path, recipe: Recipe):
    RunDirectory.open(tmp_path, recipe).close()
    left = tmp_path / "members" / "a" / ".logits.safetensors.123.tmp"
    write_json(left, {})
    RunDirectory.read(tmp_path)  # a reader may look while somebody writes
    assert left.exists()
    RunDirectory.open(tmp_path, recipe).close()
    assert not left.exists()
    assert (tmp_path / "recipe.yaml").exists()


def test_a_directory_without_results_is_free(tmp_path: Path, recipe: Recipe):
    RunDirectory.open(tmp_path, recipe).close()
    RunDirectory.open(tmp_path, recipe.model_copy(update={"seed": 7})).close()


def test_runtime_settings_do_not_make_another_recipe(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe) as run:
        run.records.add("prior", "f1", [], 1.0)
    slower = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"workers": 0})})
    RunDirectory.open(tmp_path, slower).close()


def test_precision_makes_another_recipe_for_it_moves_results(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe) as run:
        run.records.add("prior", "f1", [], 1.0)
    rounder = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"precision": "bf16"})})
    with pytest.raises(RunError, match=r"another recipe \(runtime.precision\)"):
        RunDirectory.open(tmp_path, rounder)


def test_the_recipe_of_an_older_run_is_read_with_its_keys_in_their_new_places(tmp_path: Path, recipe: Recipe):
    content = recipe.model_dump(mode="json")
    del content["runtime"]["precision"]
    content["finetune"]["precision"] = "bf16"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert RunDirectory.read(tmp_path).recipe.runtime.precision == "bf16"


def test_every_path_lies_in_the_directory_and_no_two_are_one(tmp_path: Path, recipe: Recipe):
    run = RunDirectory(tmp_path, recipe)
    owners = [run.backbone("a"), run.member("a"), run.member("b"), run.adjusted, run.attribution]
    paths = [run.provenance, run.classes, run.report]
    for owner in owners:
        for value in vars(owner).values():
            paths += [value] if isinstance(value, Path) else list(value) if isinstance(value, tuple) else []
    assert len(paths) > 30
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)


def test_a_foreign_directory_is_left_alone(tmp_path: Path, recipe: Recipe):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and is not a run directory"):
        RunDirectory.open(tmp_path, recipe)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


OPEN_AGAIN = """
import sys
from dualtail.errors import RecipeError, RunError
from dualtail.runs.directory import RunDirectory
from dualtail.runs.recipe_file import read_recipe
try:
    RunDirectory.open(sys.argv[1], read_recipe(sys.argv[1] + "/recipe.yaml")).close()
except RunError as error:
    print(error)
"""


def test_a_directory_in_use_is_refused_in_another_process(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe):
        done = subprocess.run(
            [sys.executable, "-c", OPEN_AGAIN, str(tmp_path)], capture_output=True, text=True, timeout=120
        )
        assert "is in use by another run" in done.stdout, done.stderr
    RunDirectory.open(tmp_path, recipe).close()


def test_reading_what_is_no_run(tmp_path: Path):
    with pytest.raises(RunError, match="is not a run directory"):
        RunDirectory.read(tmp_path)
    with pytest.raises(RunError, match="no such run directory"):
        RunDirectory.read(tmp_path / "none")


def test_a_newer_format_is_refused(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe) as run:
        write_provenance(run.provenance)
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["versions"]["torch"]
    write_json(tmp_path / "provenance.json", {**provenance, "format_version": 99})
    with pytest.raises(RunError, match="format 99"):
        RunDirectory.read(tmp_path)


LINKS = [
    "backbones",
    "members",
    "adjusted",
    "resume",
    "events",
    "events/clip",
    "recipe.yaml",
    ".lock",
    "members/clip/x.json",
]


@pytest.mark.parametrize("name", LINKS)
def test_a_directory_with_links_is_refused_before_anything_is_written(
    tmp_path: Path, recipe: Recipe, name: str
):
    """Else files elsewhere would be written and deleted under the run's names."""
    elsewhere = tmp_path / "precious"
    if folder := not name.endswith((".yaml", ".lock", ".json")):
        elsewhere.mkdir()
        (elsewhere / "kept").write_text("mine")
    else:
        elsewhere.write_text("mine")
    root = tmp_path / "run"
    RunDirectory.open(root, recipe).close()
    link = root / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(RunError, match="is a symbolic link") as caught:
        RunDirectory.open(root, recipe, update=True)
    assert str(link) in str(caught.value)
    assert ((elsewhere / "kept") if folder else elsewhere).read_text() == "mine"


def test_a_run_directory_may_be_a_link_itself(tmp_path: Path, recipe: Recipe):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    RunDirectory.open(tmp_path / "run", recipe).close()
    assert (tmp_path / "disk" / "asked.yaml").is_file()


def test_results_of_older_records_are_computed_anew_only_when_asked(tmp_path: Path, recipe: Recipe):
    RunDirectory.open(tmp_path, recipe).close()
    row = {"inputs": "0", "outputs": ["provenance.json"], "seconds": 1.0, "finished": "2026-01-01"}
    write_json(tmp_path / "stages.json", {"features/a": row})
    with pytest.raises(RunError, match="made by an older dualtail"):
        RunDirectory.open(tmp_path, recipe)
    RunDirectory.open(tmp_path, recipe, update=True).close()


@pytest.mark.parametrize("unit", ["..", ".", "../x", "a/../../b"])
def test_a_unit_is_one_name(tmp_path: Path, recipe: Recipe, unit: str):
    RunDirectory.open(tmp_path, recipe).close()
    row = {"inputs": "0", "outputs": {}, "seconds": 1.0, "finished": "2026-01-01"}
    write_json(tmp_path / "stages.json", {f"finetune/{unit}": row})
    with pytest.raises(RunError, match=r"stages\.json"):
        RunDirectory.read(tmp_path).records.read()
