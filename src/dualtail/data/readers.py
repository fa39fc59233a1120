"""One door to every way a data set may be stored: a name, a root and options make a manifest."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualtail.data.cifar import read_cifar10_lt, read_cifar100_lt
from dualtail.data.folder import read_folder
from dualtail.data.inaturalist import read_inaturalist_2018
from dualtail.data.lists import read_lists
from dualtail.data.manifest import Manifest, nearest_fix
from dualtail.data.oltr import read_imagenet_lt, read_places_lt
from dualtail.data.shards import read_hugging_face, read_webdataset
from dualtail.data.table import read_table
from dualtail.errors import DataError

READERS: dict[str, Callable[..., Manifest]] = {
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
}


def read_manifest(kind: str, root: str | Path, **options: Any) -> Manifest:
    """Read a data set.

    Args:
        kind: one of `READERS`: ``"folder"``, ``"table"``, ``"lists"``, ``"hugging_face"``, ``"webdataset"`` for
            data of one's own, or a benchmark by name. The reader ``X`` is described at ``read_X``.
        root: the folder that holds the images.
        options: what that reader takes beside ``root``.

    Raises:
        DataError: the kind, an option or the root does not exist, or the reader found a fault.

    Example:
        >>> read_manifest("foldr", ".")
        Traceback (most recent call last):
        dualtail.errors.DataError: there is no data source 'foldr'; did you mean 'folder'?
    """
    if kind not in READERS:
        known = ", ".join(READERS)
        raise DataError(
            f"there is no data source {kind!r}", fix=nearest_fix(kind, READERS, f"use one of {known}")
        )
    reader = READERS[kind]
    known_options = reader_options(kind)
    for name in options:
        if name not in known_options:
            fix = nearest_fix(name, known_options, f"it takes {', '.join(known_options)}")
            raise DataError(f"the data source {kind!r} has no option {name!r}", fix=fix)
    missing = [name for name, default in known_options.items() if default is inspect.Parameter.empty]
    for name in missing:
        if name not in options:
            raise DataError(f"the data source {kind!r} needs the option {name!r}")
    root = Path(root).expanduser()
    if not root.is_dir() and not options.get("dataset"):  # a data set of the hub is fetched into it
        raise DataError(
            "there is no such folder", where=str(root), fix="set the root to the folder of the images"
        )
    return reader(root, **options)


def reader_options(kind: str) -> dict[str, Any]:
    """Return the options of a reader with their defaults (``inspect.Parameter.empty`` where one is required)."""
    parameters = list(inspect.signature(READERS[kind]).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}
