from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dualtail.errors import RunError
from dualtail.files import write_json
from dualtail.runs.records import StageRecords


def write(root: Path, *names: str) -> list[Path]:
    paths = [root / name for name in names]
    for path in paths:
        write_json(path, {})
    return paths


def test_a_unit_is_done_only_for_its_inputs_and_while_its_files_are_there(tmp_path: Path):
    records = StageRecords(tmp_path)
    assert not records.is_done("prior/a", "f1")
    (path,) = write(tmp_path, "a/prior.json")
    records.add("prior/a", "f1", [path], 1.0)
    assert records.is_done("prior/a", "f1", [path])
    assert not records.is_done("prior/a", "f2", [path])
    assert not records.is_done(
        "prior/a", "f1", [path, tmp_path / "a" / "groups.json"]
    )  # of an older dualtail
    path.unlink()
    assert not records.is_done("prior/a", "f1", [path])


def test_a_withdrawn_record_vouches_for_nothing_and_still_knows_its_files(tmp_path: Path):
    records = StageRecords(tmp_path)
    records.add("prior/a", "f1", write(tmp_path, "a/x", "a/y"), 1.0)
    records.withdraw(["prior/a", "prior/unknown"])
    assert not records.is_done("prior/a", "f1")
    assert records.inputs_of("prior/a") is None
    assert records.read() == {}
    assert records.of_stage("prior") == ["prior/a"]
    records.add("prior/a", "f2", [tmp_path / "a" / "y"], 2.0)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["y"]
    assert records.read()["prior/a"].seconds == 2.0


def test_what_is_forgotten_leaves_neither_files_nor_an_empty_folder(tmp_path: Path):
    records = StageRecords(tmp_path)
    records.add("prior/a", "f1", write(tmp_path, "a/x"), 1.0)
    records.add("prior/b", "f1", write(tmp_path, "b/x"), 1.0)
    write(tmp_path, "b/of_another_stage")
    records.forget(["prior/a", "prior/b", "prior/unknown"])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "b", "b/of_another_stage", "stages.json",
    ]  # fmt: skip
    assert json.loads(records.path.read_text()) == {}


def test_files_that_are_being_forgotten_are_vouched_for_by_nothing_and_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    records = StageRecords(tmp_path)
    (path,) = write(tmp_path, "a/x")
    records.add("prior/a", "f1", [path], 1.0)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageRecords, "_delete", stopped)
        with pytest.raises(KeyboardInterrupt):
            records.forget(["prior/a"])
    assert not records.is_done("prior/a", "f1", [path])
    records.forget(records.of_stage("prior"))
    assert not path.exists()
    assert json.loads(records.path.read_text()) == {}


def test_older_records_do_not_say_how_many_units_their_time_is_of(tmp_path: Path):
    records = StageRecords(tmp_path)
    records.add("logits/a", "f1", [], 1.5, units=3)
    assert records.read()["logits/a"].units == 3
    content = json.loads(records.path.read_text())
    del content["logits/a"]["units"], content["logits/a"]["seal"]
    content["logits/a"]["outputs"] = []
    write_json(records.path, content)
    assert records.read()["logits/a"].units is None


def test_a_file_of_the_same_size_and_time_is_known_by_its_content(tmp_path: Path):
    records = StageRecords(tmp_path)
    (path,) = write(tmp_path, "a/x")
    before = path.stat()
    records.add("prior/a", "f1", [path], 1.0)
    assert records.verify(path) == path
    path.write_text("[]\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(
        RunError, match=r"a/x: does not hold what the run wrote.*'dualtail run' .* makes it again"
    ):
        records.verify(path)
    assert not records.is_done("prior/a", "f1", [path])
    path.unlink()
    assert records.has(path)
    with pytest.raises(RunError, match="a/x: is missing"):
        records.verify(path)
    assert records.verify(tmp_path / "of_nobody") == tmp_path / "of_nobody"
    assert not records.has(tmp_path / "of_nobody")


def test_a_file_is_hashed_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records = StageRecords(tmp_path)
    (path,) = write(tmp_path, "a/x")
    records.add("prior/a", "f1", [path], 1.0)

    def read(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("builtins.open", read)
    for _ in range(3):
        assert records.is_done("prior/a", "f1", [path])
        records.verify(path)


def test_the_run_is_whole_until_a_stage_writes_something_else(tmp_path: Path):
    records = StageRecords(tmp_path)
    (path,) = write(tmp_path, "a/x")
    records.add("prior/a", "f1", [path], 1.0)
    assert not records.closed
    records.close([])
    assert records.closed
    assert records.is_whole
    assert "run" not in records.read()
    records.withdraw(["prior/a"])
    assert records.is_whole  # the files are still those
    write_json(path, [1])
    records.add("prior/a", "f2", [path], 1.0)
    assert not records.is_whole
    records.close([])
    assert records.is_whole
