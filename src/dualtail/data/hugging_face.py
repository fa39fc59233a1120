"""Parquet files with images, as Hugging Face's hub keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from dualtail.data.manifest import Manifest, read_class_names
from dualtail.data.unpacking import Packed, file_digests, matching, unpack
from dualtail.errors import DataError, first_line
from dualtail.files import inside, refuse_irregular


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
    allow_outside: bool = False,
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
        allow_outside: let Parquet files lie outside ``root``.

    Raises:
        DataError: the data set cannot be fetched, a split or column is missing, or ``images`` holds something else.
        DataFaults: labels that are unknown.
    """
    root = Path(root)
    if dataset is not None:
        _fetch(dataset, revision, config, root)
    names = {"train": train, "val": val, "test": test}
    files = {split: _parquet_files(root, config, name) for split, name in names.items() if name is not None}
    for split, some in files.items() if not allow_outside else ():
        for file in some:
            fix = "move it there, or set data.allow_outside to true if you trust it"
            inside(root, file.relative_to(root), where=f"split {split}", fix=fix)
    target = root / os.path.expanduser(images)
    stated = (
        read_class_names(class_names, root) if class_names is not None else _stated_names(files, label_column)
    )
    source = {"image": image_column, "label": label_column, "files": file_digests(files)}
    packed = {split: _parquet_rows(paths, image_column, label_column) for split, paths in files.items()}
    return unpack(target, packed, stated, source)


def _fetch(dataset: str, revision: str, config: str, root: Path) -> None:
    from huggingface_hub import snapshot_download

    patterns = [f"{config}/*", "data/*"] if revision == "refs/convert/parquet" else ["*.parquet"]
    try:
        snapshot_download(
            dataset, repo_type="dataset", revision=revision, allow_patterns=patterns, local_dir=str(root)
        )
    # The hub's client raises errors of several libraries: for the network, the name, the licence, the disk.
    except Exception as error:
        reason = first_line(error)
        raise DataError(
            f"cannot fetch the data set {dataset!r} from the hub: {reason}",
            fix="offline, put its Parquet files into the root and leave `dataset` out",
        ) from None


def _parquet_files(root: Path, config: str, split: str) -> list[Path]:
    files = matching(root, f"{config}/{split}/*.parquet") or matching(root, f"data/{split}-*.parquet")
    if not files:
        raise DataError(
            f"there are no Parquet files of the split {split!r}",
            where=str(root),
            fix=f"expected {config}/{split}/*.parquet or data/{split}-*.parquet",
        )
    return files


def _stated_names(files: Mapping[str, Sequence[Path]], label_column: str) -> tuple[str, ...] | None:
    """Return the class names in the files' own description of their columns, if there are any."""
    path = files["train"][0]
    try:
        metadata = parquet.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get(label_column, {}).get("names")
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error, str(path)) from None
    except (ValueError, AttributeError, RecursionError):
        raise DataError(
            "its description of the columns cannot be read", where=str(path), fix="give class_names"
        ) from None
    return None if names is None else read_class_names(names)


def _unreadable(error: Exception, where: str) -> DataError:
    reason = " ".join(str(error).split())  # of Arrow's lines and traces one line
    return DataError(f"this is no readable Parquet file: {reason}", where=where, fix="get it again")


def _parquet_rows(files: Sequence[Path], image_column: str, label_column: str) -> Iterator[Packed]:
    for path in files:
        row = 0
        try:
            refuse_irregular(path)
            table = parquet.ParquetFile(path, page_checksum_verification=True)
            present = table.schema_arrow.names
            for column in (image_column, label_column):
                if column not in present:
                    raise DataError(
                        f"there is no column {column!r}, only {', '.join(present)}",
                        where=str(path),
                        fix="name it with the options image_column and label_column",
                    )
            for batch in table.iter_batches(64, columns=[image_column, label_column]):
                for image, label in zip(*(batch.column(i).to_pylist() for i in (0, 1)), strict=True):
                    row += 1
                    content = image.get("bytes") if isinstance(image, dict) else image
                    if not isinstance(content, bytes) or label is None:
                        raise DataError(
                            "there is no image in the row, or no label", where=f"{path}, row {row}"
                        )
                    yield Packed(content, str(label))
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(error, f"{path}, after row {row}" if row else str(path)) from None
