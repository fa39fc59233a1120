from __future__ import annotations

import numpy as np
import pytest

from dualtail.data.check import check_manifest
from dualtail.data.manifest import Manifest
from dualtail.data.problems import DataFaults, raise_errors
from dualtail.data.readers import read_manifest


def test_a_sound_tree_has_no_problem(write_tree):
    counts = {"cat": 2, "dog": 2}
    manifest = read_manifest("folder", write_tree({"train": counts, "val": counts, "test": counts}))
    assert check_manifest(manifest, deep=True) == []
    raise_errors([])


def test_all_faults_are_found_at_once(write_tree):
    root = write_tree({"train": {"cat": 3, "dog": 3, "ant": 0}, "test": {"cat": 2}})
    manifest = read_manifest("folder", root)
    paths = [*manifest.paths, "train/cat/cat 0.png", "train/cat/cat 1.png", "gone.png"]
    labels = [*manifest.labels, 2, 1, 1]
    splits = [*manifest.splits, "test", "train", "train"]
    manifest = Manifest(root, paths, labels, splits, manifest.class_names)
    (root / "train/dog/dog 0.png").write_bytes(b"")
    (root / "train/dog/dog 1.png").write_bytes(b"no image")
    image = (root / "train/dog/dog 2.png").read_bytes()
    (root / "train/dog/dog 2.png").write_bytes(image[: len(image) // 2])
    done = []
    problems = check_manifest(manifest, deep=True, progress=lambda *step: done.append(step))
    assert [(problem.severity, str(problem)) for problem in problems] == [
        ("error", "split 'val': no image; give one or have it held out of train"),
        ("error", "class 'ant': no training image; add some or remove the class"),
        ("error", f"{root}/train/dog/dog 0.png: the file is empty; restore it or remove its row"),
        (
            "error",
            f"{root}/train/dog/dog 1.png: this is no image that Pillow can read; restore it or remove its row",
        ),
        ("error", str(problems[4])),
        ("error", f"{root}/gone.png: there is no such file; restore it or remove its row"),
        (
            "warning",
            "split 'test': 1 of 3 classes have no image, such as 'ant'; their accuracy will not be measured",
        ),
        (
            "warning",
            "train/cat/cat 0.png: in train and in test: results on test leak (as 'cat' and as 'dog'); "
            "keep it in one split",
        ),
        ("warning", "train/cat/cat 1.png: twice in train; remove one of the rows"),
    ]
    assert str(problems[4]).startswith(f"{root}/train/dog/dog 2.png: cannot decode the image: ")
    assert done[-1] == (11, 11)
    with pytest.raises(DataFaults) as caught:
        raise_errors(problems)
    assert len(caught.value.problems) == 6
    assert "(and 5 more faults of this data set)" in str(caught.value)


def test_shallow_check_reads_no_image(write_tree):
    root = write_tree({"train": {"cat": 1, "dog": 1}})
    (root / "train/dog/dog 0.png").write_bytes(b"no image")
    assert check_manifest(read_manifest("folder", root), required_splits=["train"]) == []


def test_warnings_alone_do_not_raise(write_tree):
    root = write_tree({"train": {"cat": 1, "dog": 1}, "test": {"cat": 1}})
    manifest = read_manifest("folder", root)
    problems = check_manifest(manifest, required_splits=["train", "test"])
    assert [problem.severity for problem in problems] == ["warning"]
    raise_errors(problems)


def test_order_of_labels_does_not_matter(write_tree):
    manifest = read_manifest("folder", write_tree({"train": {"cat": 2, "dog": 2}}))
    shuffled = manifest.select(np.array([3, 0, 2, 1]))
    assert check_manifest(shuffled, required_splits=["train"]) == []
