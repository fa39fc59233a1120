"""A small real data set without a download: scikit-learn's scanned digits, made long-tailed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from dualtail.data.filled_folder import fill_folder
from dualtail.data.image_folder import read_folder
from dualtail.data.longtail import long_tail_counts
from dualtail.data.manifest import Manifest
from dualtail.errors import DataError, InputError

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VAL_PER_CLASS = 20
TEST_PER_CLASS = 40


def write_digits(folder: str | Path, ratio: float = 50, seed: int = 0, size: int = 32) -> Manifest:
    """Write scikit-learn's 1,797 digits as PNG files in an ImageFolder tree with a long-tailed training set.

    Each class (174 to 183 images of 8 x 8 pixels, 17 grey levels; Alpaydin & Kaynak, UCI 1998) gives 20 images to
    ``val`` and 40 to ``test``; of the rest, ``train`` gets an exponential long tail, "zero" the most. The images
    are enlarged with bicubic interpolation.

    Args:
        folder: where to write; must be absent, empty, or hold an earlier result of this function.
        ratio: imbalance ratio of the training set.
        seed: of the choice of images.
        size: side of the PNG files in pixels.

    Returns:
        The manifest of the folder's ``train``, ``val`` and ``test``; its classes are sorted by name. The same
        arguments give the same files.

    Raises:
        DataError: the folder holds something else.
    """
    from sklearn.datasets import load_digits

    if size < 8:
        raise InputError(f"size is {size}", fix="give at least the 8 pixels that the digits have")
    folder = Path(os.path.expanduser(folder))
    if str(folder).startswith("~"):
        raise DataError("there is no such user's home", where=str(folder), fix="give the folder's path")
    digits = load_digits()
    rng = np.random.default_rng([seed, 0xD161])
    rows = [rng.permutation(np.flatnonzero(digits.target == label)) for label in range(10)]
    held = VAL_PER_CLASS + TEST_PER_CLASS
    counts = long_tail_counts(10, min(map(len, rows)) - held, ratio)
    about = {"data": "scikit-learn digits", "ratio": ratio, "seed": seed, "size": size}
    with fill_folder(folder, about) as partial:
        for label, name in enumerate(CLASS_NAMES):
            val, test, train = np.split(rows[label], [VAL_PER_CLASS, held])
            for split, chosen in (("train", train[: counts[label]]), ("val", val), ("test", test)):
                target = partial / split / name
                target.mkdir(parents=True)
                for row in chosen:
                    _enlarged(digits.images[row], size).save(target / f"{row:04d}.png")
    return read_folder(folder)


def _enlarged(pixels: np.ndarray, size: int) -> Image.Image:
    """Return an 8-bit greyscale image of pixels from 0 to 16."""
    image = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))
    return image.resize((size, size), Image.Resampling.BICUBIC)
