"""ImageNet-LT and Places-LT: the official images and the lists of Liu et al. (CVPR 2019, arXiv 1904.05160)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dualtail.data.benchmark_counts import IMAGENET_LT, PLACES_LT, BenchmarkCounts, verified
from dualtail.data.image_folder import names_of_folders
from dualtail.data.lists import read_list_files
from dualtail.data.manifest import Manifest
from dualtail.data.problems import DataFaults, Problem
from dualtail.errors import DataError

SOURCE = "the lists are linked from github.com/zhmiao/OpenLongTailRecognition-OLTR"

# open_clip's list calls two pairs of ImageNet's classes alike; these are their other WordNet names.
_IMAGENET_TWINS = {744: "projectile", 836: "sunglass"}


def read_imagenet_lt(
    root: Path, *, lists: str = ".", class_names: str | Sequence[str] | None = None, verify: bool = True
) -> Manifest:
    """Read ImageNet-LT: 115,846 training images of 1,000 classes with 1,280 to 5 images each.

    Needs ImageNet's images (ILSVRC 2012) as ``root/train/n01440764/*.JPEG`` and ``root/val/n01440764/*.JPEG``
    and the files ``ImageNet_LT_train.txt``, ``ImageNet_LT_val.txt`` (20 images a class, from ImageNet's training
    set) and ``ImageNet_LT_test.txt`` (ImageNet's validation set, 50 a class); all three by default, the second
    may be absent. Classes are in the order of the lists, which is that of the sorted WordNet ids.

    Args:
        root: the folder that the paths of the lists start from.
        lists: the folder of the lists; relative to ``root`` or absolute.
        class_names: see ``read_folder``; by default the names that open_clip uses for ImageNet.
        verify: refuse counts other than the published ones.

    Raises:
        DataError: a list is missing.
        DataFaults: broken lines, a label with several class folders, or counts other than the published.
    """
    manifest, folders = _read(root, lists, "ImageNet_LT", IMAGENET_LT if verify else None)
    if class_names is not None:
        return manifest.renamed(names_of_folders(class_names, folders, root))
    return manifest.renamed(imagenet_names()) if len(folders) == 1000 else manifest.renamed(folders)


def read_places_lt(
    root: Path, *, lists: str = ".", class_names: str | Sequence[str] | None = None, verify: bool = True
) -> Manifest:
    """Read Places-LT: 62,500 training images of 365 classes with 4,980 to 5 images each.

    Needs the images of Places365-Standard as ``root/train/airfield/*.jpg`` and ``root/val/airfield/*.jpg`` and
    the files ``Places_LT_train.txt``, ``Places_LT_val.txt`` (20 a class) and ``Places_LT_test.txt`` (100 a
    class), of which the second may be absent. Classes are in the order of the lists, sorted by folder.

    Args:
        root: the folder that the paths of the lists start from.
        lists: the folder of the lists; relative to ``root`` or absolute.
        class_names: see ``read_folder``; by default the folders' names with blanks for underscores, as LIFT has it.
        verify: refuse counts other than the published ones.

    Raises:
        DataError: a list is missing.
        DataFaults: broken lines, a label with several class folders, or counts other than the published.
    """
    manifest, folders = _read(root, lists, "Places_LT", PLACES_LT if verify else None)
    if class_names is not None:
        return manifest.renamed(names_of_folders(class_names, folders, root))
    return manifest.renamed([folder.replace("_", " ").replace("/", " ") for folder in folders])


def imagenet_names() -> tuple[str, ...]:
    """Return a name for each of ImageNet's 1,000 classes, in the order of the sorted WordNet ids."""
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(_IMAGENET_TWINS.get(index, name) for index, name in enumerate(IMAGENET_CLASSNAMES))


def _read(
    root: Path, lists: str, name: str, published: BenchmarkCounts | None
) -> tuple[Manifest, tuple[str, ...]]:
    """Return the manifest with class folders for names, and these folders."""
    folder = Path(root) / os.path.expanduser(lists)
    files = {split: folder / f"{name}_{split}.txt" for split in ("train", "val", "test")}
    for split in ("train", "test"):
        if not files[split].is_file():
            raise DataError("there is no such list", where=str(files[split]), fix=SOURCE)
    present = {split: str(file) for split, file in files.items() if file.is_file()}
    paths, labels, splits = read_list_files(root, present)
    folders = _class_folders(paths, labels, splits, present)
    manifest = Manifest(root, paths, labels, splits, folders)
    if published is not None:
        manifest = verified(manifest, published)
    return manifest, folders


def _class_folders(
    paths: Sequence[str], labels: np.ndarray, splits: np.ndarray, files: dict[str, str]
) -> tuple[str, ...]:
    """Return the folder of each class: as much of the end of its images' folder as tells the classes apart."""
    seen: dict[int, set[str]] = {}
    for path, label, split in zip(paths, labels.tolist(), splits.tolist(), strict=True):
        if split == "train":
            seen.setdefault(label, set()).add(posixpath.dirname(path))
    where = files["train"]
    problems = [
        Problem("no image", f"{where}, label {label}", "get the official list")
        for label in range(int(labels.max()) + 1)
        if label not in seen
    ]
    problems += [
        Problem(
            f"images of several folders, such as {' and '.join(sorted(folders)[:2])}",
            f"{where}, label {label}",
            "get the official list",
        )
        for label, folders in sorted(seen.items())
        if len(folders) > 1
    ]
    if problems:
        raise DataFaults(problems)
    parts = [next(iter(seen[label])).split("/") for label in range(len(seen))]
    for depth in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(part[-depth:]) for part in parts)
        if len(set(names)) == len(names):
            return names
    raise DataFaults([Problem("two labels share one folder", where, "get the official list")])
