from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dualtail.data.manifest import Manifest, read_class_names, relative_to_root
from dualtail.data.readers import read_manifest
from dualtail.errors import DataError, InputError


def make(**changes):
    given = {
        "root": Path("."),
        "paths": ("a", "b", "c"),
        "labels": [0, 1, 1],
        "splits": ["train", "val", "test"],
        "class_names": ("cat", "dog"),
    }
    return Manifest(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1]}, "3 paths, 2 labels and 3 splits"),
        ({"labels": [0, 1, 2]}, "outside 0 to 1"),
        ({"labels": [0, -1, 1]}, "outside 0 to 1"),
        ({"splits": ["train", "val", "dev"]}, "unknown split 'dev'"),
        ({"group_counts": [1, 2, 3]}, "3 entries for 2 classes"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "cat"), "classes 0 and 1 are both named 'cat'"),
        (("cat", " "), "the name of class 1 is empty"),
        (("cat",), "1 class; a classifier needs at least 2"),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(names, message):
    with pytest.raises(DataError, match=message):
        make(class_names=names, labels=[0, 0, 0])


def test_split_keeps_order_and_classes():
    manifest = make(splits=["val", "train", "val"])
    val = manifest.split("val")
    assert val.paths == ("a", "c")
    assert val.labels.tolist() == [0, 1]
    assert val.class_names == manifest.class_names
    assert len(manifest.split("test")) == 0
    assert manifest.split_sizes == {"train": 1, "val": 2}
    with pytest.raises(InputError, match="unknown split 'dev'"):
        manifest.split("dev")


def test_fingerprint_sees_every_part_but_not_the_root(write_tree, tmp_path):
    root = write_tree({"train": {"cat": 2, "dog": 1}})
    manifest = read_manifest("folder", root)
    first = manifest.fingerprint()
    moved = tmp_path / "moved"
    root.rename(moved)
    again = read_manifest("folder", moved)
    assert again.fingerprint() == first
    variants = [
        Manifest(moved, manifest.paths, 1 - manifest.labels, manifest.splits, manifest.class_names),
        Manifest(moved, manifest.paths, manifest.labels, ["val", "train", "train"], manifest.class_names),
        Manifest(moved, manifest.paths, manifest.labels, manifest.splits, ("cat", "wolf")),
        again.select([1, 0, 2]),
        again.with_note("counts", group_counts=[5, 6]),
    ]
    (moved / manifest.paths[0]).write_bytes(b"another size")
    variants.append(again)
    assert len({first, *(variant.fingerprint() for variant in variants)}) == 7


def test_notes_do_not_change_the_fingerprint():
    assert make().with_note("said").fingerprint() == make().fingerprint()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_round_trip(tmp_path, suffix):
    manifest = make(class_names=("zebra, striped", "ant"), paths=('a "b", c.png', "é.png", "/abs/c.png"))
    manifest = Manifest(
        tmp_path, *(getattr(manifest, k) for k in ("paths", "labels", "splits", "class_names"))
    )
    manifest.to_table(tmp_path / f"t{suffix}")
    options = {"class_names": manifest.class_names} if suffix == ".csv" else {}
    again = read_manifest("table", tmp_path, file=f"t{suffix}", allow_outside=True, **options)
    assert again.paths == manifest.paths
    assert again.class_names == manifest.class_names
    assert np.array_equal(again.labels, manifest.labels)
    assert np.array_equal(again.splits, manifest.splits)
    assert [path.name for path in tmp_path.iterdir()] == [f"t{suffix}"]


@pytest.mark.parametrize(
    ("suffix", "writer"), [(".csv", "csv.write_csv"), (".parquet", "parquet.write_table")]
)
def test_a_table_that_cannot_be_written_leaves_nothing_and_harms_nothing(
    tmp_path, monkeypatch, suffix, writer
):
    def full(table, path):
        Path(path).write_text("path,lab")
        raise OSError(28, "No space left on device")

    (tmp_path / f"t{suffix}").write_text("before")
    monkeypatch.setattr(f"dualtail.data.manifest.{writer}", full)
    with pytest.raises(OSError, match="No space left"):
        make().to_table(tmp_path / f"t{suffix}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {f"t{suffix}": "before"}


def test_table_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"use \.csv or \.parquet"):
        make().to_table(tmp_path / "new" / "t.xlsx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("cat\n\nbig dog\n", ".txt"),
        ('["cat", "big dog"]', ".json"),
        ('{"0": "cat", "1": "big dog"}', ".json"),
        ('{"big dog": 1, "cat": 0}', ".json"),
    ],
)
def test_class_names_files(tmp_path, text, suffix):
    (tmp_path / f"names{suffix}").write_text(text)
    assert read_class_names(f"names{suffix}", tmp_path) == ("cat", "big dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"0": "cat", "2": "dog"}', "the ids are not 0 to 1"),
        ('{"a": "b"}', "these are no class names"),
        ("3", "no JSON list or object"),
        ('["cat",', "cannot read the class names"),
        ('["cat", 3]', "the name of class 1 is empty or no text: 3"),
    ],
)
def test_broken_class_names_files(tmp_path, text, message):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_class_names("names.json", tmp_path)
    assert "names.json" in str(caught.value)


def test_missing_class_names_file(tmp_path):
    with pytest.raises(DataError, match=r"names\.txt: cannot read the class names: No such file"):
        read_class_names("names.txt", tmp_path)


def test_paths_outside_the_root_stay_absolute():
    assert relative_to_root("../other/a.png", Path("/data/set")) == "/data/other/a.png"
    assert relative_to_root("./x/../a.png", Path("/data/set")) == "a.png"
