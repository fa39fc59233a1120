"""What image files hold: the SHA-256 of each and whether it decodes, looked at once and remembered.

What is known of a file stands as long as its size, its times of change (mtime, ctime) and its inode do. A file that was
changed less than two seconds before it was read is not remembered: another change within the clock's resolution would
leave no trace. What is remembered lies in the user's own cache, ``$DUALTAIL_CACHE`` or ``~/.cache/dualtail``, and never
in a run directory: a stranger's run must not say what our images hold. Where it cannot be written or is damaged, files
are read again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from dualtail import __version__
from dualtail.data.images import MAX_PIXELS, decode_image
from dualtail.errors import DataError
from dualtail.files import atomic_path

Progress = Callable[[int, int], None]
T = TypeVar("T")
R = TypeVar("R")

THREADS = 16  # more than cores: on network storage a reader mostly waits
SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system in use ticks every two seconds
SAVE_SECONDS = 60.0
_BLOCK = 1 << 22  # bytes read at once
_CHUNK = 64  # files a thread is given at once
_STATE = ("size", "mtime", "ctime", "inode")
_SCHEMA = pa.schema(
    [
        ("path", pa.large_binary()),
        *((name, pa.int64()) for name in _STATE),
        ("digest", pa.binary(32)),
        ("decoder", pa.string()),
        ("fault", pa.string()),
    ]
)


class Contents(NamedTuple):
    """What some files hold.

    Attributes:
        digests: uint8 ``(N, 32)``, the SHA-256 of each; zeros where a file cannot be read.
        faults: row to what is wrong with the file: it cannot be read or, if that was asked, decoded.
    """

    digests: np.ndarray
    faults: dict[int, str]


class _Examined(NamedTuple):
    state: tuple[int, ...] | None  # None: not to be remembered
    digest: bytes
    fault: str


def read_contents(
    root: str | Path,
    paths: Sequence[str],
    *,
    decode: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Contents:
    """Return the SHA-256 of every file, read again only where it has changed since the last time.

    Args:
        root: the folder that the paths start from; what is known is kept by root.
        paths: relative to ``root``, or absolute.
        decode: look whether each file is an image that can be decoded, too.
        max_pixels: of an image, at most.
        progress: called with (files done, files to read) now and then.
    """
    files = [os.path.join(root, path) for path in paths]
    unique = list(dict.fromkeys(files))
    examine = partial(_examine, decode=decode, max_pixels=max_pixels)
    found = _read_unique(unique, _Memory(root, max_pixels), decode, examine, progress)
    if len(unique) == len(files):
        return found
    place = {file: row for row, file in enumerate(unique)}
    rows = [place[file] for file in files]
    faults = {row: found.faults[at] for row, at in enumerate(rows) if at in found.faults}
    return Contents(found.digests[rows], faults)


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of one file in hex, read again only where it has changed since the last time.

    Raises:
        DataError: it cannot be read.
    """
    found = read_contents(Path(path).parent, [Path(path).name])
    if found.faults:
        raise DataError(found.faults[0], where=str(path))
    return found.digests[0].tobytes().hex()


def _read_unique(
    files: Sequence[str],
    memory: _Memory,
    decode: bool,
    examine: Callable[[str], _Examined],
    progress: Progress | None,
) -> Contents:
    digests = np.zeros((len(files), 32), dtype=np.uint8)
    known, digests[:], faults = memory.recall(files, decode)
    due = np.flatnonzero(~known).tolist()
    saved = time.monotonic()
    try:
        results = _in_threads(lambda row: examine(files[row]), due)
        for done, (row, result) in enumerate(zip(due, results, strict=True), 1):
            digests[row] = np.frombuffer(result.digest, dtype=np.uint8)
            if result.fault:
                faults[row] = result.fault
            memory.learn(files[row], result, decode)
            if progress is not None and (done % _CHUNK == 0 or done == len(due)):
                progress(done, len(due))
            if time.monotonic() - saved > SAVE_SECONDS:
                memory.save()
                saved = time.monotonic()
    finally:
        memory.save()
    return Contents(digests, faults)


def _examine(path: str, *, decode: bool, max_pixels: int) -> _Examined:
    """Read a file, and decode it if asked."""
    began = time.time_ns()
    digest = hashlib.sha256()
    try:
        # Without blocking: a pipe that nobody writes to would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                return _Examined(None, bytes(32), "this is no regular file")
            while block := os.read(descriptor, min(before.st_size + 1, _BLOCK)):
                digest.update(block)
        finally:
            os.close(descriptor)
        fault, certain = _decoding_fault(path, before.st_size, max_pixels) if decode else ("", True)
    except FileNotFoundError:
        return _Examined(None, bytes(32), "there is no such file")
    except ValueError as error:  # of a path that no file can have
        return _Examined(None, bytes(32), f"cannot be read ({error})")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # the machine's fault, not the file's
            fix = "raise the limit ('ulimit -n'), or free some memory"
            raise DataError(f"cannot be read ({error.strerror})", where=path, fix=fix) from None
        return _Examined(None, bytes(32), f"cannot be read ({error.strerror or error})")
    # A change since then shows in the state of the next time, if the clock has moved on since the last one.
    settled = max(before.st_mtime_ns, before.st_ctime_ns) + SETTLED_NS < began
    return _Examined(_state_of(before) if settled and certain else None, digest.digest(), fault)


