from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dualtail.data.problems import DataFaults
from dualtail.data.readers import READERS, read_manifest
from dualtail.errors import DataError
from dualtail.testing.data import READER_CHECKS, ReaderCase, documented


def test_every_reader_is_documented_and_has_keyword_options():
    for kind, reader in READERS.items():
        documented(ReaderCase(reader, Path()))
        assert "root" not in READERS.options(kind)


def of_a_folder(write_tree):
    return ReaderCase(READERS["folder"], write_tree({"train": {"dog": 2, "cat": 3}, "test": {"dog": 1}}))


def of_a_table(write_tree):
    root = write_tree({"train": {"dog": 2, "cat": 1}})
    rows = ["train/dog/dog 1.png,dog,train", "train/cat/cat 0.png,cat,train", "train/dog/dog 0.png,dog,test"]
    (root / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    return ReaderCase(READERS["table"], root, {"file": "all.csv"})


def of_lists(write_tree):
    root = write_tree({"train": {"dog": 2}})
    (root / "train.txt").write_text("train/dog/dog 1.png 1\ntrain/dog/dog 0.png 0\n")
    return ReaderCase(READERS["lists"], root, {"train": "train.txt", "class_names": ["cat", "dog"]})


def of_parquet_files(write_tree):
    root = write_tree({"train": {"dog": 2}})
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(root.rglob("*.png"))]
    table = pa.table({"image": images, "label": pa.array(["dog", "cat"])})
    (root / "data").mkdir()
    parquet.write_table(table, root / "data/train-00000-of-00001.parquet")
    return ReaderCase(READERS["hugging_face"], root)


def of_shards(write_tree):
    root = write_tree({"train": {"dog": 2}})
    with tarfile.open(root / "train-000.tar", "w") as tar:
        for number, file in enumerate(sorted(root.rglob("*.png"))):
            (root / "label").write_text(str(number))
            tar.add(file, f"{number}.png")
            tar.add(root / "label", f"{number}.cls")
    return ReaderCase(READERS["webdataset"], root, {"train": "train-*.tar", "class_names": ["cat", "dog"]})


OF_ONES_OWN = {
    "folder": of_a_folder,
    "table": of_a_table,
    "lists": of_lists,
    "hugging_face": of_parquet_files,
    "webdataset": of_shards,
}


def test_the_matrix_has_every_reader():
    # Those of the benchmarks read the official files alone, as test_benchmarks.py has them.
    benchmarks = {"imagenet_lt", "places_lt", "inaturalist_2018", "cifar10_lt", "cifar100_lt"}
    assert set(OF_ONES_OWN) | benchmarks == set(READERS)


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", OF_ONES_OWN)
def test_what_every_reader_promises(write_tree, kind, check):
    check(OF_ONES_OWN[kind](write_tree))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("foldr", {}, "unknown reader 'foldr'; did you mean 'folder'?"),
        ("folder", {"tran": "x"}, "has no option 'tran'; did you mean 'train'?"),
        (["folder"], {}, "unknown reader ['folder']"),
        (7, {}, "unknown reader 7; choose from folder, table"),
        ("folder", {"kind": "x"}, "the reader 'folder' has no option 'kind'"),
        ("folder", {"root": "x"}, "the reader 'folder' has no option 'root'"),
        ("folder", {"zzz": "x"}, "it takes train, val, test, class_names"),
        ("table", {}, "the reader 'table' needs the option 'file'"),
    ],
)
def test_wrong_kind_or_option(tmp_path, kind, options, message):
    with pytest.raises(DataError) as caught:
        read_manifest(kind, tmp_path, **options)
    assert message in str(caught.value)


