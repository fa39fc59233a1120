"""Every file of a finished run, damaged in every way: redone and equal, or one line; never other numbers in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualtail.errors import DualtailError, RunError
from dualtail.files import write_json
from dualtail.report.export import collect_tables
from dualtail.report.formats import to_json
from dualtail.report.page import write_page
from dualtail.runs.directory import RunDirectory
from dualtail.runs.observer import Observer
from dualtail.runs.pipeline import run_pipeline
from dualtail.runs.predict import predict_images
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import apply_override, parse_recipe
from dualtail.runs.stages import STAGES

UNREAD = (
    ".csv",
    ".html",
    ".lock",
)  # exports, the page, the lock; and the events, which nothing of ours reads
TIMES = {"seconds", "images_per_second"}


def recipe_of(workshop: Path, *overrides: str) -> Recipe:
    content: dict[str, Any] = yaml.safe_load((workshop / "recipe.yaml").read_text())
    content["data"]["root"] = str(workshop / "images")
    for member in content["members"]:
        member["backbone"] = f"open_clip:{workshop / member['backbone'].removeprefix('open_clip:./')}"
    for override in (
        "finetune.epochs=1",
        "runtime.precision=fp32",
        "evaluate.attribution={images: 2, steps: 2}",
        *overrides,
    ):
        content = apply_override(content, override)
    return parse_recipe(content)


class Heard(Observer):
    def __init__(self) -> None:
        self.begun: list[str] = []
        self.notes: list[str] = []

    def stage(self, title: str) -> None:
        self.begun.append(title)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def finished(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(recipe_of(workshop), tmp_path_factory.mktemp("damage") / "run").root


@pytest.fixture(scope="module")
def other(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another seed: the same files with other content."""
    return run_pipeline(recipe_of(workshop, "seed=3"), tmp_path_factory.mktemp("damage") / "run").root


def files_of(run: Path) -> list[str]:
    found = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(UNREAD) and not name.startswith("events/"))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def numbers(run: Path) -> dict[str, Any]:
    """Return everything that a run holds but when, where and how long."""
    held: dict[str, Any] = {}
    found = {*files_of(run), *(path.relative_to(run).as_posix() for path in run.rglob("*.csv"))}
    for name in sorted(found - {"stages.json", "provenance.json"}):
        path = run / name
        held[name] = (
            without_times(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
        )
    return held


def flip(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def delete(path: Path, _: Path) -> None:
    path.unlink()


def swap(path: Path, others: Path) -> None:
    shutil.copyfile(others, path)


DAMAGES: list[Callable[[Path, Path], None]] = [flip, truncate, delete, swap]


def told(run: Path, image: Path) -> list[Any]:
    """Return what the report and predict tell of a run."""
    tables = json.loads(to_json(collect_tables([run])))
    tables.pop("stages", None)
    page = write_page([run], run / "page.html", images=True)
    page.unlink()
    return [without_times(tables), predict_images(run, [str(image)], top=3, device="cpu")]


def fault_of(work: Callable[[], object]) -> str | None:
    """Return the line that some work ends in, None where it ends well."""
    try:
        assert work()
    except DualtailError as error:
        return str(error)
    return None


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_file_is_told(
    finished: Path, other: Path, workshop: Path, tmp_path: Path, damage: Callable[[Path, Path], None]
):
    image = next((workshop / "images" / "test" / "blue jay").iterdir())
    run = shutil.copytree(finished, tmp_path / "run")
    right = told(run, image)
    passed = []
    for name in files_of(finished):
        damage(run / name, other / name)
        if (run / name).exists() and (run / name).read_bytes() == (finished / name).read_bytes():
            continue  # the other run's is the same
        line = fault_of(lambda: told(run, image) == right)
        if line is None:
            passed.append(name)
        else:
            assert name in line or name in ("stages.json", "recipe.yaml"), line
        shutil.copyfile(finished / name, run / name)
    assert told(run, image) == right
    # What neither of the two reads; and records that are gone vouch for nothing, as in older runs.
    assert {name for name in passed if "groups" not in name} <= {"stages.json"}, passed


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_file_is_up_to_date(
    finished: Path, other: Path, tmp_path: Path, damage: Callable[[Path, Path], None]
):
    run = shutil.copytree(finished, tmp_path / "run")
    keys = RunDirectory.read(run).records.read()
    owners = {name: key for key, record in keys.items() for name in record.outputs}
    assert {key.partition("/")[0] for key in owners.values()} == {stage.name for stage in STAGES}
    for name, key in owners.items():
        damage(run / name, other / name)
        records = RunDirectory.read(run).records
        inputs = records.inputs_of(key)
        assert inputs is not None
        same = (run / name).exists() and (run / name).read_bytes() == (finished / name).read_bytes()
        assert records.is_done(key, inputs) == same, name
        assert records.faults(key) == ([] if same else [name])
        shutil.copyfile(finished / name, run / name)


# What is made again to the bit leaves what rests on it; a training's record holds its duration.
REDONE = {
    "backbones/tiny_a/zero_shot.safetensors": {"zero-shot"},
    "members/tiny_a/training.json": {"fine-tuning", "logits", "attribution"},
    "adjusted/per_class.csv": {"evaluation"},
    "attribution/attribution.json": {"attribution"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REDONE)
def test_what_is_damaged_is_redone_and_equal(finished: Path, workshop: Path, tmp_path: Path, name: str):
    run = shutil.copytree(finished, tmp_path / "run")
    flip(run / name, run)
    heard = Heard()
    run_pipeline(recipe_of(workshop), run, observer=heard)
    begun = {title.partition(":")[0] for title in heard.begun}
    assert begun == REDONE[name]
    assert any(name in note and "is done again" in note for note in heard.notes)
    assert numbers(run) == numbers(finished)


@pytest.mark.slow
def test_every_other_file_of_a_run_is_redone_and_equal_or_one_line(
    finished: Path, workshop: Path, tmp_path: Path
):
    for number, name in enumerate(files_of(finished)):
        run = shutil.copytree(finished, tmp_path / str(number))
        DAMAGES[number % 3](run / name, run)
        line = fault_of(lambda run=run: run_pipeline(recipe_of(workshop), run))
        assert numbers(run) == numbers(finished) if line is None else Path(name).name in line, name
        shutil.rmtree(run)


def test_a_run_without_contents_in_its_records_is_read_and_gets_them_when_asked_to_go_on(
    finished: Path, workshop: Path, tmp_path: Path
):
    run = shutil.copytree(finished, tmp_path / "run")
    content = json.loads((run / "stages.json").read_text())
    del content["run"]
    older = {"inputs", "seconds", "finished", "units"}
    rows = {
        key: {**{name: row[name] for name in older}, "outputs": list(row["outputs"])}
        for key, row in content.items()
    }
    write_json(run / "stages.json", rows)
    assert to_json(collect_tables([run])) == to_json(collect_tables([finished]))
    heard = Heard()
    with pytest.raises(RunError, match="made by an older dualtail"):
        run_pipeline(recipe_of(workshop), run, observer=heard)
    run_pipeline(recipe_of(workshop), run, update=True, observer=heard)
    assert heard.begun == []  # for the same inputs, which no older version writes
    flip(run / "adjusted" / "metrics.json", run)
    with pytest.raises(DualtailError, match=r"metrics.json: does not hold what the run wrote"):
        collect_tables([run])
