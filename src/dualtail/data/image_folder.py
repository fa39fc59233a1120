"""The ImageFolder layout: a folder a split, in it a folder a class, in it the images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualtail.data.images import IMAGE_SUFFIXES
from dualtail.data.manifest import SPLITS, Manifest, read_class_names, read_names
from dualtail.errors import DataError, nearest_fix

# What people call a split folder when they do not call it train, val or test.
_OTHER_SPLIT_NAMES = {"valid", "validation", "training", "testing", "dev"}


def read_folder(
    root: Path,
    *,
    train: str = "train",
    val: str = "val",
    test: str = "test",
    class_names: str | Sequence[str] | Mapping[str, str] | None = None,
) -> Manifest:
    """Read an ImageFolder tree: ``root/train/CLASS/.../image.jpg``, and ``val`` and ``test`` where they exist.

    Classes are the sorted names of the class folders of all splits, so that a class without a training image
    is seen and named by ``check_manifest`` rather than dropped. Images may lie in subfolders of their class and
    behind symbolic links; a link to a folder that it lies in itself is left alone. A root with class folders and no
    split folder is all training data.

    Args:
        root: the tree.
        train: name of the folder with the training images.
        val: name of the folder with the validation images, which may be absent.
        test: name of the folder with the test images, which may be absent.
        class_names: what the classes are called where their folders have codes for names, as prompts need:
            folder to name, or the names in the order of the sorted folders. Or a file with that: JSON, or text
            with one name a line, each behind its folder (``n01440764 tench``) or none.

    Raises:
        DataError: there is no training folder, no class folder in it, or a class folder without a name.
    """
    folders = {"train": train, "val": val, "test": test}
    top = _Folder.of(root)
    present = {split: name for split, name in folders.items() if _is_below(root / name, top)}
    notes = []
    if "train" not in present:
        _require_flat_layout(root, folders)
        present = {"train": "."}
        notes.append("the root has no train folder: its class folders were all read as training data")
    split_folders = {split: top.entered(os.path.join(root, name)) for split, name in present.items()}
    class_folders = {split: folder.subfolders() for split, folder in split_folders.items()}
    classes = sorted({name for names in class_folders.values() for name in names})
    if not classes:
        raise DataError(
            "there is no class folder",
            where=str(root / present["train"]),
            fix="expected one folder a class with its images in it",
        )
    index_of = {name: index for index, name in enumerate(classes)}
    ignored: Counter[str] = Counter()
    paths, labels, splits = [], [], []
    for split in SPLITS:
        for name in class_folders.get(split, ()):
            folder = split_folders[split].entered(os.path.join(root, present[split], name))
            for path in _walk_images(folder, ignored):
                paths.append(os.path.relpath(path, root).replace(os.sep, "/"))
                labels.append(index_of[name])
                splits.append(split)
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
        notes.append(f"ignored {sum(ignored.values())} files that are no images ({kinds})")
    return Manifest(
        root,
        tuple(paths),
        np.array(labels, dtype=np.int64),
        np.array(splits, dtype="<U5"),
        tuple(classes) if class_names is None else names_of_folders(class_names, classes, root),
        tuple(notes),
    )


def names_of_folders(
    source: str | Sequence[str] | Mapping[str, str], folders: Sequence[str], root: Path
) -> tuple[str, ...]:
    """Return the name of each class folder, from folder to name or from names in the folders' order.

    Example:
        >>> names_of_folders({"n01": "tench", "n02": "goldfish"}, ["n01", "n02"], Path("."))
        ('tench', 'goldfish')
    """
    where = str(Path(root) / source) if isinstance(source, str) else "class_names"
    given = read_names(source, root) if isinstance(source, str) else source
    if not isinstance(given, Mapping):
        pairs = [line.split(maxsplit=1) for line in given]
        if not all(len(pair) == 2 and pair[0] in folders for pair in pairs):
            names = tuple(given)
            if len(names) != len(folders):
                raise DataError(
                    f"{len(names)} class names for {len(folders)} class folders",
                    where=where,
                    fix="give one for each, or write each behind its folder",
                )
            return read_class_names(names)
        given = dict(pairs)
    for folder in folders:
        if folder not in given:
            fix = nearest_fix(folder, given, "add it")
            raise DataError(f"there is no name for the class folder {folder!r}", where=where, fix=fix)
    return read_class_names([given[folder] for folder in folders])


class _Folder(NamedTuple):
    """A folder, and what tells it and all folders above it, as they lie and as they were entered, from others."""

    path: str
    above: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, path: str | Path) -> _Folder:
        """Return a folder that was entered from nowhere."""
        real = Path(os.path.realpath(path))
        return cls(os.fspath(path), frozenset(map(_identity, (real, *real.parents))))

    def entered(self, path: str) -> _Folder:
        """Return a folder that is entered from this one."""
        if os.path.islink(path):
            return _Folder(path, self.above | _Folder.of(path).above)
        return _Folder(path, self.above | {_identity(path)})

    def names(self) -> tuple[list[str], list[str]]:
        """Return the sorted names of its folders and of its files, without hidden ones and links to folders above."""
        folders, files = [], []
        try:
            with os.scandir(self.path) as entries:
                for entry in (entry for entry in entries if not entry.name.startswith(".")):
                    if not _is_folder(entry):
                        files.append(entry.name)
                    elif not entry.is_symlink() or _identity(entry.path) not in self.above:
                        folders.append(entry.name)
        except OSError as error:
            raise DataError(f"cannot read the folder: {error.strerror}", where=self.path) from None
        return sorted(folders), sorted(files)

    def subfolders(self) -> list[str]:
        """Return the sorted names of its folders."""
        return self.names()[0]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link that goes in circles
        return False


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_below(path: Path, top: _Folder) -> bool:
    """Whether there is such a folder, and it is no link to one above."""
    return path.is_dir() and (not path.is_symlink() or _identity(path) not in top.above)


def _require_flat_layout(root: Path, folders: dict[str, str]) -> None:
    """Refuse a root without a training folder unless its folders are classes, with images right in them."""
    names = _Folder.of(root).subfolders()
    known = {name.lower() for name in folders.values()} | _OTHER_SPLIT_NAMES
    odd = [name for name in names if name.lower() in known]
    if odd:
        raise DataError(
            f"there is no folder {folders['train']!r}, but {', '.join(map(repr, odd))}",
            where=str(root),
            fix="name the folders of the splits with the options train, val and test",
        )
    with_images = sum(_has_image(root / name) for name in names)
    if with_images < 2:
        raise DataError(
            f"there is no folder {folders['train']!r}",
            where=str(root),
            fix="expected train/CLASS/image.jpg, or CLASS/image.jpg",
        )


def _has_image(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries)


def _walk_images(folder: _Folder, ignored: Counter[str]) -> Iterator[str]:
    """Yield the images below ``folder`` in sorted order and count the other files by suffix."""
    seen = set()  # so that no two links lead to the same images
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if _identity(current.path) in seen:
            continue
        seen.add(_identity(current.path))
        subfolders, files = current.names()
        waiting += [current.entered(os.path.join(current.path, name)) for name in reversed(subfolders)]
        for name in files:  # hidden ones, which file managers leave behind, are not worth a word
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                yield os.path.join(current.path, name)
            else:
                ignored[suffix or "without suffix"] += 1