def _decoding_fault(path: str, size: int, max_pixels: int) -> tuple[str, bool]:
    """Return what is wrong with an image, and whether it is certain: the machine's fault may be gone next time."""
    if size == 0:
        return "the file is empty", True
    try:
        decode_image(path, max_pixels=max_pixels)
    except DataError as error:
        cause = error.__context__
        certain = not isinstance(cause, MemoryError) and getattr(cause, "errno", None) is None
        return error.what, certain
    return "", True


def _state_of(status: os.stat_result) -> tuple[int, ...]:
    # An inode may have 64 bits, of which a signed column takes 63.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)


def _state(path: str) -> tuple[int, ...]:
    try:
        return _state_of(os.stat(path))
    except (OSError, ValueError):
        return (-1, -1, -1, -1)


def _in_threads(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield ``work(item)`` of every item in order, computed by threads that stop when nobody asks any more."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    pool = ThreadPoolExecutor(min(THREADS, max(1, len(chunks))))
    try:
        for results in pool.map(lambda chunk: [work(item) for item in chunk], chunks):
            yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Memory:
    """What is remembered of the files below one root, in a Parquet file of the user's cache."""

    def __init__(self, root: str | Path, max_pixels: int) -> None:
        folder = cache_folder()
        name = hashlib.sha256(os.path.abspath(root).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self.file = None if folder is None else folder / "contents" / f"{name}.parquet"
        # A newer one may decode what an older one did not.
        self.decoder = f"dualtail {__version__}, pillow {PIL.__version__}, {max_pixels} pixels"
        self.table = _SCHEMA.empty_table()
        if self.file is not None and self.file.is_file():
            # Damaged, or of another version: what it knew is found out again.
            with contextlib.suppress(pa.ArrowException, OSError, ValueError):
                read = parquet.read_table(self.file, page_checksum_verification=True)
                if read.schema.equals(_SCHEMA):
                    self.table = read.combine_chunks()
        self._learnt: dict[bytes, tuple[object, ...]] = {}

    def recall(self, files: Sequence[str], decode: bool) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Return which files are known, bool ``(N,)``, their digests, and the faults of those that do not decode."""
        digests = np.zeros((len(files), 32), dtype=np.uint8)
        known, table = np.zeros(len(files), dtype=bool), self.table
        if not len(table) or not files:
            return known, digests, {}
        names = pa.array([_encoded(file) for file in files], pa.large_binary())
        rows = pc.index_in(names, value_set=table["path"].combine_chunks()).fill_null(-1).to_numpy()
        states = np.array(list(_in_threads(_state, files)), dtype=np.int64)
        stored = np.stack([table[name].to_numpy() for name in _STATE], 1)
        known = (rows >= 0) & (stored[rows] == states).all(1)
        digests[known] = _bytes_of(table["digest"])[rows[known]]
        if not decode:
            return known, digests, {}
        known &= pc.equal(table["decoder"], self.decoder).to_numpy(zero_copy_only=False)[rows]
        bad = known & (pc.binary_length(table["fault"]).to_numpy()[rows] > 0)
        return (
            known,
            digests,
            {int(row): table["fault"][int(rows[row])].as_py() for row in np.flatnonzero(bad)},
        )

    def learn(self, file: str, result: _Examined, decoded: bool) -> None:
        """Remember what a file holds, if it can be relied on."""
        if result.state is not None:
            decoder = self.decoder if decoded else ""
            self._learnt[_encoded(file)] = (*result.state, result.digest, decoder, result.fault)

    def save(self) -> None:
        """Write down what was learnt; where that cannot be done, it will be learnt again."""
        if not self._learnt or self.file is None:
            return
        rows = [(path, *known) for path, known in self._learnt.items()]
        columns = (
            pa.array(column, kind)
            for column, kind in zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)
        )
        new = pa.Table.from_arrays(list(columns), schema=_SCHEMA)
        old = self.table.filter(
            pc.invert(pc.is_in(self.table["path"], value_set=new["path"].combine_chunks()))
        )
        self.table, self._learnt = pa.concat_tables([old, new]).combine_chunks(), {}
        with contextlib.suppress(OSError), atomic_path(self.file) as temporary:
            parquet.write_table(self.table, temporary, write_page_checksum=True)


def cache_folder() -> Path | None:
    """Return the folder of what this user's dualtail remembers; None where there is no home for it."""
    own = os.environ.get("DUALTAIL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(own) if own else Path(base) / "dualtail"
    return folder if folder.is_absolute() else None


def _encoded(path: str) -> bytes:
    return os.path.abspath(path).encode("utf-8", "surrogatepass")


def _bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of 32 bytes a row as uint8 ``(N, 32)``."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    flat = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return flat[32 * array.offset : 32 * (array.offset + len(array))].reshape(-1, 32)
