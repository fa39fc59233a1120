"""Files and folders that are there whole or not at all, and the formats they are in.

Everything is written beside its final place and put there in one step, so that neither a fault nor a kill leaves half
a file, and what was there before stands until then.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dualtail.errors import DataError, DualtailError, FileError, RunError

if TYPE_CHECKING:
    from torch import Tensor

# Of our own temporary files, and of those that safetensors makes on the way to one.
_LEFT = re.compile(r"\..*\.\d+(-[0-9a-f]{8})?\.tmp|\.tmp[A-Za-z0-9]{6}", re.DOTALL)
# What parsing a damaged file may raise, beside safetensors' own error.
DAMAGE = (
    DualtailError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
_NAME_BYTES = 80  # of a name in that of its temporary file: names may have 255

_TO_DO = {
    errno.ENOSPC: "make room there, or choose a folder on another disk",
    errno.EDQUOT: "make room within your quota, or choose a folder on another disk",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that you may write to, or change its permissions",
    errno.EPERM: "choose a folder that you may write to, or change its permissions",
    errno.EIO: "the disk may be failing: choose a folder on another one",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files ('ulimit -n'), or use fewer workers",
    errno.ENFILE: "close other programs: the machine has too many files open",
    errno.EFBIG: "raise the limit of file sizes ('ulimit -f'), or choose another disk",
    errno.ENOTDIR: "a file is where a folder should be: move it away, or choose another folder",
    errno.EEXIST: "a file is where a folder should be: move it away, or choose another folder",
    errno.EISDIR: "a folder is where a file should be: move it away",
    errno.ENOENT: "somebody removed it: run the same command again",
}


def file_error(path: str | Path, error: OSError) -> FileError:
    """Return a fault of the operating system as one line: the file, what is wrong, what to do about it.

    Example:
        >>> print(file_error("runs/a.json", OSError(errno.ENOSPC, "No space left on device")))
        runs/a.json: cannot be written (No space left on device); make room there, or choose a folder on another disk
    """
    named = error.filename if isinstance(error.filename, (str, bytes)) else None
    reason = error.strerror or str(error)
    fault = FileError(
        f"{'cannot be written' if named is None else 'cannot be used'} ({reason})",
        where=os.fsdecode(named or path),
        fix=_TO_DO.get(error.errno or 0),
    )
    fault.reason = reason
    return fault


@contextlib.contextmanager
def writing(path: str | Path, temporary: Path | None = None) -> Iterator[None]:
    """While inside, a fault of the operating system is raised as one line that names ``path``.

    Args:
        path: what is being written.
        temporary: what stands for it meanwhile, which the line does not name.

    Raises:
        FileError: in place of an OSError.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        if temporary is not None and (named == str(temporary) or named.startswith(f"{temporary}{os.sep}")):
            error.filename = None
        raise file_error(path, error) from None


