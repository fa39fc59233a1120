"""Text lists as long-tailed recognition uses them (OLTR): a file a split, a line an image, "path label"."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dualtail.data.manifest import Manifest, read_class_names, relative_to_root
from dualtail.data.problems import DataFaults, Problem
from dualtail.data.table import label_ids
from dualtail.errors import DataError
from dualtail.files import read_text


def read_lists(
    root: Path,
    *,
    train: str,
    val: str | None = None,
    test: str | None = None,
    class_names: str | Sequence[str],
) -> Manifest:
    """Read text lists with a line an image: its path, blanks, its label (a class id, or a name without blanks).

    Args:
        root: the folder that relative image paths start from.
        train: the list of training images; relative to ``root`` or absolute, as the other files.
        val: the list of validation images.
        test: the list of test images.
        class_names: the classes in order: a list, or a file with one a line or JSON.

    Raises:
        DataError: a file cannot be read.
        DataFaults: lines without a label or with one that is unknown, each named with its line.
    """
    names = read_class_names(class_names, root)
    files = {"train": train, "val": val, "test": test}
    given = {split: file for split, file in files.items() if file is not None}
    paths, labels, splits = read_list_files(root, given, names)
    return Manifest(root, paths, labels, splits, names)


def read_list_files(
    root: Path, files: Mapping[str, str], class_names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return paths, labels and splits of lists by split; without class names, labels are ids of any size."""
    paths: list[str] = []
    labels: list[np.ndarray] = []
    splits: list[str] = []
    problems: list[Problem] = []
    for split, file in files.items():
        source = Path(root) / os.path.expanduser(file)
        listed, values, faults = _read_list(source)
        ids, unknown = label_ids(values, class_names, str(source), "line")
        problems += faults or unknown  # a broken line shifts the count, so its list is mended first
        paths += [relative_to_root(path, root) for path in listed]
        labels.append(ids)
        splits += [split] * len(listed)
    if problems:
        raise DataFaults(problems)
    return tuple(paths), np.concatenate(labels), np.array(splits, dtype="<U5")


def _read_list(source: Path) -> tuple[list[str], list[str], list[Problem]]:
    """Return paths, labels and faulty lines; the label is what follows the last blank, as paths may hold some."""
    try:
        lines = read_text(source, "utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the list: {error.strerror}", where=str(source)) from None
    except UnicodeDecodeError:
        raise DataError("the list is no UTF-8 text", where=str(source)) from None
    while lines and not lines[-1].strip():
        lines.pop()
    paths, labels, problems = [], [], []
    for number, line in enumerate(lines, 1):
        parts = line.strip().rsplit(maxsplit=1)
        if len(parts) == 2:
            paths.append(parts[0])
            labels.append(parts[1])
        else:
            problems.append(Problem("no label", f"{source}, line {number}", "expected: path label"))
    return paths, labels, problems
