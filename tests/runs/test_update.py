"""What stands while an update has not finished: stale or unfinished, never new settings over old numbers."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from dualtail.errors import DualtailError, RunError
from dualtail.files import write_json
from dualtail.report.export import write_tables
from dualtail.report.page import write_page
from dualtail.report.provenance import describe_provenance
from dualtail.report.terminal import print_runs
from dualtail.runs.directory import RunDirectory
from dualtail.runs.finished import read_results
from dualtail.runs.observer import Observer
from dualtail.runs.pipeline import run_pipeline
from dualtail.runs.predict import predict_images
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import apply_override, parse_recipe
from dualtail.runs.stages.adjust import AdjustStage
from dualtail.runs.stages.attribution import AttributionStage
from dualtail.runs.stages.finetune import FinetuneStage


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def recipe_of(workshop: Path, *overrides: str) -> Recipe:
    content: dict[str, Any] = yaml.safe_load((workshop / "recipe.yaml").read_text())
    content["data"]["root"] = str(workshop / "images")
    content["members"] = [{**content["members"][0], "backbone": f"open_clip:{workshop / 'tiny_a'}"}]
    for override in ("finetune.epochs=1", "evaluate.attribution={images: 2, steps: 2}", *overrides):
        content = apply_override(content, override)
    return parse_recipe(content)


@pytest.fixture(scope="module")
def finished(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(recipe_of(workshop), tmp_path_factory.mktemp("update") / "run").root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def stop(*_: object) -> None:
    raise DualtailError("stopped")


def stop_in(stage: type, method: str, recipe: Recipe, run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, method, stop)
        with pytest.raises(DualtailError, match="stopped"):
            run_pipeline(recipe, run, update=True)


def test_a_finished_run_has_one_recipe_and_nothing_to_say(run: Path):
    assert not (run / "asked.yaml").exists()
    assert RunDirectory.read(run).standing() is None


def test_an_update_that_failed_before_it_changed_anything_leaves_stale_results(
    run: Path, workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = read_results(run).members[0].training
    stop_in(FinetuneStage, "compute", recipe_of(workshop, "finetune.epochs=9"), run)
    results = read_results(run)
    assert results.recipe.finetune.epochs == 1
    assert results.members[0].training == before
    line = "stale: an update of the run (finetune.epochs) has not finished; these results belong to the recipe before"
    assert results.stale is not None
    assert results.stale.startswith(line)
    assert line in write_page([run], tmp_path / "page.html").read_text()
    printed = io.StringIO()
    print_runs([run], Console(file=printed, width=200))
    assert line in printed.getvalue()
    write_tables([run], "csv", tmp_path / "tables.csv")
    assert line in capsys.readouterr().err
    notes = Notes()
    image = next((workshop / "images" / "test" / "blue jay").iterdir())
    predict_images(run, [str(image)], device="cpu", observer=notes)
    assert notes.notes[0].startswith(line)


def test_going_back_or_on_ends_it(run: Path, workshop: Path):
    asked = recipe_of(workshop, "finetune.epochs=2")
    stop_in(FinetuneStage, "compute", asked, run)
    with pytest.raises(RunError, match=r"belongs to another recipe \(finetune.epochs\)"):
        RunDirectory.open(run, recipe_of(workshop, "finetune.epochs=3"))
    RunDirectory.open(run, recipe_of(workshop)).close()
    RunDirectory.open(run, asked, update=True).close()
    run_pipeline(asked, run)
    results = read_results(run)
    assert (results.stale, results.recipe.finetune.epochs) == (None, 2)
    assert results.members[0].training is not None
    assert len(results.members[0].training.history) == 2


def test_an_update_that_changed_some_stages_is_unfinished(run: Path, workshop: Path):
    stop_in(AdjustStage, "write", recipe_of(workshop, "finetune.epochs=2"), run)
    for read in (read_results, lambda run: predict_images(run, ["x.png"], device="cpu")):
        with pytest.raises(
            RunError, match=r"the run is unfinished: an update stopped .* goes on where it was"
        ):
            read(run)


def test_an_update_killed_at_a_rename_and_the_old_recipe_is_the_old_run(
    run: Path, workshop: Path, finished: Path
):
    def half(self: FinetuneStage, unit: str, computed: object) -> None:
        first, _ = self.context.run.member(unit).classifier
        first.write_bytes(b"of the new recipe")
        raise DualtailError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneStage, "write", half)
        with pytest.raises(DualtailError, match="stopped"):
            run_pipeline(recipe_of(workshop, "finetune.learning_rate=0.5"), run, update=True)
    image = next((workshop / "images" / "test" / "blue jay").iterdir())
    with pytest.raises(RunError, match=r"trainable.safetensors: does not hold what the run wrote"):
        predict_images(run, [str(image)], device="cpu")
    run_pipeline(recipe_of(workshop), run)
    for name in ("members/tiny_a/trainable.safetensors", "adjusted/metrics.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_a_first_run_that_stopped_is_unfinished_though_its_figures_are_there(workshop: Path, tmp_path: Path):
    stop_in(AttributionStage, "write", recipe_of(workshop), tmp_path)
    assert (tmp_path / "adjusted" / "metrics.json").exists()
    with pytest.raises(RunError, match="the run is unfinished: it stopped between two stages"):
        read_results(tmp_path)


def test_facts_of_the_data_wait_for_the_results(run: Path, workshop: Path):
    before = json.loads((run / "provenance.json").read_text())["data"]
    stop_in(FinetuneStage, "compute", recipe_of(workshop, "data.long_tail={ratio: 2}"), run)
    assert read_results(run).provenance["data"] == before


def test_other_versions_are_told_and_redo_nothing(run: Path, workshop: Path):
    records = RunDirectory.read(run).records
    record = records.read()["logits/tiny_a"]
    assert {"dualtail", "torch", "open_clip_torch", "timm"} <= record.versions.keys()
    known = records._all()
    known["logits/tiny_a"] = type(record)(
        **{**vars(record), "versions": {**record.versions, "timm": "0.0.1"}}
    )
    records._write(known)
    notes = Notes()
    run_pipeline(recipe_of(workshop), run, observer=notes)
    line = next(
        note for note in notes.notes if note.startswith("logits/tiny_a: made with timm 0.0.1 (in use: ")
    )
    assert records.read()["logits/tiny_a"].finished == record.finished
    facts = describe_provenance(read_results(run)).facts
    assert line in [row["value"] for row in facts.rows]


def test_results_without_records_are_said_to_have_none(run: Path):
    (run / "stages.json").unlink()
    assert "stages.json is missing" in (RunDirectory.read(run).standing() or "")


def test_a_record_that_is_not_as_it_was_written_vouches_for_nothing(run: Path):
    content = json.loads((run / "stages.json").read_text())
    content["adjust"]["seconds"] += 1
    write_json(run / "stages.json", content)
    assert "adjust" not in RunDirectory.read(run).records.read()
