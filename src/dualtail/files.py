"""Files and folders that are there whole or not at all, and the formats they are in.

Everything is written beside its final place and put there in one step, so that neither a fault nor a kill leaves half
a file, and what was there before stands until then.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualtail.errors import DataError, RunError

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def atomic_path(path: str | Path, *, flush: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an error.

    Args:
        path: the final file; folders above it are made.
        flush: ask the operating system to have file and folder on the disk before this returns, so that the loss of
            power leaves the old or the new file.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     sorted(entry.name for entry in Path(folder).iterdir())
        ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if flush:
            _flush(temporary)
        os.replace(temporary, path)
        if flush:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep_temporaries(folder: str | Path) -> None:
    """Delete what killed writers left below ``folder``; nobody else may be writing there."""
    for path in Path(folder).rglob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place, and that of a folder there, at the end.

    Files that libraries made private become readable as the folder's others are.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_folder(Path(folder) / "model") as temporary:
        ...         _ = (temporary / "weights").write_text("all of them")
        ...     sorted(str(entry.relative_to(folder)) for entry in Path(folder).rglob("*"))
        ['model', 'model/weights']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        for entry in (temporary, *temporary.iterdir()):  # mkdtemp and safetensors make them private
            entry.chmod(0o755 if entry.is_dir() else 0o644)
        before = temporary.with_name(f"{temporary.name}.old")
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, before)
        os.replace(temporary, path)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: str | Path, marker: str, what: str) -> None:
    """Refuse to replace what is not absent, empty or an earlier result.

    Args:
        path: of the folder.
        marker: the file that tells an earlier result.
        what: it would be, in the message.

    Raises:
        DataError: it is a file, or a folder that holds something else.
    """
    path = Path(path)
    other = path.is_dir() and any(path.iterdir()) and not (path / marker).is_file()
    if other or (path.exists() and not path.is_dir()):
        raise DataError(f"is there and is no {what}", where=str(path), fix="name a new folder")


def _flush(path: Path) -> None:
    """Ask the operating system to put a file or a directory's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Formats.


def fingerprint(*parts: Any) -> str:
    """Return a short digest of JSON-able parts that is the same in every process.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file of a run directory.

    Raises:
        RunError: it is missing, or cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            "is missing", where=str(path), fix="run 'dualtail run' on this directory again"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read ({error})", where=str(path), fix="delete it and run again") from None


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV atomically; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    flush: bool = False,
) -> None:
    """Write tensors, from any device, as safetensors atomically.

    Args:
        path: the file.
        tensors: by name; copied to the CPU and made contiguous.
        metadata: text for the file's header.
        flush: as in :func:`atomic_path`.
    """
    from safetensors.torch import save_file

    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_path(path, flush=flush) as temporary:
        save_file(ready, temporary, metadata=None if metadata is None else dict(metadata))
