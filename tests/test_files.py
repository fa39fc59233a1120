from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from dualtail.errors import DataError, RunError
from dualtail.files import (
    atomic_folder,
    atomic_path,
    check_replaceable,
    fingerprint,
    read_json,
    write_csv,
    write_json,
    write_tensors,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "sub" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"a": float("nan")})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"), atomic_path(path) as temporary:
        fail(temporary)
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["sub", "sub/a.json"]


def test_a_flushed_write_is_a_write(tmp_path: Path):
    with atomic_path(tmp_path / "a", flush=True) as temporary:
        temporary.write_text("on the disk")
    assert (tmp_path / "a").read_text() == "on the disk"


def test_a_folder_takes_the_others_place_whole_or_not_at_all(tmp_path: Path):
    place = tmp_path / "model"
    for version in "ab":
        with atomic_folder(place) as temporary:
            write_text(temporary / version, version)
            (temporary / version).chmod(0o600)
    assert names(tmp_path) == ["model", "model/b"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert stat.S_IMODE((place / "b").stat().st_mode) == 0o644

    def stop(temporary: Path) -> None:
        write_text(temporary / "c", "c")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_folder(place) as temporary:
        stop(temporary)
    assert names(tmp_path) == ["model", "model/b"]


def test_a_folder_that_is_being_replaced_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "model"

    def write(version: str) -> None:
        with atomic_folder(place) as temporary:
            write_text(temporary / "a", version)
            write_text(temporary / "b", version)

    def stop(path: Path, **_: object) -> None:
        for file in path.glob("a"):
            file.unlink()
            raise KeyboardInterrupt

    write("old")
    monkeypatch.setattr("dualtail.files.shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        write("new")
    assert [(place / name).read_text() for name in "ab"] == ["new", "new"]


def test_tensors_are_written_as_they_lie(tmp_path: Path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.arange(6).view(2, 3).T}, {"format": "x-1"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "x-1"}
        assert file.get_tensor("a").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_csv_has_empty_cells_for_none(tmp_path: Path):
    write_csv(tmp_path / "a.csv", [{"a": 1, "b": None}, {"a": "x,y", "b": 0.5}])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n1,\n"x,y",0.5\n'


def test_json_faults_name_the_file(tmp_path: Path):
    with pytest.raises(RunError, match=r"a\.json: is missing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match=r"a\.json: cannot be read"):
        read_json(tmp_path / "a.json")


def test_tensors_without_metadata_are_the_bytes_of_safetensors(tmp_path: Path):
    """So that the digest of a file of weights does not depend on who wrote it."""
    tensors = {"x": torch.arange(3.0)}
    write_tensors(tmp_path / "x.safetensors", tensors)
    assert (tmp_path / "x.safetensors").read_bytes() == save(tensors)


def test_only_an_earlier_result_is_replaced(tmp_path: Path):
    folder = tmp_path / "model"
    check_replaceable(folder, "about.json", "model of ours")
    folder.mkdir()
    check_replaceable(folder, "about.json", "model of ours")
    (folder / "thesis.txt").write_text("years of work")
    for path in (folder, folder / "thesis.txt"):
        with pytest.raises(DataError, match="is there and is no model of ours; name a new folder"):
            check_replaceable(path, "about.json", "model of ours")
    (folder / "about.json").touch()
    check_replaceable(folder, "about.json", "model of ours")


def test_fingerprints_stay_what_they_were():
    """Stages of earlier runs are recorded by them."""
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}, "x") == "3fc730b52357041d30d7"
