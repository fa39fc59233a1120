"""Packed images are unpacked once into a folder of image files, byte for byte, so that all else works on files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualtail.data.contents import file_digest
from dualtail.data.filled_folder import alone_with, fill_folder
from dualtail.data.manifest import Manifest
from dualtail.data.problems import DataFaults
from dualtail.data.table import label_ids, read_table, seen_classes
from dualtail.errors import DataError

TABLE = "manifest.parquet"
PER_FOLDER = 10_000
# First bytes -> suffix; others keep none, and the decoder looks at the bytes anyway.
_MAGIC = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*": ".tif",
}


class Packed(NamedTuple):
    """One image of a shard: its encoded bytes and its label as text."""

    content: bytes
    label: str


def unpack(
    target: Path,
    packed: Mapping[str, Iterable[Packed]],
    names: Sequence[str] | None,
    source: Mapping[str, Any],
) -> Manifest:
    """Write the images of every split to files once, and return the manifest of what lies there."""
    with alone_with(target) as about:
        if about is None:
            about = {"source": source}
            with fill_folder(target, about) as folder:
                _write(folder, packed, names)
    if about.get("source") != source:
        raise DataError(
            "the folder holds the images of other files",
            where=str(target),
            fix="remove it, or name another folder",
        )
    manifest = read_table(target, file=TABLE)
    return manifest if names is None else manifest.renamed(names)


def _write(folder: Path, packed: Mapping[str, Iterable[Packed]], names: Sequence[str] | None) -> None:
    paths: list[str] = []
    values: dict[str, list[str]] = {}
    for split, samples in packed.items():
        values[split] = []
        for number, sample in enumerate(samples):
            if not sample.label:
                raise DataError("the label is empty", where=f"{split}, image {number + 1}")
            path = f"{split}/{number // PER_FOLDER:04d}/{number:07d}{_suffix(sample.content)}"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(sample.content)
            paths.append(path)
            values[split].append(sample.label)
    names = names or seen_classes([label for labels in values.values() for label in labels], values["train"])
    labels, problems = [], []
    for split, given in values.items():
        ids, unknown = label_ids(given, names, split, "image")
        labels.append(ids)
        problems += unknown
    if problems:
        raise DataFaults(problems)
    splits = np.repeat(list(values), [len(given) for given in values.values()])
    Manifest(folder, tuple(paths), np.concatenate(labels), splits, tuple(names)).to_table(folder / TABLE)


def _suffix(content: bytes) -> str:
    return next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), "")


def matching(root: Path, pattern: str) -> list[Path]:
    """Return the files below ``root`` that a pattern names, sorted.

    Raises:
        DataError: it is no pattern, or an absolute one.
    """
    try:
        return sorted(root.glob(pattern))
    except (ValueError, NotImplementedError):  # empty, absolute, or with a NUL character
        raise DataError(
            f"{pattern!r} is no pattern below the root", where=str(root), fix="write such as train-*.tar"
        ) from None


def file_digests(files: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of every packed file, by split and name: what tells them from others."""
    return {split: {path.name: file_digest(path) for path in paths} for split, paths in files.items()}
