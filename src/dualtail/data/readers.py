"""One door to every way a data set may be stored: a name, a root and options make a manifest."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dualtail.data.cifar import read_cifar10_lt, read_cifar100_lt
from dualtail.data.hugging_face import read_hugging_face
from dualtail.data.image_folder import read_folder
from dualtail.data.inaturalist import read_inaturalist_2018
from dualtail.data.lists import read_lists
from dualtail.data.manifest import Manifest
from dualtail.data.oltr import read_imagenet_lt, read_places_lt
from dualtail.data.table import read_table
from dualtail.data.webdataset import read_webdataset
from dualtail.errors import DataError
from dualtail.registry import Registry

READERS: Registry[Callable[..., Manifest]] = Registry(
    "reader",
    {
        "folder": read_folder,
        "table": read_table,
        "lists": read_lists,
        "hugging_face": read_hugging_face,
        "webdataset": read_webdataset,
        "imagenet_lt": read_imagenet_lt,
        "places_lt": read_places_lt,
        "inaturalist_2018": read_inaturalist_2018,
        "cifar10_lt": read_cifar10_lt,
        "cifar100_lt": read_cifar100_lt,
    },
    group="dualtail.readers",
    given=("root", "allow_outside"),
    error=DataError,
)
"""What makes a manifest of a folder: ``reader(root, **options)``; one that opens files which it finds by itself takes
``allow_outside`` too."""


def read_manifest(kind: str, root: str | Path, /, *, allow_outside: bool = False, **options: Any) -> Manifest:
    """Read a data set.

    Args:
        kind: one of ``READERS``: ``"folder"``, ``"table"``, ``"lists"``, ``"hugging_face"``, ``"webdataset"`` for
            data of one's own, or a benchmark by name. The reader ``X`` is described at ``read_X``.
        root: the folder that holds the images.
        allow_outside: let images lie outside the root: by absolute paths, ``..`` or symbolic links.
        options: what that reader takes beside ``root``.

    Raises:
        DataError: the reader, an option or the root does not exist, the reader found a fault, or an image lies outside.

    Example:
        >>> read_manifest("foldr", ".")
        Traceback (most recent call last):
        dualtail.errors.DataError: unknown reader 'foldr'; did you mean 'folder'?
    """
    options = READERS.check_options(kind, options)
    root = Path(os.path.expanduser(root))
    if not os.path.isdir(root) and not options.get("dataset"):  # a data set of the hub is fetched into it
        raise DataError(
            "there is no such folder", where=str(root), fix="set the root to the folder of the images"
        )
    reader = READERS[kind]
    outside = (
        {"allow_outside": allow_outside} if "allow_outside" in inspect.signature(reader).parameters else {}
    )
    try:
        manifest = reader(root, **outside, **options)
    except OSError as error:  # a name too long for a file, a folder that may not be read, ...
        if isinstance(error, DataError):
            raise
        where = str(error.filename or root)
        raise DataError(f"cannot be read: {error.strerror or error}", where=where) from None
    if not allow_outside:
        manifest.refuse_outside(lambda row: _entry(manifest, row, options))
    return manifest


def _entry(manifest: Manifest, row: int, options: Mapping[str, Any]) -> str:
    """Return the file and the entry that an image comes from: a row of a table, or a line of its split's list."""
    if "file" in options:
        return f"{options['file']}, row {row + 1}"
    split = str(manifest.splits[row])
    number = int(np.count_nonzero(manifest.splits[: row + 1] == split))
    return f"{options.get(split, split)}, entry {number}"
