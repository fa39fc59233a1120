from __future__ import annotations

import hashlib

import numpy as np
import pytest

from dualtail.data.images import decode_image
from dualtail.data.readers import read_manifest
from dualtail.data.transforms import build_augmentation, eval_transform
from dualtail.errors import DataError
from dualtail.imagespec import ImageSpec
from dualtail.lab.task import draw_task, train_counts, write_task
from dualtail.lab.world import Task, World

WORLD = World(classes=6, task=Task(largest=20, ratio=10, val_per_class=2, test_per_class=3))


def test_counts_are_a_long_tail_in_an_order_of_the_tasks_own() -> None:
    counts = train_counts(WORLD)
    assert sorted(counts) == [2, 3, 5, 7, 12, 20]
    assert not np.array_equal(np.sort(counts)[::-1], train_counts(WORLD.model_copy(update={"seed": 1})))
    balanced = train_counts(WORLD, balanced=True)
    assert len(set(balanced)) == 1
    assert balanced.sum() == pytest.approx(counts.sum(), abs=len(counts))


def test_val_and_test_do_not_depend_on_the_training_set() -> None:
    one, other = draw_task(WORLD), draw_task(WORLD, balanced=True)
    for split in ("val", "test"):
        assert np.array_equal(one[split].images, other[split].images)
    assert not np.array_equal(one["val"].images[:12], one["test"].images[:12])


def test_the_files_are_the_images(tmp_path) -> None:
    written = write_task(WORLD, tmp_path / "task")
    manifest = read_manifest("folder", tmp_path / "task")
    assert written.fingerprint() == manifest.fingerprint()
    assert manifest.class_names == WORLD.class_names
    assert np.array_equal(manifest.counts("train"), train_counts(WORLD))
    spec, drawn = ImageSpec(32), draw_task(WORLD)
    for split in ("train", "val", "test"):
        part = manifest.split(split)
        assert np.array_equal(part.labels, drawn[split].labels)
        # The pipeline's preprocessing takes the margin off and gives the drawn pixels back.
        transform = (
            build_augmentation(spec, "resize", resize=36) if split == "train" else eval_transform(spec)
        )
        for row in range(len(part.labels)):
            assert np.array_equal(transform(decode_image(part.file(row))).numpy(), drawn[split].images[row])


def test_the_table_names_every_factor(tmp_path) -> None:
    write_task(WORLD, tmp_path / "task")
    table = read_manifest("table", tmp_path / "task", file="manifest.csv")
    folder = read_manifest("folder", tmp_path / "task")
    assert set(table.paths) == set(folder.paths)
    assert table.class_names == folder.class_names
    head = (tmp_path / "task" / "manifest.csv").read_text().splitlines()[0]
    assert head == "path,label,split,shape,texture,colour,border,background"


def test_the_same_world_gives_the_same_files(tmp_path) -> None:
    def digest(folder) -> str:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    write_task(WORLD, tmp_path / "a")
    write_task(WORLD, tmp_path / "b")
    write_task(WORLD, tmp_path / "b")  # over an earlier one
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_nothing_is_overwritten(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="no task of the lab"):
        write_task(WORLD, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
