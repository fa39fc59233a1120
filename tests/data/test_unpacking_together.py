"""Several runs that unpack one archive at the same time, and what a killed one leaves."""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtail.data.filled_folder import ABOUT, alone_with, fill_folder
from dualtail.data.manifest import Manifest
from dualtail.data.readers import read_manifest
from dualtail.errors import DataError, RunError

FORK = multiprocessing.get_context("fork")


def write_shard(path: Path, images: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(images):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
            for suffix, content in ((".png", file.getvalue()), (".cls", str(number % 2).encode())):
                entry = tarfile.TarInfo(f"{number:04d}{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def unpack(root: Path) -> Manifest:
    return read_manifest("webdataset", root, train="train.tar", test="test.tar")


def unpack_and_tell(root: Path, start, told) -> None:
    start.wait()
    try:
        manifest = unpack(root)
        told.put(sum(Path(manifest.file(row)).is_file() for row in range(len(manifest))))
    except BaseException as error:
        told.put(f"{type(error).__name__}: {error}")


def test_runs_that_unpack_one_archive_together_all_end_well(tmp_path: Path):
    write_shard(tmp_path / "train.tar", 120)
    write_shard(tmp_path / "test.tar", 10)
    start, told = FORK.Barrier(6), FORK.Queue()
    processes = [FORK.Process(target=unpack_and_tell, args=(tmp_path, start, told)) for _ in range(6)]
    for process in processes:
        process.start()
    assert [told.get(timeout=60) for _ in processes] == [130] * 6
    for process in processes:
        process.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "test.tar", "train.tar"]


def test_what_a_killed_process_unpacked_is_swept_and_unpacked_again(tmp_path: Path):
    write_shard(tmp_path / "train.tar", 4)
    write_shard(tmp_path / "test.tar", 2)

    def die() -> None:
        with alone_with(tmp_path / "images"), fill_folder(tmp_path / "images", {}) as folder:
            (folder / "half.png").touch()
            os._exit(9)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
    (tmp_path / ".images.mine.tmp").mkdir()
    assert unpack(tmp_path).split_sizes == {"train": 4, "test": 2}
    # Somebody's file with a name like ours is no leftover.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".images.mine.tmp",
        "images",
        "test.tar",
        "train.tar",
    ]


def test_who_comes_later_waits_for_who_fills(tmp_path: Path):
    held = FORK.Event()

    def fill() -> None:
        with alone_with(tmp_path / "images"):
            held.set()
            time.sleep(0.4)
            with fill_folder(tmp_path / "images", {"by": "first"}):
                pass

    process = FORK.Process(target=fill)
    process.start()
    assert held.wait(20)
    with alone_with(tmp_path / "images") as about:
        assert about == {"by": "first"}
    process.join()


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_notes_that_are_damaged_are_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ABOUT).write_bytes(content)
    with pytest.raises((DataError, RunError)) as caught, alone_with(tmp_path / "images"):
        pass
    assert str(tmp_path / "images" / ABOUT) in str(caught.value)
