"""A CSV or Parquet file with a row an image: path, label, split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from dualtail.data.manifest import (
    CLASS_NAMES_KEY,
    SPLITS,
    Manifest,
    read_class_names,
    relative_to_root,
)
from dualtail.data.problems import DataFaults, Problem
from dualtail.errors import DataError, nearest_fix
from dualtail.files import from_csv_cell, refuse_irregular

MAX_SUGGESTIONS = 20
MAX_ID = 1_000_000  # a label beyond is a misread column, and would make as many classes
_CANONICAL_ID = re.compile(r"0|[1-9][0-9]*")  # "007" is a name, not the id 7


def read_table(
    root: Path,
    *,
    file: str,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    class_names: str | Sequence[str] | None = None,
    splits: Mapping[str, Literal["train", "val", "test"]] | None = None,
) -> Manifest:
    """Read a table with one row an image.

    Labels are class ids if every one is a whole number, else class names. Without ``class_names``, the classes
    are the sorted names seen in the training split, or ``"0"`` to the largest id.

    Args:
        root: the folder that relative image paths start from.
        file: the table, ``.csv``, ``.tsv`` or ``.parquet``; relative to ``root`` or absolute.
        path_column: name of the column of image paths.
        label_column: name of the column of labels.
        split_column: name of the column of splits.
        class_names: the classes in order: a list, or a file with one a line or JSON.
        splits: what the table calls its splits, as ``{"validation": "val"}``, where it differs.

    Raises:
        DataError: the file or a column is missing (the columns present are named).
        DataFaults: rows with an unknown label or split, each named with its row, counted from 1 without the
            header.
    """
    source = Path(root) / os.path.expanduser(file)
    table = _load(source)
    columns = {"path": path_column, "label": label_column, "split": split_column}
    for name in columns.values():
        if name not in table.column_names:
            raise DataError(
                f"there is no column {name!r}, only {', '.join(table.column_names)}",
                where=str(source),
                fix=nearest_fix(
                    name,
                    table.column_names,
                    "name it with the options path_column, label_column, split_column",
                ),
            )
    path, label, split = (_strings(table.column(name)) for name in columns.values())
    if source.suffix.lower() != ".parquet":
        path, label, split = (list(map(from_csv_cell, values)) for values in (path, label, split))
    rename = {**{name: name for name in SPLITS}, **(splits or {})}
    problems = _empty_cells(source, columns, path, label, split)
    problems += [
        Problem(
            f"unknown split {value!r}",
            f"{source}, row {row}",
            nearest_fix(value, rename, "use train, val or test, or the option splits"),
        )
        for row, value in enumerate(split, 1)
        if value and value not in rename
    ]
    names = _class_names(class_names, root, table, label, split, rename)
    labels, unknown = label_ids(label, names, str(source), "row")
    problems += unknown
    if problems:
        raise DataFaults(problems)
    paths = tuple(relative_to_root(value, root) for value in path)
    notes: tuple[str, ...] = ()
    if class_names is None and all(_CANONICAL_ID.fullmatch(name) for name in names):
        notes = ("the classes have ids and no names: text prompts will mean nothing without class_names",)
    return Manifest(
        root, paths, labels, np.array([rename[value] for value in split], dtype="<U5"), names, notes
    )


def label_ids(
    values: Sequence[str], names: Sequence[str] | None, where: str, unit: str
) -> tuple[np.ndarray, list[Problem]]:
    """Turn labels, all ids or all names, into class ids and name every one that is unknown.

    Labels that are all whole numbers are ids, unless the classes themselves have such names; without names they
    must be ids.
    """
    index_of = {name: index for index, name in enumerate(names or ())}
    numbers = all(_CANONICAL_ID.fullmatch(value) for value in values)
    as_ids = names is None or (numbers and not set(values) <= set(index_of))
    size = len(names) if names is not None else MAX_ID
    otherwise = f"ids go from 0 to {size - 1}" if as_ids else f"there are {size} classes"
    labels = np.zeros(len(values), dtype=np.int64)
    problems: list[Problem] = []
    suggestions: dict[str, str] = {}  # a search among all names takes a while, and rows repeat each other
    for row, value in enumerate(values):
        label = _id_of(value) if as_ids else index_of.get(value, -1)
        if 0 <= label < size:
            labels[row] = label
        elif value:
            if value not in suggestions:
                searched = not as_ids and len(suggestions) < MAX_SUGGESTIONS
                suggestions[value] = nearest_fix(value, index_of, otherwise) if searched else otherwise
            problems.append(
                Problem(f"unknown label {value!r}", f"{where}, {unit} {row + 1}", suggestions[value])
            )
    return labels, problems


def _id_of(value: str) -> int:
    return int(value) if _CANONICAL_ID.fullmatch(value) else -1


def _class_names(
    given: str | Sequence[str] | None,
    root: Path,
    table: pa.Table,
    label: Sequence[str],
    split: Sequence[str],
    rename: Mapping[str, str],
) -> tuple[str, ...]:
    if given is not None:
        return read_class_names(given, root)
    stored = (table.schema.metadata or {}).get(CLASS_NAMES_KEY)
    if stored is not None:
        return tuple(stored.decode().split("\n"))
    training = [value for value, part in zip(label, split, strict=True) if rename.get(part) == "train"]
    return seen_classes(label, training)


def seen_classes(labels: Iterable[str], training: Iterable[str]) -> tuple[str, ...]:
    """Return the classes of data without class names: ``"0"`` to the largest id, or the sorted training labels.

    Only training labels make classes, so that a misspelt label of another split is noticed.
    """
    seen = set(filter(None, labels))
    if all(_CANONICAL_ID.fullmatch(value) for value in seen):
        largest = max((int(value) for value in seen), default=0)
        return tuple(str(index) for index in range(min(largest, MAX_ID) + 1))
    return tuple(sorted(set(filter(None, training))))


def _empty_cells(source: Path, columns: Mapping[str, str], *values: Sequence[str]) -> list[Problem]:
    return [
        Problem(f"the column {name!r} is empty", f"{source}, row {row}", "fill it in or remove the row")
        for name, column in zip(columns.values(), values, strict=True)
        for row, value in enumerate(column, 1)
        if not value
    ]


def _strings(column: pa.ChunkedArray) -> list[str]:
    """Return a column as strings; a missing value becomes the empty string."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def _load(source: Path) -> pa.Table:
    suffix = source.suffix.lower()
    try:
        refuse_irregular(source)
        if suffix == ".parquet":
            return parquet.read_table(source)
        if suffix in (".csv", ".tsv"):
            parse = csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
            header = csv.open_csv(source, parse_options=parse).schema.names
            # Everything is text: a label "007" must not become 7, nor a class named "null" go missing.
            convert = csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            )
            return csv.read_csv(source, parse_options=parse, convert_options=convert)
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(source)) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())  # of Arrow's lines one line
        raise DataError(f"this is no readable table: {reason}", where=str(source)) from None
    raise DataError(f"unknown kind of table {suffix!r}", where=str(source), fix="use .csv, .tsv or .parquet")
