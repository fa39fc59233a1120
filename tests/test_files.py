from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from dualtail.errors import DataError, FileError, RunError
from dualtail.files import (
    atomic_folder,
    atomic_path,
    check_replaceable,
    fingerprint,
    read_json,
    sweep_temporaries,
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


# Faults of the operating system.


@pytest.fixture
def umask_27():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_modes_are_those_of_the_umask(tmp_path: Path, umask_27: None):
    write_text(tmp_path / "sub" / "a.txt", "a")
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    with atomic_folder(tmp_path / "model") as temporary:
        write_tensors(temporary / "b.safetensors", {"a": torch.zeros(1)})
        (temporary / "deep").mkdir()
        (temporary / "deep" / "private").touch(0o600)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {name: modes.pop(name) for name in ("sub", "model", "deep")} == dict.fromkeys(
        ("sub", "model", "deep"), 0o750
    )
    assert modes == dict.fromkeys(("a.txt", "a.safetensors", "b.safetensors", "private"), 0o640)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("place", ["replace", "fsync", "open"])
def test_a_fault_at_any_step_is_a_line_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, place: str
):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"dualtail.files.os.{place}", fail)
        with pytest.raises(FileError) as caught:
            write_json(path, {"a": 2})
    assert str(caught.value).startswith(f"{path}: cannot be written ({os.strerror(number)}); ")
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["a.json"]


def test_tensors_on_a_full_disk_are_a_line(tmp_path: Path):
    path = tmp_path / "t.safetensors"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(FileError) as caught:
            write_tensors(path, {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert str(caught.value).startswith(f"{path}: cannot be written (File too large); raise the limit")
    assert names(tmp_path) == []


def test_a_file_where_a_folder_should_be_and_the_reverse(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "x").mkdir(parents=True)
    for path, reason in ((tmp_path / "file" / "a.json", "File exists"), (tmp_path / "folder", "Is a directory"),
                         (tmp_path / ("n" * 300), "File name too long")):  # fmt: skip
        with pytest.raises(FileError, match=reason) as caught:
            write_json(path, {})
        assert caught.value.fix
    write_json(tmp_path / ("é" * 125), {})  # as long as a name may be
    assert len(names(tmp_path)) == 4


def test_leftovers_of_killed_writers_are_swept_and_nothing_else(tmp_path: Path):
    ours = [".a.json.123.tmp", ".a.json.123-0123abcd.tmp", ".tmpA1b2C3"]
    theirs = [".a.tmp", "a.123.tmp", ".tmp", ".tmpfiles"]
    for name in (*ours, *theirs):
        (tmp_path / name).touch()
    (tmp_path / ".folder.1-89abcdef.tmp" / "x").mkdir(parents=True)
    sweep_temporaries(tmp_path)
    assert names(tmp_path) == sorted(theirs)


class Disk:
    """What the disk holds for certain: content by fsync of the file, names by fsync of the folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.content: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        fsync = os.fsync

        def watched(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self.names[path.stat().st_ino] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
            else:
                self.content[path.stat().st_ino] = path.read_bytes()

        monkeypatch.setattr("dualtail.files.os.fsync", watched)

    def holds(self, path: Path, root: Path) -> bool:
        """Whether a file as it is now, and every folder from the root to it, survives the loss of power."""
        above = [folder for folder in path.parents if folder.is_relative_to(root) and folder != root]
        for name in (path, *above):
            if self.names.get(name.parent.stat().st_ino, {}).get(name.name) != name.stat().st_ino:
                return False
        return self.content.get(path.stat().st_ino) == path.read_bytes()


def test_what_was_written_survives_the_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = Disk(monkeypatch)
    write_json(tmp_path / "new" / "deep" / "a.json", {"a": 1})
    write_json(tmp_path / "new" / "deep" / "a.json", {"a": 2})
    write_tensors(tmp_path / "new" / "t.safetensors", {"a": torch.zeros(1)})
    with atomic_folder(tmp_path / "images") as folder:
        (folder / "train").mkdir()
        (folder / "train" / "1.png").write_bytes(b"png")
    with atomic_path(tmp_path / "copy.jpg", flush=False) as temporary:
        temporary.touch()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    lost = [path.name for path in files if not disk.holds(path, tmp_path)]
    assert len(files) == 4
    assert lost == ["copy.jpg"]
