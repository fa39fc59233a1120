"""What every reader and every augmentation promises."""

from __future__ import annotations

import inspect
import pickle
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dualtail.data.images import decode_image
from dualtail.data.manifest import Manifest
from dualtail.data.transforms import AUGMENTATIONS, Transform, build_augmentation
from dualtail.errors import DualtailError
from dualtail.imagespec import ImageSpec
from dualtail.testing._run import demand, run_checks

SPEC = ImageSpec(size=32)
IMAGE_SIZES = ((90, 60), (20, 31), (32, 32), (300, 7), (1, 1))
_DECODED = 3  # images of each split that are opened


@dataclass(frozen=True)
class ReaderCase:
    """A reader with the data set and options that it is checked with.

    Attributes:
        reader: makes a manifest of a folder.
        root: a folder that it can read.
        options: of the reader.
    """

    reader: Callable[..., Manifest]
    root: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def read(self, root: Path | None = None) -> Manifest:
        """Return the manifest of ``root``, by default the data set's."""
        return self.reader(self.root if root is None else root, **self.options)


def check_reader(
    reader: Callable[..., Manifest], root: str | Path, *, except_for: Collection[str] = (), **options: Any
) -> None:
    """Check that a reader is what dualtail takes a reader to be; it need not be registered.

    Args:
        reader: called as ``reader(root, **options)``.
        root: a small data set that it can read.
        except_for: names of checks that do not hold and need not.
        **options: of the reader.

    Raises:
        AssertionError: the first promise that is broken.
    """
    name = getattr(reader, "__name__", str(reader))
    run_checks(f"the reader {name!r}", READER_CHECKS, ReaderCase(reader, Path(root), options), except_for)


def documented(case: ReaderCase) -> None:
    """It has a docstring, takes the root first and everything else by name."""
    demand(case.reader.__doc__, "there is none")
    first, *others = inspect.signature(case.reader).parameters.values()
    demand(first.name == "root", f"its first parameter is {first.name!r}")
    for other in others:
        by_name = other.kind in (other.POSITIONAL_OR_KEYWORD, other.KEYWORD_ONLY)
        demand(by_name, f"{other.name!r} cannot be given by name")


def manifest(case: ReaderCase) -> None:
    """It gives a manifest with training images, each path once, whose files are images."""
    answer = case.read()
    demand(isinstance(answer, Manifest), f"it gives {type(answer).__name__}")
    demand("train" in answer.split_sizes, "no image is for training")
    demand(len(set(answer.paths)) == len(answer), "a path is there twice")
    missing = np.flatnonzero(answer.file_sizes() < 0)
    demand(not len(missing), f"there is no file {answer.file(int(missing[0])) if len(missing) else ''}")
    for split in answer.split_sizes:
        part = answer.split(split)
        for row in range(min(_DECODED, len(part))):
            decode_image(part.file(row))


def reading_again(case: ReaderCase) -> None:
    """Reading twice gives the same manifest."""
    one, two = case.read(), case.read()
    demand(one.paths == two.paths, "the paths, or their order, differ")
    demand(one.class_names == two.class_names, "the class names, or their order, differ")
    demand(np.array_equal(one.labels, two.labels), "the labels differ")
    demand(np.array_equal(one.splits, two.splits), "the splits differ")
    demand(one.fingerprint() == two.fingerprint(), "the fingerprints differ")


def moving(case: ReaderCase) -> None:
    """A data set that was moved has the same fingerprint."""
    with tempfile.TemporaryDirectory() as folder:
        moved = Path(folder) / "moved"
        moved.symlink_to(case.root.resolve(), target_is_directory=True)
        demand(case.read(moved).fingerprint() == case.read().fingerprint(), "it is another")


def one_line(case: ReaderCase) -> None:
    """What it cannot read, as an empty folder, it refuses with one line."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            case.read(Path(folder))
        except DualtailError as error:
            demand("\n" not in str(error), f"it says {error}")
        else:
            demand(False, "it takes an empty folder for a data set")


READER_CHECKS: Sequence[Callable[[ReaderCase], None]] = (
    documented,
    manifest,
    reading_again,
    moving,
    one_line,
)


@dataclass(frozen=True)
class AugmentationCase:
    """An augmentation with the options that it is checked with.

    Attributes:
        name: under which it is registered.
        options: of the augmentation.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Transform:
        """Return the transform to a square of 32 pixels."""
        return build_augmentation(SPEC, self.name, **self.options)


def check_augmentation(
    augmentation: Callable[..., Transform], *, except_for: Collection[str] = (), **options: Any
) -> None:
    """Check that an augmentation is what dualtail takes one to be; it need not be registered.

    Args:
        augmentation: called as ``augmentation(size=..., **options)``; gives a transform.
        except_for: names of checks that do not hold and need not: "randomness" if nothing is drawn.
        **options: of the augmentation.

    Raises:
        AssertionError: the first promise that is broken.

    Example:
        >>> check_augmentation(AUGMENTATIONS["minimalist"], schedule="linear")
    """
    name = next((key for key in AUGMENTATIONS if AUGMENTATIONS[key] is augmentation), None)
    name = name or str(getattr(augmentation, "name", getattr(augmentation, "__name__", "augmentation")))
    with AUGMENTATIONS.added(name, augmentation):
        case = AugmentationCase(name, options)
        run_checks(f"the augmentation {name!r}", AUGMENTATION_CHECKS, case, except_for)


def photo(width: int = 90, height: int = 60) -> Image.Image:
    """Return a smooth image of random colours."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def uint8_square(case: AugmentationCase) -> None:
    """Whatever an image's size, it gives a contiguous uint8 ``(3, S, S)``, at every progress."""
    transform = case.build()
    demand(transform.min_side >= SPEC.size, f"min_side is {transform.min_side}")
    for size in IMAGE_SIZES:
        for progress in (0.0, 0.4, 1.0):
            out = transform(photo(*size), progress)
            demand(out.shape == (3, SPEC.size, SPEC.size), f"{size} gives shape {tuple(out.shape)}")
            demand(out.dtype == torch.uint8, f"it gives {out.dtype}")
            demand(out.is_contiguous(), "the result is not contiguous")


def seeds(case: AugmentationCase) -> None:
    """The same seed of torch gives the same pixels, from a copy in another process too."""
    transform = case.build()
    outs = []
    for one in (transform, transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(1)
        outs.append(one(photo(), 0.3))
    demand(torch.equal(outs[0], outs[1]), "it draws from another generator than torch's")
    demand(torch.equal(outs[0], outs[2]), "a pickled copy gives other pixels")


def randomness(case: AugmentationCase) -> None:
    """Other seeds give other pixels."""
    transform = case.build()
    outs = []
    for seed in range(1, 5):
        torch.manual_seed(seed)
        outs.append(transform(photo(), 0.3))
    demand(any(not torch.equal(outs[0], out) for out in outs[1:]), "four seeds gave the same")


AUGMENTATION_CHECKS: Sequence[Callable[[AugmentationCase], None]] = (uint8_square, seeds, randomness)
