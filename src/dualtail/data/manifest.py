"""The one description of a data set that everything else works on: path, label, split, class names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from dualtail.data.contents import read_contents
from dualtail.data.images import MAX_PIXELS
from dualtail.errors import DataError, InputError, check_choice, shown
from dualtail.files import atomic_path, csv_cell, inside, is_inside, read_text

SPLITS = ("train", "val", "test")
CLASS_NAMES_KEY = b"dualtail.class_names"


@dataclass(frozen=True, eq=False)
class Manifest:
    """Images with their labels and splits.

    Attributes:
        root: the folder that relative paths start from.
        paths: one path an image, relative to ``root`` with forward slashes; absolute if it lies elsewhere.
        labels: class index of each image, int64 ``(N,)``.
        splits: ``"train"``, ``"val"`` or ``"test"`` for each image, str ``(N,)``.
        class_names: the ``C`` classes in the order of the labels.
        notes: what was done to the data, in sentences for the user.
        group_counts: int64 ``(C,)``, the counts that define the data groups where they are by convention not
            those of this training set (CIFAR-LT uses those of imbalance ratio 100); None means the usual.
        max_pixels: of an image, at most; a larger one cannot be read.

    Raises:
        InputError: the columns differ in length, or hold a label or split that does not exist.
        DataError: class names that are missing, empty or repeated.

    Example:
        >>> manifest = Manifest(Path("."), ("a.png", "b.png", "c.png"), [0, 1, 1],
        ...                     ["train", "train", "test"], ("cat", "dog"))
        >>> len(manifest), manifest.num_classes, manifest.counts("train").tolist()
        (3, 2, [1, 1])
        >>> manifest.split("test").sample_ids
        ('c.png',)
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    group_counts: np.ndarray | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen for its users, not for its own conversion
        put(self, "root", Path(self.root))
        put(self, "paths", tuple(self.paths))
        put(self, "class_names", tuple(self.class_names))
        put(self, "notes", tuple(self.notes))
        put(self, "labels", np.asarray(self.labels, dtype=np.int64).reshape(-1))
        put(self, "splits", np.asarray(self.splits, dtype="<U5").reshape(-1))
        check_class_names(self.class_names)
        _check_paths(self.paths, str(self.root))
        if not len(self.paths) == len(self.labels) == len(self.splits):
            raise InputError(
                f"{len(self.paths)} paths, {len(self.labels)} labels and {len(self.splits)} splits",
                fix="give one of each for every image",
            )
        if len(self.labels) and (self.labels.min() < 0 or self.labels.max() >= self.num_classes):
            raise InputError(f"a label lies outside 0 to {self.num_classes - 1}")
        for name in np.unique(self.splits).tolist():
            check_choice("split", name, SPLITS)
        if self.group_counts is not None:
            put(self, "group_counts", np.asarray(self.group_counts, dtype=np.int64).reshape(-1))
            if len(self.group_counts) != self.num_classes:
                raise InputError(
                    f"group_counts has {len(self.group_counts)} entries for {self.num_classes} classes"
                )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """The number of classes ``C``."""
        return len(self.class_names)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """What identifies a sample in stored logits: its path."""
        return self.paths

    @property
    def split_sizes(self) -> dict[str, int]:
        """Number of images of every split that has some, in the order train, val, test."""
        sizes = {name: int(np.count_nonzero(self.splits == name)) for name in SPLITS}
        return {name: size for name, size in sizes.items() if size}

    def file(self, row: int) -> str:
        """Return the path of one image as the operating system takes it."""
        return os.path.join(self.root, self.paths[row])

    def refuse_outside(self, where: Callable[[int], str]) -> None:
        """Refuse images that lie outside the root, by their paths or by symbolic links.

        Args:
            where: tells the file and entry that a row comes from.

        Raises:
            DataError: the first of them.
        """
        fix = "move it there, or set data.allow_outside to true if you trust whoever made this list"
        known: set[str] = set()  # folders inside, of which each is resolved once
        for row, path in enumerate(self.paths):
            folder, name = os.path.split(path)
            if folder not in known and "\0" not in folder and is_inside(self.root, folder, itself=True):
                known.add(folder)
            if folder not in known or name in ("", ".", "..") or os.path.islink(self.file(row)):
                inside(self.root, path, where=where(row), fix=fix)

    def split(self, name: str) -> Manifest:
        """Return the images of one split, in order; empty if it has none."""
        check_choice("split", name, SPLITS)
        return self.select(np.flatnonzero(self.splits == name))

    def counts(self, split: str | None = "train") -> np.ndarray:
        """Return the number of images of each class, int64 ``(C,)``; of all splits if ``split`` is None."""
        labels = self.labels if split is None else self.labels[self.splits == split]
        return np.bincount(labels, minlength=self.num_classes).astype(np.int64)

    def select(self, rows: Sequence[int] | np.ndarray) -> Manifest:
        """Return the given rows, in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        paths = tuple(self.paths[row] for row in rows.tolist())
        return replace(self, paths=paths, labels=self.labels[rows], splits=self.splits[rows])

    def with_note(self, note: str, **changes: Any) -> Manifest:
        """Return a copy with ``changes`` made to its attributes and a note that says so."""
        return replace(self, notes=(*self.notes, note), **changes)

    def renamed(self, class_names: Sequence[str]) -> Manifest:
        """Return a copy whose classes have other names, in the same order."""
        return replace(self, class_names=tuple(class_names))

    def file_sizes(self) -> np.ndarray:
        """Return the size of every file in bytes, int64 ``(N,)``; -1 where there is none."""
        return np.fromiter((_file_size(self.file(row)) for row in range(len(self))), np.int64, len(self))

    def fingerprint(self, digests: np.ndarray | None = None) -> str:
        """Return the sha256 (hex) of ids, labels, splits, class names, group counts and the content of every file.

        The root is left out, so that a data set may move.

        Args:
            digests: the SHA-256 of every file, uint8 ``(N, 32)``; by default as ``read_contents`` gives them, which
                reads a file once and again when it has changed.
        """
        if digests is None:
            digests = read_contents(self.root, self.paths).digests
        digest = hashlib.sha256(b"dualtail manifest 2")
        group_counts = () if self.group_counts is None else self.group_counts.tolist()
        for part in (
            "\0".join(self.paths).encode("utf-8", "surrogatepass"),
            self.labels.astype("<i8").tobytes(),
            "\0".join(self.splits.tolist()).encode(),
            "\0".join(self.class_names).encode("utf-8", "surrogatepass"),
            ",".join(map(str, group_counts)).encode(),
            digests.tobytes(),
        ):
            digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts run together
            digest.update(part)
        return digest.hexdigest()

    def to_table(self, path: str | Path) -> None:
        """Write columns ``path, label, split`` as CSV or Parquet (by the suffix), atomically.

        Labels are class names. Parquet keeps the order of the classes; to read a CSV file back in the same
        order, pass ``class_names`` to the reader ``table``. In CSV, text that starts a formula has a ``'`` before it,
        which that reader takes away.
        """
        path = Path(path)
        cell = csv_cell if path.suffix == ".csv" else str
        names = np.asarray(self.class_names, dtype=object)
        table = pa.table(
            {
                "path": pa.array(map(cell, self.paths), pa.string()),
                "label": pa.array(map(cell, names[self.labels]), pa.string()),
                "split": pa.array(self.splits.tolist(), pa.string()),
            }
        )
        if path.suffix not in (".csv", ".parquet"):
            raise DataError(
                f"cannot write a table with suffix {path.suffix!r}",
                where=str(path),
                fix="use .csv or .parquet",
            )
        with atomic_path(path) as temporary:
            if path.suffix == ".csv":
                csv.write_csv(table, temporary)
            else:
                joined = "\n".join(self.class_names).encode()
                parquet.write_table(table.replace_schema_metadata({CLASS_NAMES_KEY: joined}), temporary)


def check_class_names(names: Sequence[str], where: str | None = None) -> None:
    """Refuse class names that are fewer than two, empty or repeated, naming the first."""
    if len(names) < 2:
        raise DataError(
            f"{len(names)} class{'es' * (len(names) != 1)}", where=where, fix="a classifier needs at least 2"
        )
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if (
            not isinstance(name, str)
            or not name.strip()
            or "\n" in name
            or "\0" in name
            or not _is_unicode(name)
        ):
            raise DataError(
                f"the name of class {index} is empty or no text: {shown(name)}",
                where=where,
                fix="give every class a name of one line",
            )
        if name in seen:
            raise DataError(
                f"classes {seen[name]} and {index} are both named {name!r}",
                where=where,
                fix="give each class its own name",
            )
        seen[name] = index


def _check_paths(paths: Sequence[str], where: str) -> None:
    """Refuse names that files cannot have, or that JSON, CSV and HTML cannot hold."""
    odd = next((path for path in paths if "\0" in path or not _is_unicode(path)), None)
    if odd is not None:
        raise DataError(
            f"the file name {shown(odd)} is no Unicode text (UTF-8)", where=where, fix="rename the file"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a name of bytes that are not UTF-8 stands for them by halves of characters
        return False
    return True


def relative_to_root(path: str, root: Path) -> str:
    """Return ``path`` as a manifest stores it: relative to ``root`` with forward slashes where it lies inside.

    Example:
        >>> relative_to_root("/data/train/a b.png", Path("/data")), relative_to_root("/other/a.png", Path("/data"))
        ('train/a b.png', '/other/a.png')
    """
    if not path.startswith(("/", ".")) and "/." not in path and "//" not in path and os.sep == "/":
        return path  # nothing to resolve, as in nearly every row of a large table
    joined = os.path.normpath(os.path.join(root, path))
    inside = os.path.relpath(joined, root)
    return Path(joined if inside.startswith("..") else inside).as_posix()


def read_class_names(
    source: str | Path | Sequence[str] | Mapping[str, Any], root: Path | None = None
) -> tuple[str, ...]:
    """Return class names in order, from a list or from a file.

    Args:
        source: the names; a text file with one a line; or a JSON file (or mapping) with a list of names, an
            object of ids to names (``{"0": "cat"}``) or of names to ids.
        root: the folder that a relative file name starts from.

    Raises:
        DataError: the file cannot be read, or a name is missing, empty or repeated.

    Example:
        >>> read_class_names({"1": "dog", "0": "cat"})
        ('cat', 'dog')
    """
    where = str(Path(root or ".") / source) if isinstance(source, (str, Path)) else "class_names"
    given = read_names(source, root) if isinstance(source, (str, Path)) else source
    try:
        names = _in_order_of_ids(given) if isinstance(given, Mapping) else tuple(given)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"these are no class names: {error}", where=where, fix='give a list such as ["cat", "dog"]'
        ) from None
    check_class_names(names, where=where)
    return names


def read_names(source: str | Path, root: Path | None = None) -> list[str] | dict[str, Any]:
    """Return what a file of names holds: the lines of a text file, or a JSON list or object."""
    path = Path(root or ".") / os.path.expanduser(source)
    try:
        text = read_text(path, "utf-8-sig")
        if path.suffix.lower() != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        value = json.loads(text)
    except OSError as error:
        raise DataError(f"cannot read the class names: {error.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as error:  # of the encoding or of the JSON
        raise DataError(f"cannot read the class names: {error}", where=str(path)) from None
    if not isinstance(value, (list, dict)):
        raise DataError("the class names are no JSON list or object", where=str(path))
    return value


def _in_order_of_ids(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of an object between ids and names in either direction."""
    names_to_ids = all(isinstance(item, int) for item in value.values())
    by_id = {int(v): k for k, v in value.items()} if names_to_ids else {int(k): v for k, v in value.items()}
    if sorted(by_id) != list(range(len(value))):
        raise ValueError(f"the ids are not 0 to {len(value) - 1}")
    return tuple(by_id[index] for index in range(len(by_id)))


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
