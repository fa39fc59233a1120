"""CIFAR-10-LT and CIFAR-100-LT, built from the official archives (Krizhevsky, 2009) at any imbalance ratio."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from dualtail.data.filled_folder import alone_with, fill_folder
from dualtail.data.longtail import long_tail_counts
from dualtail.data.manifest import Manifest
from dualtail.data.webdataset import BROKEN_ARCHIVE
from dualtail.errors import DataError, InputError
from dualtail.files import open_regular

SOURCE = (
    "get the archive from www.cs.toronto.edu/~kriz/cifar.html, in its binary version (the others are pickles)"
)
GROUP_RATIO = 100  # the groups of classes are those of this ratio, whatever the ratio of the training set
_PIXELS = 3 * 32 * 32
_MAX_BYTES = 1 << 30  # of all that the archive holds; the larger one has 185 million


@dataclass(frozen=True)
class Archive:
    """Where things are in one of the two archives."""

    file: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int  # the last of them is the class; CIFAR-100 has the superclass before it
    num_classes: int


CIFAR10 = Archive(
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{index}.bin" for index in range(1, 6)),
    "test_batch.bin",
    "batches.meta.txt",
    1,
    10,
)
CIFAR100 = Archive(
    "cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2, 100
)


def read_cifar10_lt(
    root: Path,
    *,
    ratio: Annotated[float, Field(ge=1)] = 100,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
    images: str = "cifar-10-png",
    verify: bool = True,
) -> Manifest:
    """Read CIFAR-10-LT: an exponential long tail of CIFAR-10's training set, and its whole test set.

    As `read_cifar100_lt`, from ``cifar-10-binary.tar.gz``.
    """
    return _read(CIFAR10, Path(root), ratio, seed, images, verify)


def read_cifar100_lt(
    root: Path,
    *,
    ratio: Annotated[float, Field(ge=1)] = 100,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
    images: str = "cifar-100-png",
    verify: bool = True,
) -> Manifest:
    """Read CIFAR-100-LT: an exponential long tail of CIFAR-100's training set, and its whole test set.

    Class ``i`` of ``C`` keeps ``int(500 * ratio ** (-i / (C - 1)))`` of its 500 training images: 10,847, 12,608
    and 19,573 in all at the ratios 100, 50 and 10. Classes keep the order of the archive. Which images are kept
    follows Cao et al. (NeurIPS 2019, arXiv 1906.07413), whose selection the field uses: class after class, the
    class's images are shuffled by numpy's legacy generator and the first are taken. ``group_counts`` are those of
    ratio 100 at any ratio, as usual.

    The images are unpacked as PNG files once, which takes some seconds.

    Args:
        root: the folder with ``cifar-100-binary.tar.gz`` or what was unpacked from it.
        ratio: the imbalance ratio; 1 keeps all images.
        seed: of the selection; published results have 0.
        images: the folder to unpack to; relative to ``root`` or absolute.
        verify: refuse archives without the published number of images a class.

    Raises:
        DataError: the archive is missing or broken, or ``images`` holds something else.
    """
    return _read(CIFAR100, Path(root), ratio, seed, images, verify)


def _read(archive: Archive, root: Path, ratio: float, seed: int, images: str, verify: bool) -> Manifest:
    if not ratio >= 1:
        raise InputError(f"ratio is {ratio}", fix="give an imbalance ratio of at least 1")
    target = root / os.path.expanduser(images)
    about = _unpacked(archive, root, target, verify)
    names = tuple(name.replace("_", " ") for name in about["names"])
    train, test = np.array(about["train"]), np.array(about["test"])
    available = np.bincount(train, minlength=len(names))
    largest = int(available.max())
    counts = long_tail_counts(len(names), largest, ratio)
    kept = _select(train, counts, seed)
    rows = [("train", row) for row in kept.tolist()] + [("test", row) for row in range(len(test))]
    manifest = Manifest(
        target,
        tuple(f"{split}/{row:05d}.png" for split, row in rows),
        np.concatenate([train[kept], test]),
        np.array([split for split, _ in rows]),
        names,
        group_counts=long_tail_counts(len(names), largest, GROUP_RATIO),
    )
    return manifest.with_note(
        f"train: {len(kept):,} of {len(train):,} images, imbalance ratio {ratio:g}, seed {seed}; "
        f"the groups of classes are those of ratio {GROUP_RATIO}"
    )


def _select(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows to keep; the order of the calls to the generator is what makes the selection the usual one."""
    generator = np.random.RandomState(seed)
    kept = []
    for label, count in enumerate(counts):
        rows = np.flatnonzero(labels == label)
        generator.shuffle(rows)
        kept.append(rows[:count])
    return np.concatenate(kept)


