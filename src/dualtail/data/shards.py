"""Images that come packed: Parquet files as Hugging Face's hub keeps them, and WebDataset's tar shards.

Both are unpacked once into a folder of image files, byte for byte, so that everything else works on files.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from dualtail.data.filled_folder import about_folder, fill_folder
from dualtail.data.images import IMAGE_SUFFIXES
from dualtail.data.manifest import Manifest, read_class_names
from dualtail.data.problems import DataFaults
from dualtail.data.table import label_ids, read_table, seen_classes
from dualtail.errors import DataError

TABLE = "manifest.parquet"
PER_FOLDER = 10_000
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
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


def read_hugging_face(
    root: Path,
    *,
    dataset: str | None = None,
    config: str = "default",
    revision: str = "refs/convert/parquet",
    train: str = "train",
    val: str | None = None,
    test: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    class_names: str | Sequence[str] | None = None,
    images: str = "images",
) -> Manifest:
    """Read an image data set of Hugging Face's hub, from its Parquet files.

    With ``dataset`` the files are fetched from the hub into ``root`` (its branch ``refs/convert/parquet`` holds a
    Parquet copy of nearly every data set, ``CONFIG/SPLIT/*.parquet``). Without, ``root`` has them already: as
    there, or as ``data/SPLIT-*.parquet``, which is how a data set's own branch keeps them.

    Args:
        root: folder of the Parquet files.
        dataset: name on the hub, such as ``"uoft-cs/cifar100"``; None reads what is in ``root``.
        config: the data set's configuration.
        revision: branch or commit to fetch.
        train: name of the data set's training split.
        val: name of its validation split, None if it has none.
        test: name of its test split, None if it has none.
        image_column: column with the images.
        label_column: column with the labels.
        class_names: see ``read_class_names``; by default those that the files state.
        images: the folder to unpack to; relative to ``root`` or absolute.

    Raises:
        DataError: the data set cannot be fetched, a split or column is missing, or ``images`` holds something else.
        DataFaults: labels that are unknown.
    """
    root = Path(root)
    if dataset is not None:
        _fetch(dataset, revision, config, root)
    names = {"train": train, "val": val, "test": test}
    files = {split: _parquet_files(root, config, name) for split, name in names.items() if name is not None}
    target = root / Path(images).expanduser()
    stated = (
        read_class_names(class_names, root) if class_names is not None else _stated_names(files, label_column)
    )
    source = {"image": image_column, "label": label_column, "files": _sizes(files)}
    packed = {split: _parquet_rows(paths, image_column, label_column) for split, paths in files.items()}
    return _unpack(target, packed, stated, source)


def read_webdataset(
    root: Path,
    *,
    train: str,
    val: str | None = None,
    test: str | None = None,
    class_names: str | Sequence[str] | None = None,
    label: str = "cls",
    json_key: str = "label",
    images: str = "images",
) -> Manifest:
    """Read WebDataset shards: tar files in which ``KEY.jpg`` and ``KEY.cls`` make one sample.

    Args:
        root: folder of the shards.
        train: the training shards as a pattern, such as ``"train-*.tar"`` or ``"train-{000..063}.tar"``.
        val: the validation shards.
        test: the test shards.
        class_names: see ``read_class_names``; by default the sorted labels, or the numbers up to the largest id.
        label: extension of the files with the labels: text (an id or a name), or ``"json"``.
        json_key: key of the label in a JSON file.
        images: the folder to unpack to; relative to ``root`` or absolute.

    Raises:
        DataError: there is no such shard, a shard is broken, or ``images`` holds something else.
        DataFaults: labels that are unknown.
    """
    root = Path(root)
    patterns = {"train": train, "val": val, "test": test}
    files = {split: _shards(root, pattern) for split, pattern in patterns.items() if pattern is not None}
    target = root / Path(images).expanduser()
    stated = None if class_names is None else read_class_names(class_names, root)
    source = {"label": label, "json_key": json_key, "files": _sizes(files)}
    packed = {split: _tar_samples(paths, label, json_key) for split, paths in files.items()}
    return _unpack(target, packed, stated, source)


# --- unpacking


def _unpack(
    target: Path,
    packed: Mapping[str, Iterable[Packed]],
    names: Sequence[str] | None,
    source: Mapping[str, Any],
) -> Manifest:
    """Write the images of every split to files once, and return the manifest of what lies there."""
    about = about_folder(target)
    if about is None:
        with fill_folder(target, {"source": source}) as folder:
            _write(folder, packed, names)
    elif about.get("source") != source:
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


def _sizes(files: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, int]]:
    return {split: {path.name: path.stat().st_size for path in paths} for split, paths in files.items()}


# --- Parquet files with images


def _fetch(dataset: str, revision: str, config: str, root: Path) -> None:
    from huggingface_hub import snapshot_download

    patterns = [f"{config}/*", "data/*"] if revision == "refs/convert/parquet" else ["*.parquet"]
    try:
        snapshot_download(
            dataset, repo_type="dataset", revision=revision, allow_patterns=patterns, local_dir=str(root)
        )
    # The hub's client raises errors of several libraries: for the network, the name, the licence, the disk.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot fetch the data set {dataset!r} from the hub: {reason}",
            fix="offline, put its Parquet files into the root and leave `dataset` out",
        ) from None


def _parquet_files(root: Path, config: str, split: str) -> list[Path]:
    files = sorted(root.glob(f"{config}/{split}/*.parquet")) or sorted(root.glob(f"data/{split}-*.parquet"))
    if not files:
        raise DataError(
            f"there are no Parquet files of the split {split!r}",
            where=str(root),
            fix=f"expected {config}/{split}/*.parquet or data/{split}-*.parquet",
        )
    return files


def _stated_names(files: Mapping[str, Sequence[Path]], label_column: str) -> tuple[str, ...] | None:
    """Return the class names in the files' own description of their columns, if there are any."""
    metadata = parquet.read_schema(files["train"][0]).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label_column, {}).get("names")
    return None if names is None else read_class_names(names)


def _parquet_rows(files: Sequence[Path], image_column: str, label_column: str) -> Iterator[Packed]:
    for path in files:
        try:
            table = parquet.ParquetFile(path)
            present = table.schema_arrow.names
            for column in (image_column, label_column):
                if column not in present:
                    raise DataError(
                        f"there is no column {column!r}, only {', '.join(present)}",
                        where=str(path),
                        fix="name it with the options image_column and label_column",
                    )
            row = 0
            for batch in table.iter_batches(64, columns=[image_column, label_column]):
                for image, label in zip(*(batch.column(i).to_pylist() for i in (0, 1)), strict=True):
                    row += 1
                    content = image.get("bytes") if isinstance(image, dict) else image
                    if not isinstance(content, bytes) or label is None:
                        raise DataError(
                            "there is no image in the row, or no label", where=f"{path}, row {row}"
                        )
                    yield Packed(content, str(label))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"this is no readable Parquet file: {error}", where=str(path)) from None


# --- tar files


def _shards(root: Path, pattern: str) -> list[Path]:
    braces = _BRACES.search(pattern)
    if braces:
        first, last = braces.groups()
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [pattern[: braces.start()] + number + pattern[braces.end() :] for number in numbers]
    else:
        names = [str(path.relative_to(root)) for path in sorted(root.glob(pattern))]
    files = [root / name for name in names]
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        raise DataError("there is no such shard", where=missing[0] if missing else str(root / pattern))
    return files


def _tar_samples(files: Sequence[Path], label: str, json_key: str) -> Iterator[Packed]:
    for path in files:
        try:
            with tarfile.open(path) as tar:
                yield from _samples_of(tar, label, json_key, path)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"the shard cannot be read: {error}", where=str(path)) from None


def _samples_of(tar: tarfile.TarFile, label: str, json_key: str, path: Path) -> Iterator[Packed]:
    """Yield the samples of a shard: neighbouring files of one name up to the first dot."""
    current = ""
    parts: dict[str, bytes] = {}

    def finished() -> Iterator[Packed]:
        image = next((content for name, content in parts.items() if f".{name}" in IMAGE_SUFFIXES), None)
        if image is not None:
            if label not in parts:
                raise DataError(
                    f"the sample {current!r} has no .{label}", where=str(path), fix="see the option label"
                )
            yield Packed(image, _label_text(parts[label], label, json_key, f"{path}, {current}"))

    for member in tar:
        if not member.isfile():
            continue
        folder, _, name = member.name.rpartition("/")
        key, _, extension = name.partition(".")
        if f"{folder}/{key}" != current:
            yield from finished()
            current, parts = f"{folder}/{key}", {}
        file = tar.extractfile(member)
        extension = extension.lower()
        if file is not None and (extension == label or f".{extension}" in IMAGE_SUFFIXES):
            parts[extension] = file.read()
    yield from finished()


def _label_text(content: bytes, label: str, json_key: str, where: str) -> str:
    try:
        return str(json.loads(content)[json_key]) if label == "json" else content.decode().strip()
    except (ValueError, KeyError, TypeError):
        raise DataError(f"the label cannot be read from .{label}", where=where) from None
