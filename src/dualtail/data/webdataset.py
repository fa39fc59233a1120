"""Images in WebDataset's tar shards."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from dualtail.data.images import IMAGE_SUFFIXES
from dualtail.data.manifest import Manifest, read_class_names
from dualtail.data.unpacking import Packed, file_sizes, unpack
from dualtail.errors import DataError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


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
    source = {"label": label, "json_key": json_key, "files": file_sizes(files)}
    packed = {split: _tar_samples(paths, label, json_key) for split, paths in files.items()}
    return unpack(target, packed, stated, source)


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