def _unpacked(archive: Archive, root: Path, target: Path, verify: bool) -> dict[str, list]:
    """Return names and labels of the unpacked images, unpacking them first where that has not been done."""
    with alone_with(target) as about:
        if about is None:
            return _unpack(archive, root, target, verify)
    if about.get("archive") != archive.file:
        raise DataError(
            "the folder holds other images",
            where=str(target),
            fix="name another folder with the option images",
        )
    return about


def _unpack(archive: Archive, root: Path, target: Path, verify: bool) -> dict[str, list]:
    content = _binary_files(archive, root)
    names = content[archive.names].decode().split()
    if len(names) < 2:
        raise DataError("there are no class names", where=archive.names, fix=SOURCE)
    splits = {
        "train": [_records(archive, name, content[name], len(names)) for name in archive.train],
        "test": [_records(archive, archive.test, content[archive.test], len(names))],
    }
    labels = {split: np.concatenate([part[0] for part in parts]) for split, parts in splits.items()}
    if verify:
        _verify(archive, labels, len(names), root)
    about = {"archive": archive.file, "names": names, **{split: of.tolist() for split, of in labels.items()}}
    with fill_folder(target, about) as folder:
        for split, parts in splits.items():
            (folder / split).mkdir()
            pixels = np.concatenate([part[1] for part in parts])
            for row, image in enumerate(pixels):
                Image.fromarray(image).save(folder / split / f"{row:05d}.png", compress_level=1)
    return about


def _binary_files(archive: Archive, root: Path) -> dict[str, bytes]:
    """Return the content of the archive's files, from the archive or from its unpacked folder."""
    wanted = (*archive.train, archive.test, archive.names)
    try:
        if (root / archive.folder).is_dir():
            return {name: _content(root / archive.folder / name) for name in wanted}
        with open_regular(root / archive.file) as file, tarfile.open(fileobj=file) as tar:
            return _members(tar, {f"{archive.folder}/{name}": name for name in wanted})
    except (FileNotFoundError, KeyError) as error:
        missing = getattr(error, "filename", None) or root / archive.file
        raise DataError("there is no such file, or not all of it", where=str(missing), fix=SOURCE) from None
    except BROKEN_ARCHIVE as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"cannot read the archive: {reason}", where=str(root / archive.file), fix=SOURCE
        ) from None


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_MAX_BYTES)


def _members(tar: tarfile.TarFile, wanted: dict[str, str]) -> dict[str, bytes]:
    """Return the content of the wanted files by their short names.

    Read in memory, by name: nothing of the archive decides where anything is written. What it claims of sizes is
    looked at before anything is read.
    """
    found: dict[str, bytes] = {}
    for member in tar:
        if not 0 <= member.offset_data + member.size <= _MAX_BYTES:
            raise ValueError(f"{member.name!r} claims {member.size:,} bytes")
        file = tar.extractfile(member) if member.name in wanted and member.isreg() else None
        if file is not None:
            found[wanted[member.name]] = file.read()
    missing = [name for name in wanted.values() if name not in found]
    if missing:
        raise KeyError(missing[0])
    return found


def _records(archive: Archive, name: str, content: bytes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int64 ``(N,)`` and pixels uint8 ``(N, 32, 32, 3)`` of one binary file."""
    length = archive.label_bytes + _PIXELS
    if not content or len(content) % length:
        raise DataError(f"the file has {len(content)} bytes, no multiple of {length}", where=name, fix=SOURCE)
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, length)
    labels = records[:, archive.label_bytes - 1].astype(np.int64)
    if labels.max() >= num_classes:
        raise DataError(
            f"there is a label {labels.max()} and {num_classes} class names", where=name, fix=SOURCE
        )
    pixels = records[:, archive.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return labels, np.ascontiguousarray(pixels)


def _verify(archive: Archive, labels: dict[str, np.ndarray], num_classes: int, root: Path) -> None:
    for split, total in (("train", 50_000), ("test", 10_000)):
        counts = np.bincount(labels[split], minlength=num_classes)
        expected = total // archive.num_classes
        if len(counts) != archive.num_classes or (counts != expected).any():
            raise DataError(
                f"{counts.min()} to {counts.max()} {split} images in each of {num_classes} classes where the "
                f"official archive has {expected} in each of {archive.num_classes}",
                where=str(root / archive.file),
                fix=f"{SOURCE}, or set verify to false",
            )