def test_missing_root(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        read_manifest("folder", tmp_path / "none")


# --- folder


def test_folder_tree(write_tree):
    root = write_tree({"train": {"dog": 2, "cat": 3}, "test": {"cat": 1, "dog": 1}})
    manifest = read_manifest("folder", root)
    assert manifest.class_names == ("cat", "dog")
    assert manifest.split_sizes == {"train": 5, "test": 2}
    assert manifest.counts().tolist() == [3, 2]
    assert manifest.paths[0] == "train/cat/cat 0.png"
    assert os.path.isfile(manifest.file(0))
    assert manifest.notes == ()


def test_folder_ignores_what_is_no_image_and_says_so(write_tree):
    root = write_tree({"train": {"dog": 2, "cat": 3}})
    (root / "train/cat/.DS_Store").touch()
    (root / "train/cat/readme.txt").touch()
    (root / "train/dog/Thumbs.db").touch()
    (root / "train/.cache").mkdir()
    (root / "train/list.csv").touch()
    manifest = read_manifest("folder", root)
    assert len(manifest) == 5
    assert manifest.class_names == ("cat", "dog")
    assert manifest.notes == ("ignored 2 files that are no images (1 .txt, 1 .db)",)


def test_folder_keeps_a_class_that_has_no_training_image(write_tree):
    root = write_tree({"train": {"cat": 2, "dog": 0}, "test": {"ant": 1}})
    manifest = read_manifest("folder", root)
    assert manifest.class_names == ("ant", "cat", "dog")
    assert manifest.counts("train").tolist() == [0, 2, 0]


def test_folder_follows_links_once(write_tree, tmp_path):
    outside = write_tree({"x": {"pics": 2}}, root=tmp_path / "outside")
    root = write_tree({"train": {"cat": 1, "dog": 1}})
    (root / "train/cat/more").symlink_to(outside / "x/pics")
    (root / "train/cat/circle").symlink_to(root / "train/cat")
    (root / "train/dog/link.png").symlink_to(outside / "x/pics/pics 0.png")
    manifest = read_manifest("folder", root, allow_outside=True)
    assert manifest.counts().tolist() == [3, 2]


LINKS = {
    "to the split": ("train/loop", "."),
    "to the root": ("train/loop", ".."),
    "to a folder above the root": ("train/loop", "../../.."),
    "of a class to its split": ("train/cat/up", ".."),
    "of a class to the root": ("train/cat/up", "../.."),
    "of a class to itself": ("train/cat/self", "."),
    "of a subfolder to its class": ("train/cat/sub/up", ".."),
    "to itself": ("train/loop", "loop"),
    "in a circle": ("train/one", "two"),
    "to nothing": ("train/loop", "nowhere"),
    "of a split to the root": ("val", "."),
    "absolute": ("train/loop", None),
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("flat", [False, True])
def test_folder_makes_no_classes_of_links_to_folders_above(write_tree, tmp_path, link, flat):
    root = write_tree({"train": {"cat": 2, "dog": 1}, "train/cat": {"sub": 1}}, tmp_path / "above" / "tree")
    expected = read_manifest("folder", root / "train" if flat else root)
    place, target = LINKS[link]
    (root / place).symlink_to(root if target is None else target)
    if link == "in a circle":
        (root / "train/two").symlink_to("one")
    manifest = read_manifest("folder", root / "train" if flat else root)
    assert manifest.class_names == ("cat", "dog")
    assert manifest.paths == expected.paths
    assert manifest.labels.tolist() == expected.labels.tolist()


def test_folder_leaves_circles_through_other_places(write_tree, tmp_path):
    store = write_tree({"cats": {"young": 2}}, root=tmp_path / "store")
    root = write_tree({"train": {"dog": 1}})
    (root / "train/cat").symlink_to(store / "cats")
    (store / "cats/up").symlink_to(root / "train")  # where it was entered from
    (store / "cats/young/out").symlink_to(store)  # where it lies
    (root / "train/dog/other").symlink_to(store / "cats/young")  # no folder above: what the link says
    manifest = read_manifest("folder", root, allow_outside=True)
    assert manifest.class_names == ("cat", "dog")
    assert manifest.counts().tolist() == [2, 3]


def test_folder_with_a_train_folder_that_is_a_link_to_the_root(write_tree):
    root = write_tree({".": {"dog": 2, "cat": 3}})
    (root / "train").symlink_to(".")
    assert read_manifest("folder", root).paths[0] == "cat/cat 0.png"


def test_folder_that_cannot_be_read(write_tree, monkeypatch):
    root = write_tree({"train": {"dog": 2, "cat": 3}})
    really = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return really(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="train/dog: cannot read the folder: Permission denied"):
        read_manifest("folder", root)


def test_folder_without_splits_is_training_data(write_tree):
    root = write_tree({".": {"dog": 2, "cat": 3}})
    manifest = read_manifest("folder", root)
    assert manifest.split_sizes == {"train": 5}
    assert manifest.paths[0] == "cat/cat 0.png"
    assert "all read as training data" in manifest.notes[0]


def test_folder_with_other_split_names(write_tree):
    root = write_tree({"Training": {"dog": 2, "cat": 3}, "valid": {"dog": 1}})
    with pytest.raises(DataError, match=r"no folder 'train', but 'Training', 'valid'; name the folders"):
        read_manifest("folder", root)
    manifest = read_manifest("folder", root, train="Training", val="valid")
    assert manifest.split_sizes == {"train": 5, "val": 1}


def test_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="there is no class folder"):
        read_manifest("folder", tmp_path)
    with pytest.raises(DataError, match=r"expected train/CLASS/image\.jpg"):
        read_manifest("folder", tmp_path / "train")


@pytest.mark.parametrize(
    "names",
    [
        {"n02": "a dog", "n01": "a cat"},
        ["a cat", "a dog"],
        ["n02 a dog", "n01 a cat"],
        "names.txt",
        "names.json",
    ],
)
def test_folder_class_names(write_tree, names):
    root = write_tree({"train": {"n01": 1, "n02": 2}})
    (root / "names.txt").write_text("n02 a dog\nn01 a cat\n")
    (root / "names.json").write_text('{"n02": "a dog", "n01": "a cat", "n03": "not here"}')
    manifest = read_manifest("folder", root, class_names=names)
    assert manifest.class_names == ("a cat", "a dog")
    assert manifest.counts().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"n1": "cat", "n02": "dog"}, "there is no name for the class folder 'n01'; did you mean 'n1'"),
        (["cat", "dog", "ant"], "3 class names for 2 class folders"),
        (["cat", "cat"], "classes 0 and 1 are both named 'cat'"),
    ],
)
def test_folder_class_names_that_do_not_fit(write_tree, names, message):
    root = write_tree({"train": {"n01": 1, "n02": 2}})
    with pytest.raises(DataError, match=message):
        read_manifest("folder", root, class_names=names)