def make_folder(path: Path, *, flush: bool = True) -> None:
    """Make a folder and those above it that are absent; ``flush`` as in :func:`atomic_path`."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made if flush else ():
        _flush(folder.parent)


@contextlib.contextmanager
def atomic_path(path: str | Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an error.

    The file gets the mode that the umask gives to new files, whatever the library that writes it thinks of modes.

    Args:
        path: the final file; folders above it are made.
        flush: have the operating system put file and folder on the disk before this returns, so that the loss of
            power leaves the old or the new file. Only what is made again without loss can do without.

    Raises:
        FileError: the operating system refuses; the file that was there stands.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     sorted(entry.name for entry in Path(folder).iterdir())
        ['a.txt']
    """
    path = Path(path)
    temporary = _temporary(path)
    with writing(path, temporary):
        make_folder(path.parent, flush=flush)
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            if temporary.stat().st_mode != mode:
                temporary.chmod(mode)
            if flush:
                _flush(temporary)
            os.replace(temporary, path)
            if flush:
                _flush(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def move_file(source: Path, target: Path) -> None:
    """Put a file that is on the disk in the place of another one, so that the loss of power leaves one of the two.

    Raises:
        FileError: the operating system refuses.
    """
    with writing(target):
        os.replace(source, target)
        _flush(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place, and that of a folder there, at the end.

    Its files get the modes that the umask gives, and are on the disk before the folder is in its place.

    Raises:
        FileError: the operating system refuses; the folder that was there stands.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_folder(Path(folder) / "model") as temporary:
        ...         _ = (temporary / "weights").write_text("all of them")
        ...     sorted(str(entry.relative_to(folder)) for entry in Path(folder).rglob("*"))
        ['model', 'model/weights']
    """
    path = Path(path)
    temporary, old = _temporary(path), _temporary(path)
    with writing(path, temporary):
        make_folder(path.parent)
        try:
            temporary.mkdir()
            mode = temporary.stat().st_mode & 0o666
            yield temporary
            for folder, _, names in os.walk(temporary):
                for entry in (Path(folder) / name for name in names):
                    if entry.stat().st_mode & 0o777 != mode:
                        entry.chmod(mode)
                    _flush(entry)
                _flush(Path(folder))
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(old, path)
                raise
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """Return a new name beside ``path``: of this process alone, also where two machines share a folder."""
    name = path.name.encode(errors="surrogateescape")[:_NAME_BYTES].decode(errors="ignore")
    return path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sweep_temporaries(folder: str | Path, name: str = "") -> None:
    """Delete what killed writers left in ``folder``; nobody else may be writing there.

    Args:
        folder: looked through with all folders in it.
        name: of the one file or folder in it that is meant; all by default.
    """
    folder = Path(folder)
    found = folder.glob(f".{glob.escape(name)}.*.tmp") if name else folder.rglob(".*tmp*")
    for path in [path for path in found if _LEFT.fullmatch(path.name)]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


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
    """Have the operating system put a file or a directory's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not know of it
            raise
    finally:
        os.close(descriptor)


# What files of strangers name.

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def inside(
    root: str | Path,
    path: str | Path,
    *,
    where: str,
    fix: str | None = None,
    error: type[DualtailError] = DataError,
) -> Path:
    """Return ``root / path`` if it lies below ``root``, wherever symbolic links lead.

    Whatever a file names that is read, written or deleted goes through here.

    Args:
        root: the folder that must not be left; it may be a link itself.
        path: what the file names: relative to ``root``, or absolute.
        where: the file and the entry in it, for the message.
        fix: what to do about it, for the message.
        error: what is raised.

    Raises:
        DualtailError: it is the root itself, lies elsewhere, or is no path.

    Example:
        >>> inside("/runs/a", "b/../c.json", where="stages.json")
        PosixPath('/runs/a/b/../c.json')
        >>> inside("/runs/a", "../b/c.json", where="stages.json, prior")
        Traceback (most recent call last):
        dualtail.errors.DataError: stages.json, prior: '../b/c.json' leads out of /runs/a
    """
    try:
        leads_out = not is_inside(root, path)
    except (ValueError, TypeError, OSError):  # a NUL character, no text, a loop of links
        raise error(f"{path!r} is no path", where=where, fix=fix) from None
    if leads_out:
        raise error(f"{os.fspath(path)!r} leads out of {root}", where=where, fix=fix)
    return Path(root) / path


def is_inside(root: str | Path, path: str | Path, *, itself: bool = False) -> bool:
    """Whether ``root / path`` lies below ``root``, wherever symbolic links lead; ``itself``: or is it."""
    base, full = os.path.realpath(root), os.path.realpath(os.path.join(root, path))
    return itself if full == base else os.path.commonpath([base, full]) == base


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to be read; what would wait for a writer, or never end, is refused at once.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a device or a socket.

    Example:
        >>> open_regular("/dev/zero")
        Traceback (most recent call last):
        OSError: [Errno 22] it is a device, no regular file: '/dev/zero'
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL character
        raise OSError(errno.EINVAL, str(error), repr(path)) from None
    except OSError:
        refuse_irregular(path)  # a socket cannot even be opened
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _irregular(path, mode)
    return os.fdopen(descriptor, "rb")


def refuse_irregular(path: str | os.PathLike[str]) -> None:
    """Refuse what is there and is no regular file, before a library opens it.

    Raises:
        OSError: it is a folder, a pipe, a device or a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens it says what is wrong
    if not stat.S_ISREG(mode):
        raise _irregular(path, mode)


def _irregular(path: str | os.PathLike[str], mode: int) -> OSError:
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    return OSError(number, f"it is {kind}, no regular file", os.fspath(path))


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """Return the text of a regular file.

    Raises:
        OSError: as for :func:`open_regular`.
        UnicodeDecodeError: it is no text.
    """
    with open_regular(path) as file:
        return file.read().decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


# Formats.


def fingerprint(*parts: Any) -> str:
    """Return a short digest of JSON-able parts that is the same in every process.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file (hex); once a process for each state of the file.

    A state is its size, times and inode, so that a file which is replaced, also by one of the same size and time, is
    read again.

    Raises:
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder) / "a", "whole")
        ...     file_digest(Path(folder) / "a")[:8]
        '5d5766cf'
    """
    known = os.stat(path)
    return _digest_of(
        os.path.abspath(path), known.st_size, known.st_mtime_ns, known.st_ctime_ns, known.st_ino
    )


@lru_cache(maxsize=1 << 16)
def _digest_of(path: str, *_state: int) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, kind: type = object, fix: str = "delete it and run again") -> Any:
    """Read a JSON file of a run directory.

    Args:
        path: the file.
        kind: what it has to hold, such as ``dict``.
        fix: what to do where it is damaged.

    Raises:
        RunError: it is missing, cannot be read, or holds something else.
    """
    with reading(path, fix):
        content = json.loads(read_text(path), parse_constant=_refuse_constant)
        if not isinstance(content, kind):
            raise ValueError(f"it holds {type(content).__name__}, not {kind.__name__}")
        return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


@contextlib.contextmanager
def reading(path: str | Path, fix: str = "delete it and run again") -> Iterator[None]:
    """While inside, whatever the content of a damaged file leads to is raised as one line that names the file.

    Only reading and parsing belong inside: a fault of ours would look like one of the file.

    Raises:
        RunError: the file is missing, or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise RunError(
            "is missing", where=str(path), fix="run 'dualtail run' on this directory again"
        ) from None
    except Exception as error:
        if not isinstance(error, DAMAGE) and type(error).__name__ != "SafetensorError":
            raise
        reason = (
            (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        )
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        raise RunError(
            f"cannot be read ({' '.join(reason.split())[:200]})",
            where=str(path),
            fix=fix,
        ) from None


_FORMULA = re.compile("'*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def csv_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: such text gets a ``'`` before it; numbers stay numbers.

    Example:
        >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell(-0.5), csv_cell("tree frog")
        ("'=1+1", '-0.5', -0.5, 'tree frog')
    """
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def from_csv_cell(text: str) -> str:
    """Return what :func:`csv_cell` made a cell of.

    Example:
        >>> [from_csv_cell(csv_cell(text)) for text in ("=1+1", "'=1+1", "-5", "'-5", "'tis")]
        ['=1+1', "'=1+1", '-5', "'-5", "'tis"]
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV atomically; None is an empty cell, and text that starts a formula is quoted."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    before: Path | None = None,
) -> None:
    """Write tensors, from any device, as safetensors atomically.

    Args:
        path: the file.
        tensors: by name; copied to the CPU and made contiguous.
        metadata: text for the file's header.
        before: where the file that was there goes; None drops it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(ready, temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # it tells the operating system's errors as text
            number = int((re.search(r"os error (\d+)", str(error)) or ("", errno.EIO))[1])
            raise OSError(number, os.strerror(number)) from None
        if before is not None and Path(path).exists():
            os.replace(path, before)
