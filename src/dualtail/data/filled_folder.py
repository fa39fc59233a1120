"""Folders that dualtail fills with images: whole or not at all, and never over somebody's files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dualtail.errors import DataError
from dualtail.files import atomic_folder, write_json

ABOUT = "dualtail.json"


def about_folder(folder: Path) -> dict[str, Any] | None:
    """Return what ``fill_folder`` noted about a folder, or None if it is absent or empty.

    Raises:
        DataError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError("this is a file", where=str(folder), fix="name a new folder")
    if (folder / ABOUT).is_file():
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
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
        except OSError as error:
            raise DataError(f"cannot write there: {error.strerror}", where=str(folder.parent)) from None
        yield partial
        write_json(partial / ABOUT, about)
