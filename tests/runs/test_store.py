from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dualtail.errors import RunError
from dualtail.runs.recipe import Recipe, parse_recipe
from dualtail.runs.store import (
    RunDirectory,
    SplitLogits,
    atomic_path,
    fingerprint,
    read_csv,
    read_logits,
    write_csv,
    write_json,
    write_logits,
)


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe({"name": "x", "data": {"root": "/d"}, "members": [{"backbone": "timm:a"}]})


def test_logits_come_back_as_they_went(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    val = SplitLogits(
        torch.randn(3, 4, generator=generator),
        torch.tensor([0, 3, 1]),
        ("a b.png", "naïve/ß.jpg", "line\nbreak.png"),
        torch.randn(3, 5, generator=generator),
    )
    write_logits(tmp_path / "m" / "logits.safetensors", {"val": val})
    again = read_logits(tmp_path / "m" / "logits.safetensors", "val", features=True)
    assert torch.equal(again.logits, val.logits)
    assert torch.equal(again.labels, val.labels)
    assert again.sample_ids == val.sample_ids
    assert again.features is not None
    assert again.features.dtype == torch.float16
    assert read_logits(tmp_path / "m" / "logits.safetensors", "val").features is None
    with pytest.raises(RunError, match="has no split 'test'"):
        read_logits(tmp_path / "m" / "logits.safetensors", "test")


def test_a_broken_or_missing_logits_file_is_named(tmp_path: Path):
    path = tmp_path / "logits.safetensors"
    with pytest.raises(RunError, match="is missing"):
        read_logits(path, "val")
    path.write_bytes(b"not safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        read_logits(path, "val")


def _write_half(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError):
        _write_half(path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_csv_round_trip(tmp_path: Path):
    write_csv(tmp_path / "t.csv", [{"name": 'a, "b"\n', "n": 1, "x": None}])
    assert read_csv(tmp_path / "t.csv") == [{"name": 'a, "b"\n', "n": "1", "x": ""}]


def test_fingerprints_tell_inputs_apart():
    assert fingerprint(1, "a") != fingerprint("1", "a")
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_stages_are_done_only_for_their_inputs(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path / "run", recipe) as run:
        assert not run.is_done("prior", "f1")
        write_json(run.root / "a" / "prior.json", {})
        run.mark_done("prior", "f1", [run.root / "a" / "prior.json"], 1.0)
        assert run.is_done("prior", "f1")
        assert not run.is_done("prior", "f2")
        (run.root / "a" / "prior.json").unlink()
        assert not run.is_done("prior", "f1")


def test_a_directory_of_another_recipe_is_refused_with_both_ways_out(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe) as run:
        run.mark_done("prior", "f1", [], 1.0)
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(RunError) as error:
        RunDirectory.open(tmp_path, other)
    assert str(error.value) == (
        f"{tmp_path}: belongs to another recipe (seed); choose another --out, or add --update to go on here and "
        "redo only the stages it changes"
    )
    with RunDirectory.open(tmp_path, other, update=True):
        assert RunDirectory.read(tmp_path).recipe == other


def test_a_directory_without_results_is_free(tmp_path: Path, recipe: Recipe):
    RunDirectory.open(tmp_path, recipe).close()
    RunDirectory.open(tmp_path, recipe.model_copy(update={"seed": 7})).close()


def test_outputs_that_are_nobodys_any_more_are_deleted(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe) as run:
        for name in ("a", "b"):
            write_json(tmp_path / f"{name}.json", {})
        run.mark_done("prior", "f1", [tmp_path / "a.json", tmp_path / "b.json"], 1.0)
        run.mark_done("prior", "f2", [tmp_path / "b.json"], 1.0)
        assert not (tmp_path / "a.json").exists()
        run.forget("prior")
        assert not (tmp_path / "b.json").exists()
        assert run.stages() == {}


def test_runtime_settings_do_not_make_another_recipe(tmp_path: Path, recipe: Recipe):
    with RunDirectory.open(tmp_path, recipe) as run:
        run.mark_done("prior", "f1", [], 1.0)
    slower = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"workers": 0})})
    RunDirectory.open(tmp_path, slower).close()


def test_a_foreign_directory_is_left_alone(tmp_path: Path, recipe: Recipe):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and is not a run directory"):
        RunDirectory.open(tmp_path, recipe)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


OPEN_AGAIN = """
import sys
from dualtail.errors import RunError
from dualtail.runs.recipe import read_recipe
from dualtail.runs.store import RunDirectory
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
        run.write_provenance()
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["versions"]["torch"]
    write_json(tmp_path / "provenance.json", {**provenance, "format_version": 99})
    with pytest.raises(RunError, match="format 99"):
        RunDirectory.read(tmp_path)
