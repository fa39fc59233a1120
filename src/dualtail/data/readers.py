"""One door to every way a data set may be stored: a name, a root and options make a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    given=("root",),
    error=DataError,
)
"""What makes a manifest of a folder: ``reader(root, **options)``."""


def read_manifest(kind: str, root: str | Path, /, **options: Any) -> Manifest:
    """Read a data set.

    Args:
        kind: one of ``READERS``: ``"folder"``, ``"table"``, ``"lists"``, ``"hugging_face"``, ``"webdataset"`` for
            data of one's own, or a benchmark by name. The reader ``X`` is described at ``read_X``.
        root: the folder that holds the images.
        options: what that reader takes beside ``root``.

    Raises:
        DataError: the reader, an option or the root does not exist, or the reader found a fault.

    Example:
        >>> read_manifest("foldr", ".")
        Traceback (most recent call last):
        dualtail.errors.DataError: unknown reader 'foldr'; did you mean 'folder'?
    """
    READERS.check_options(kind, options)
    root = Path(root).expanduser()
    if not root.is_dir() and not options.get("dataset"):  # a data set of the hub is fetched into it
        raise DataError(
            "there is no such folder", where=str(root), fix="set the root to the folder of the images"
        )
    return READERS[kind](root, **options)
