"""Images in WebDataset's tar shards."""

from __future__ import annotations

import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dualtail.data.images import IMAGE_SUFFIXES
from dualtail.data.manifest import Manifest, read_class_names
from dualtail.data.unpacking import Packed, file_digests, matching, unpack
from dualtail.errors import DataError
from dualtail.files import inside, open_regular

MAX_SHARDS = 100_000
MAX_MEMBER_BYTES = 1 << 29
"""Of a file in a shard, at most: a header may claim any size, and its reader would ask for as much memory."""

# What tarfile raises about a damaged or hostile archive, beside its own errors.
BROKEN_ARCHIVE = (
    *(tarfile.TarError, EOFError, OSError, ValueError, OverflowError, MemoryError, RecursionError),
    *(zlib.error, lzma.LZMAError),
)
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
    allow_outside: bool = False,
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
        allow_outside: let shards lie outside ``root``.

    Raises:
        DataError: there is no such shard, a shard is broken, or ``images`` holds something else.
        DataFaults: labels that are unknown.
    """
    root = Path(root)
    patterns = {"train": train, "val": val, "test": test}
    files = {split: _shards(root, pattern) for split, pattern in patterns.items() if pattern is not None}
    for split, shards in files.items() if not allow_outside else ():
        for shard in shards:
            fix = "move it there, or set data.allow_outside to true if you trust it"
            inside(root, os.path.relpath(shard, root), where=f"{split}: {patterns[split]}", fix=fix)
    target = root / os.path.expanduser(images)
    stated = None if class_names is None else read_class_names(class_names, root)
    source = {"label": label, "json_key": json_key, "files": file_digests(files)}
    packed = {split: _tar_samples(paths, label, json_key) for split, paths in files.items()}
    return unpack(target, packed, stated, source)


def _shards(root: Path, pattern: str) -> list[Path]:
    braces = _BRACES.search(pattern)
    if braces:
        first, last = braces.groups()
        if max(len(first), len(last)) > 9 or int(last) - int(first) >= MAX_SHARDS:
            raise DataError(
                f"the pattern stands for more than {MAX_SHARDS:,} shards", where=pattern, fix="mend the range"
            )
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [pattern[: braces.start()] + number + pattern[braces.end() :] for number in numbers]
    else:
        names = [str(path.relative_to(root)) for path in matching(root, pattern)]
    files = [root / name for name in names]
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        raise DataError("there is no such shard", where=missing[0] if missing else str(root / pattern))
    return files


class _StrictInfo(tarfile.TarInfo):
    """A member whose header is one: ``tarfile`` itself takes a damaged or missing one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        """Read a header."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):
                raise  # a block of zeros is the end
            what = f"a damaged header ({error})" if buf else "its end is missing"
            raise tarfile.ReadError(what) from None


def _tar_samples(files: Sequence[Path], label: str, json_key: str) -> Iterator[Packed]:
    for path in files:
        tar = None
        try:
            with open_regular(path) as file, tarfile.open(fileobj=file, tarinfo=_StrictInfo) as tar:
                yield from _samples_of(tar, label, json_key, path)
        except BROKEN_ARCHIVE as error:
            seen = [] if tar is None else tar.members  # type: ignore[attr-defined]
            where = f"{path}, in or after {seen[-1].name!r}" if seen else str(path)
            reason = str(error) or type(error).__name__
            raise DataError(f"the shard cannot be read: {reason}", where=where, fix="get it again") from None


def _refuse_more(tar: tarfile.TarFile) -> None:
    """Refuse an archive that goes on behind the block of zeros that should be its end."""
    assert tar.fileobj is not None
    while block := tar.fileobj.read(1 << 20):
        if block.count(0) != len(block):
            raise tarfile.ReadError("a damaged header, or a second archive behind the first")


def _samples_of(tar: tarfile.TarFile, label: str, json_key: str, path: Path) -> Iterator[Packed]:
    """Yield the samples of a shard: neighbouring files of one name up to the first dot."""
    current = ""
    parts: dict[str, bytes] = {}

    def finished() -> Iterator[Packed]:
        image = next((content for name, content in parts.items() if f".{name}" in IMAGE_SUFFIXES), None)
        if image is None and label in parts:
            raise DataError(
                f"the sample {current!r} has no image", where=str(path), fix="pack the shard again"
            )
        if image is not None:
            if label not in parts:
                raise DataError(
                    f"the sample {current!r} has no .{label}", where=str(path), fix="see the option label"
                )
            yield Packed(image, _label_text(parts[label], label, json_key, f"{path}, {current}"))

    for member in tar:
        if not 0 <= member.size <= MAX_MEMBER_BYTES:  # before the next header is looked for behind it
            raise DataError(
                f"the file {member.name!r} claims {member.size:,} bytes, the limit is {MAX_MEMBER_BYTES:,}",
                where=f"{path}, in or after {member.name!r}",
                fix="pack the shard again without it",
            )
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
    _refuse_more(tar)
    yield from finished()


def _label_text(content: bytes, label: str, json_key: str, where: str) -> str:
    try:
        return str(json.loads(content)[json_key]) if label == "json" else content.decode().strip()
    except (ValueError, KeyError, TypeError):
        raise DataError(f"the label cannot be read from .{label}", where=where) from None
