from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtail.data import contents
from dualtail.data.contents import cache_folder, file_digest, read_contents
from dualtail.data.manifest import Manifest
from dualtail.data.readers import read_manifest

PAIR = (b"first pixels", b"other pixels")


@pytest.fixture
def read(monkeypatch, tmp_path) -> list[str]:
    """Files that were really read, with a cache of the test's own; changes settle at once."""
    monkeypatch.setenv("DUALTAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "SETTLED_NS", -(10**18))
    names: list[str] = []
    examine = contents._examine

    def listed(path: str, **how: object):
        names.append(os.path.basename(path))
        return examine(path, **how)

    monkeypatch.setattr(contents, "_examine", listed)
    return names


def write(root: Path, files: dict[str, bytes]) -> list[str]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return list(files)


def sha(content: bytes) -> list[int]:
    return list(hashlib.sha256(content).digest())


def test_other_pixels_of_the_same_name_size_and_time_are_another_data_set(tmp_path):
    paths = write(tmp_path, {"a.png": PAIR[0], "b.png": b"x", "c.png": b""})
    manifest = Manifest(tmp_path, paths, [0, 1, 1], ["train"] * 3, ("cat", "dog"))
    first = manifest.fingerprint()
    before = os.stat(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(PAIR[1])
    os.utime(tmp_path / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert manifest.fingerprint() != first
    (tmp_path / "a.png").write_bytes(PAIR[0])
    assert manifest.fingerprint() == first


@pytest.mark.parametrize("how", ["write", "replace", "mtime kept", "link"])
def test_a_file_is_read_once_and_again_when_it_changed(tmp_path, read, how):
    paths = write(tmp_path / "data", {"a.png": PAIR[0], "b.png": b"b"})
    changed, root = tmp_path / "data" / "a.png", tmp_path / "data"
    if how == "link":
        write(tmp_path, {"one": PAIR[0], "two": PAIR[1]})
        changed.unlink()
        changed.symlink_to(tmp_path / "one")
    assert read_contents(root, paths).digests.tolist() == [sha(PAIR[0]), sha(b"b")]
    assert sorted(read) == ["a.png", "b.png"]
    read.clear()
    assert read_contents(root, paths).digests.tolist() == [sha(PAIR[0]), sha(b"b")]
    assert read == []
    before = os.stat(changed)
    time.sleep(0.02)  # beyond one tick of the clock: what lies within is another test
    if how == "link":
        changed.unlink()
        changed.symlink_to(tmp_path / "two")
    elif how == "replace":
        write(tmp_path, {"new": PAIR[1]})
        os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(tmp_path / "new", changed)
    else:
        changed.write_bytes(PAIR[1])
    if how == "mtime kept":
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_contents(root, paths).digests.tolist() == [sha(PAIR[1]), sha(b"b")]
    assert read == ["a.png"]


def test_a_change_within_the_resolution_of_the_clock_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALTAIL_CACHE", str(tmp_path / "cache"))
    real = contents._state_of
    # A clock that stands still: neither time nor inode tells the two files apart.
    monkeypatch.setattr(contents, "_state_of", lambda status: (real(status)[0], 0, 0, 0))
    paths = write(tmp_path, {"a.png": PAIR[0]})
    assert read_contents(tmp_path, paths).digests.tolist() == [sha(PAIR[0])]
    write(tmp_path, {"a.png": PAIR[1]})
    assert read_contents(tmp_path, paths).digests.tolist() == [sha(PAIR[1])]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, read, monkeypatch):
    paths = write(tmp_path / "data", {"a.png": PAIR[0]})

    def decode(path, **_):
        Path(path).write_bytes(PAIR[1] + b"longer")

    monkeypatch.setattr(contents, "decode_image", decode)
    read_contents(tmp_path / "data", paths, decode=True)
    read.clear()
    assert read_contents(tmp_path / "data", paths).digests.tolist() == [sha(PAIR[1] + b"longer")]
    assert read == ["a.png"]


def test_files_that_cannot_be_read_are_named_and_tried_again(tmp_path, read, monkeypatch):
    root = tmp_path / "data"
    paths = write(root, {"a.png": b"a", "secret.png": b"s", "gone.png": b"g"})
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "loop.png").symlink_to("loop.png")
    paths += ["folder.png", "pipe.png", "loop.png", "none.png", "nul\0.png", "\ud800.png"]
    really = os.open

    def refuse(path, *args, **options):
        if str(path).endswith("secret.png"):
            raise PermissionError(13, "Permission denied", path)
        if str(path).endswith("gone.png"):
            os.unlink(path)  # between the look at its state and the reading
        return really(path, *args, **options)

    monkeypatch.setattr(contents.os, "open", refuse)
    faults = read_contents(root, paths).faults
    assert {paths[row]: what for row, what in faults.items()} == {
        "secret.png": "cannot be read (Permission denied)",
        "gone.png": "there is no such file",
        "folder.png": "this is no regular file",
        "pipe.png": "this is no regular file",
        "loop.png": "cannot be read (Too many levels of symbolic links)",
        "none.png": "there is no such file",
        "nul\0.png": "cannot be read (embedded null byte)",
        "\ud800.png": faults[paths.index("\ud800.png")],
    }
    monkeypatch.setattr(contents.os, "open", really)
    assert 1 not in read_contents(root, paths).faults


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), MemoryError()])
def test_a_fault_of_the_machine_is_not_remembered_of_the_image(tmp_path, read, monkeypatch, fault):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "data" / "a.png")

    def refuse(*arguments, **options):
        raise fault

    with monkeypatch.context() as patch, contextlib.suppress(MemoryError):
        patch.setattr(Image, "open", refuse)
        assert 0 in read_contents(tmp_path / "data", ["a.png"], decode=True).faults
    assert read_contents(tmp_path / "data", ["a.png"], decode=True).faults == {}


