"""Everything that is wrong with a data set, found before hours are spent on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from dualtail.data.images import TooManyPixels, decode_image, open_image
from dualtail.data.manifest import SPLITS, Manifest
from dualtail.data.problems import Problem
from dualtail.errors import DataError

Progress = Callable[[int, int], None]


def check_manifest(
    manifest: Manifest,
    *,
    deep: bool = False,
    headers: bool = False,
    required_splits: Iterable[str] = ("train", "val", "test"),
    on_bad_image: Literal["error", "skip"] = "error",
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Problem]:
    """Return every fault of a data set, errors first.

    Errors: an empty split, a class without a training image, a missing or empty file; with ``headers``, a file that is
    no image or too large; with ``deep``, an image that cannot be decoded. Warnings: the same path in two splits (a
    leak) or twice in one, a class without an image in ``val`` or ``test``.

    Args:
        manifest: the data.
        deep: decode every image, as slow as one epoch.
        headers: open every image and read its header; without this and ``deep``, only the sizes of files are looked at.
        required_splits: the splits whose absence is an error.
        on_bad_image: ``"skip"`` makes a file that is missing or cannot be read a warning.
        workers: threads that read; by default as many as there are cores.
        progress: called with (images done, images in all) now and then.

    Example:
        >>> from pathlib import Path
        >>> manifest = Manifest(Path("/nowhere"), ["a.png"], [0], ["train"], ("cat", "dog"))
        >>> for problem in check_manifest(manifest, required_splits=["train"]):
        ...     print(problem)
        class 'dog': no training image; add some or remove the class
        /nowhere/a.png: there is no such file; restore it or remove its row
    """
    problems = [
        *_split_problems(manifest, required_splits),
        *_class_problems(manifest),
        *_duplicates(manifest),
        *_file_problems(
            manifest,
            _look_deep if deep else _look_at_header if headers else _look_at_size,
            "error" if on_bad_image == "error" else "warning",
            workers,
            progress,
        ),
    ]
    return sorted(problems, key=lambda problem: problem.severity != "error")


def _split_problems(manifest: Manifest, required: Iterable[str]) -> list[Problem]:
    sizes = manifest.split_sizes
    fixes = {
        "train": "give training images",
        "val": "give one or have it held out of train",
        "test": "give test images",
    }
    return [
        Problem("no image", f"split {name!r}", fixes[name])
        for name in SPLITS
        if name in set(required) and name not in sizes
    ]


def _class_problems(manifest: Manifest) -> list[Problem]:
    sizes = manifest.split_sizes
    problems = []
    if "train" in sizes:
        for label in np.flatnonzero(manifest.counts("train") == 0):
            where = f"class {manifest.class_names[label]!r}"
            problems.append(Problem("no training image", where, "add some or remove the class"))
    for split in ("val", "test"):
        absent = np.flatnonzero(manifest.counts(split) == 0)
        if split in sizes and len(absent):
            some = ", ".join(repr(manifest.class_names[label]) for label in absent[:3])
            what = f"{len(absent)} of {manifest.num_classes} classes have no image, such as {some}"
            fix = "their accuracy will not be measured"
            problems.append(Problem(what, f"split {split!r}", fix, "warning"))
    return problems


def _duplicates(manifest: Manifest) -> list[Problem]:
    first: dict[str, int] = {}
    problems = []
    for row, path in enumerate(manifest.paths):
        earlier = first.setdefault(path, row)
        if earlier == row:
            continue
        here, there = manifest.splits[row], manifest.splits[earlier]
        if here != there:
            what, fix = f"in {there} and in {here}: results on {here} leak", "keep it in one split"
        else:
            what, fix = f"twice in {here}", "remove one of the rows"
        if manifest.labels[row] != manifest.labels[earlier]:
            names = (manifest.class_names[manifest.labels[other]] for other in (earlier, row))
            what += " (as {!r} and as {!r})".format(*names)
        problems.append(Problem(what, path, fix, "warning"))
    return problems


def _look_at_size(path: str, max_pixels: int) -> None:
    if os.stat(path).st_size == 0:
        raise DataError("the file is empty", where=path)


def _look_at_header(path: str, max_pixels: int) -> None:
    _look_at_size(path, max_pixels)
    with open_image(path, max_pixels):
        pass


def _look_deep(path: str, max_pixels: int) -> None:
    _look_at_size(path, max_pixels)
    decode_image(path, max_pixels=max_pixels)


def _file_problems(
    manifest: Manifest,
    look: Callable[[str, int], None],
    severity: Literal["error", "warning"],
    workers: int | None,
    progress: Progress | None,
) -> list[Problem]:
    total = len(manifest)
    fix = "restore it or remove its row" if severity == "error" else "it will be left out"

    def fault_of(row: int) -> Problem | TooManyPixels | None:
        path = manifest.file(row)
        try:
            look(path, manifest.max_pixels)
        except TooManyPixels as error:
            return error
        except DataError as error:
            return Problem(error.what, error.where, error.fix or fix, severity)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            return Problem("there is no such file" if missing else f"{error.strerror}", path, fix, severity)
        return None

    problems: list[Problem] = []
    too_large: list[TooManyPixels] = []
    threads = 1 if look is _look_at_size else workers or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        results = (
            pool.map(fault_of, range(total), chunksize=64) if threads > 1 else map(fault_of, range(total))
        )
        for done, fault in enumerate(results, 1):
            if isinstance(fault, TooManyPixels):
                too_large.append(fault)
            elif fault is not None:
                problems.append(fault)
            if progress is not None and (done % 256 == 0 or done == total):
                progress(done, total)
    if too_large:  # the limit is told once, however many pass it
        first, more = too_large[0], len(too_large) - 1
        what = first.what + (f", and so have {more:,} more" if more else "")
        problems.append(Problem(what, first.where, first.fix, severity))
    return problems
