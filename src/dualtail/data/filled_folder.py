"""Folders that dualtail fills with images: whole or not at all, and never over somebody's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dualtail.errors import DataError, FileError
from dualtail.files import atomic_folder, make_folder, read_json, sweep_temporaries, write_json, writing
from dualtail.locks import only_one

ABOUT = "dualtail.json"


def about_folder(folder: Path) -> dict[str, Any] | None:
    """Return what ``fill_folder`` noted about a folder, or None if it is absent or empty.

    Raises:
        DataError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError("this is a file", where=str(folder), fix="name a new folder")
    if (folder / ABOUT).is_file():
        return read_json(folder / ABOUT, dict)
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(
            "the folder holds something else", where=str(folder), fix="name a new or an empty folder"
        )
    return None


@contextmanager
def fill_folder(folder: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """Give a folder to write to, which takes the place of ``folder`` at the end; on any error it vanishes.

    Args:
        folder: absent, empty, or an earlier result.
        about: JSON-able notes on the content, for ``about_folder``.

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    about_folder(folder)
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(atomic_folder(folder))
        except FileError as error:
            raise _unwritable(folder, error) from None
        yield partial
        write_json(partial / ABOUT, about)


@contextmanager
def alone_with(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Yield what ``about_folder`` says; where nothing is there yet, nobody else may fill the folder meanwhile.

    Who comes later waits, and finds the folder filled. What a killed process left of it is deleted.

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    about = about_folder(folder)
    if about is not None:
        yield about
        return
    with ExitStack() as stack:
        try:
            with writing(folder):
                make_folder(folder.parent)
            stack.enter_context(only_one(folder.with_name(f".{folder.name}.lock")))
        except FileError as error:
            raise _unwritable(folder, error) from None
        sweep_temporaries(folder.parent, folder.name)
        yield about_folder(folder)


def _unwritable(folder: Path, error: FileError) -> DataError:
    return DataError(f"cannot write there: {error.reason}", where=str(folder.parent), fix=error.fix)