def test_too_many_open_files_are_no_fault_of_an_image(tmp_path, monkeypatch):
    paths = write(tmp_path, {"a.png": b"a"})

    def refuse(path, *args, **options):
        raise OSError(24, "Too many open files", path)

    monkeypatch.setattr(contents.os, "open", refuse)
    line = r"a\.png: cannot be read \(Too many open files\); raise the limit"
    with pytest.raises(contents.DataError, match=line):
        read_contents(tmp_path, paths, decode=True)


def test_whether_an_image_decodes_is_found_out_once(tmp_path, read, monkeypatch):
    root = tmp_path / "data"
    paths = write(root, {"bad.png": b"no image", "empty.png": b""})
    Image.new("RGB", (3, 3)).save(root / "good.png")
    paths.append("good.png")
    assert read_contents(root, paths).faults == {}
    expected = {0: "this is no image that Pillow can read", 1: "the file is empty"}
    read.clear()
    assert read_contents(root, paths, decode=True).faults == expected
    assert len(read) == 3, "the content alone was known"
    read.clear()
    assert read_contents(root, paths, decode=True).faults == expected
    assert read_contents(root, paths).faults == {}
    assert read == []
    limited = read_contents(root, paths, decode=True, max_pixels=8).faults
    assert sorted(limited) == [0, 1, 2], "another limit, another answer"


@pytest.mark.parametrize(
    "damage",
    [lambda c: b"", lambda c: c[:-20], lambda c: b"PAR1" + c[4:], lambda c: c[:40] + b"\xff" + c[41:]],
)
def test_a_damaged_memory_is_made_again(tmp_path, read, damage):
    paths = write(tmp_path / "data", {f"{n}.png": bytes([n]) for n in range(9)})
    first = read_contents(tmp_path / "data", paths).digests
    (file,) = (tmp_path / "cache" / "contents").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    read.clear()
    assert np.array_equal(read_contents(tmp_path / "data", paths).digests, first)
    assert np.array_equal(read_contents(tmp_path / "data", paths).digests, first)
    assert len(read) in (0, 9), "either the damage lies where nothing is stored, or all was read again, once"


def test_a_flipped_bit_of_the_memory_is_never_believed(tmp_path, read):
    paths = write(tmp_path / "data", {f"{n}.png": bytes([n]) for n in range(3)})
    first = read_contents(tmp_path / "data", paths).digests
    (file,) = (tmp_path / "cache" / "contents").iterdir()
    whole = bytearray(file.read_bytes())
    stored = [whole.index(digest.tobytes()) + 9 for digest in first]
    for place in [*stored, *range(4, len(whole), 97)]:
        whole[place] ^= 0x10
        file.write_bytes(whole)
        assert np.array_equal(read_contents(tmp_path / "data", paths).digests, first), place
        whole[place] ^= 0x10


def test_a_memory_that_cannot_be_written_costs_time_only(tmp_path, read, monkeypatch):
    paths = write(tmp_path / "data", {"a.png": b"a"})
    (tmp_path / "cache").write_bytes(b"a file")
    for home in (str(tmp_path / "cache"), "relative"):
        monkeypatch.setenv("DUALTAIL_CACHE", home)
        for _ in range(2):
            assert read_contents(tmp_path / "data", paths).digests.tolist() == [sha(b"a")]
    assert len(read) == 4
    assert cache_folder() is None


def test_an_interrupted_reading_goes_on(tmp_path, read):
    paths = write(tmp_path / "data", {f"{n}.png": b"%d" % n for n in range(500)})

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_contents(tmp_path / "data", paths, progress=stop)
    read.clear()
    steps: list[tuple[int, int]] = []
    read_contents(tmp_path / "data", paths, progress=lambda *step: steps.append(step))
    assert len(read) == 500 - contents._CHUNK
    assert steps[-1] == (len(read), len(read))


def test_many_small_files_links_duplicates_and_names_that_are_no_text(tmp_path, read):
    root = tmp_path / "train"
    for name, count in (("a", 2500), ("b", 2500)):
        write(root / name, {f"{n}.png": b"%d" % n for n in range(count)})
    os.link(root / "a" / "0.png", root / "a" / "hard.png")
    (root / "b" / "soft.png").symlink_to("../a/1.png")
    (root / "a" / "sub.jpg").mkdir()
    with open(os.fsencode(root / "a") + b"/\xff\xfe.png", "wb") as file:
        file.write(b"odd")
    odd = "train/a/\udcff\udcfe.png"
    assert read_contents(tmp_path, [odd]).digests.tolist() == [sha(b"odd")]
    os.unlink(tmp_path / odd)
    manifest = read_manifest("folder", tmp_path)
    assert len(manifest) == 5002
    twice = manifest.select([*range(len(manifest)), 0, 1])
    first = twice.fingerprint()
    read.clear()
    assert twice.fingerprint() == first
    assert read == []
    digests = read_contents(tmp_path, manifest.paths).digests
    assert digests[manifest.paths.index("train/a/hard.png")].tolist() == sha(b"0")
    assert digests[manifest.paths.index("train/b/soft.png")].tolist() == sha(b"1")


def test_one_file(tmp_path):
    write(tmp_path, {"a": b"a" * 10_000_000})
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"a" * 10_000_000).hexdigest()
    with pytest.raises(contents.DataError, match="b: there is no such file"):
        file_digest(tmp_path / "b")