# --- table

CSV = "path,label,split\na b.png,cat,train\n/abs/b.png,dog,train\nc.png,cat,val\nd.png,dog,test\n"


def test_table_csv_with_names(tmp_path):
    (tmp_path / "all.csv").write_text(CSV)
    manifest = read_manifest("table", tmp_path, file="all.csv", allow_outside=True)
    assert manifest.paths == ("a b.png", "/abs/b.png", "c.png", "d.png")
    assert manifest.class_names == ("cat", "dog")
    assert manifest.labels.tolist() == [0, 1, 0, 1]
    assert manifest.splits.tolist() == ["train", "train", "val", "test"]
    assert manifest.file(1) == "/abs/b.png"


def test_table_parquet_with_ids_and_other_columns(tmp_path):
    table = pa.table(
        {
            "image": ["a.png", str(tmp_path / "b.png"), "c.png"],
            "species": pa.array([1, 0, 1], pa.int32()),
            "part": pa.array(["train", "train", "validation"]).dictionary_encode(),
            "extra": [0.1, 0.2, 0.3],
        }
    )
    parquet.write_table(table, tmp_path / "all.parquet")
    manifest = read_manifest(
        "table",
        tmp_path,
        file=str(tmp_path / "all.parquet"),
        path_column="image",
        label_column="species",
        split_column="part",
        splits={"validation": "val"},
        class_names=["cat", "dog"],
    )
    assert manifest.labels.tolist() == [1, 0, 1]
    assert manifest.splits.tolist() == ["train", "train", "val"]
    assert manifest.paths[1] == "b.png"


def test_table_ids_without_names_say_so(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,split\na,0,train\nb,10,train\nc,2,test\n")
    manifest = read_manifest("table", tmp_path, file="t.csv")
    assert manifest.num_classes == 11
    assert manifest.labels.tolist() == [0, 10, 2]
    assert "ids and no names" in manifest.notes[0]


def test_table_keeps_names_that_look_like_something_else(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,split\na,007,train\nb,null,train\nc,NaN,train\nd,1e5,test\n")
    names = ["007", "null", "NaN", "1e5"]
    manifest = read_manifest("table", tmp_path, file="t.csv", class_names=names)
    assert manifest.labels.tolist() == [0, 1, 2, 3]


def test_table_names_that_are_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,split\na,10,train\nb,20,train\nc,20,test\n")
    manifest = read_manifest("table", tmp_path, file="t.csv", class_names=["20", "10"])
    assert manifest.labels.tolist() == [1, 0, 0]


def test_table_missing_column(tmp_path):
    (tmp_path / "t.csv").write_text("path,lable,split\na,cat,train\n")
    with pytest.raises(DataError) as caught:
        read_manifest("table", tmp_path, file="t.csv")
    assert "there is no column 'label', only path, lable, split; did you mean 'lable'?" in str(caught.value)


def test_table_names_every_faulty_row(tmp_path):
    rows = [
        "path,label,split",
        "a,cat,train",
        "b,dog,train",
        "c,cta,test",
        ",cat,test",
        "d,dog,tset",
        "e,,test",
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    with pytest.raises(DataFaults) as caught:
        read_manifest("table", tmp_path, file="t.csv")
    lines = [str(problem) for problem in caught.value.problems]
    source = tmp_path / "t.csv"
    assert lines == [
        f"{source}, row 4: the column 'path' is empty; fill it in or remove the row",
        f"{source}, row 6: the column 'label' is empty; fill it in or remove the row",
        f"{source}, row 5: unknown split 'tset'; did you mean 'test'?",
        f"{source}, row 3: unknown label 'cta'; did you mean 'cat'?",
    ]
    assert str(caught.value) == f"{lines[0]} (and 3 more faults of this data set)"


def test_table_id_out_of_range(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,split\na,0,train\nb,2,train\n")
    with pytest.raises(DataFaults, match=r"row 2: unknown label '2'; ids go from 0 to 1"):
        read_manifest("table", tmp_path, file="t.csv", class_names=["cat", "dog"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "there is no such file"),
        ("t.xlsx", b"x", r"unknown kind of table '\.xlsx'"),
        ("t.csv", b"", "no readable table"),
        ("t.csv", b"path,label,split\na,b\n", "no readable table"),
        ("t.csv", "chemin,étiquette,split\na,b,train\n".encode("latin-1"), "no readable table"),
        ("t.tsv", b"path\tlabel\t\xecsplit\na\tb\ttrain\n", "no readable table"),
        ("t.parquet", b"PAR0", "no readable table"),
    ],
)
def test_table_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_manifest("table", tmp_path, file=name)


# --- lists


def test_lists(tmp_path):
    (tmp_path / "train.txt").write_text("train/cat/a b.jpg 0\ntrain/dog/c.jpg\t1\n\n")
    (tmp_path / "test.txt").write_text("val/cat/d.jpg 0\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = {"train": "train.txt", "test": str(tmp_path / "test.txt"), "class_names": "names.txt"}
    manifest = read_manifest("lists", tmp_path, **options)
    assert manifest.paths == ("train/cat/a b.jpg", "train/dog/c.jpg", "val/cat/d.jpg")
    assert manifest.labels.tolist() == [0, 1, 0]
    assert manifest.split_sizes == {"train": 2, "test": 1}


def test_lists_name_every_faulty_line(tmp_path):
    (tmp_path / "train.txt").write_text("a.jpg 0\nb.jpg 5\n")
    (tmp_path / "val.txt").write_text("a.jpg 0\nb.jpg\n")
    with pytest.raises(DataFaults) as caught:
        read_manifest("lists", tmp_path, train="train.txt", val="val.txt", class_names=["cat", "dog"])
    assert [str(problem) for problem in caught.value.problems] == [
        f"{tmp_path}/train.txt, line 2: unknown label '5'; ids go from 0 to 1",
        f"{tmp_path}/val.txt, line 2: no label; expected: path label",
    ]


def test_lists_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"train\.txt: cannot read the list: No such file"):
        read_manifest("lists", tmp_path, train="train.txt", class_names=["cat", "dog"])


def test_large_table_is_quick(tmp_path):
    """No row is looked at in a way that grows with the number of classes."""
    count = 100_000
    labels = np.arange(count) % 5000
    rows = "\n".join(f"{i}.png,class {label},train" for i, label in enumerate(labels.tolist()))
    (tmp_path / "t.csv").write_text(f"path,label,split\n{rows}\n")
    manifest = read_manifest("table", tmp_path, file="t.csv")
    assert manifest.num_classes == 5000
    assert manifest.counts().tolist() == [20] * 5000
