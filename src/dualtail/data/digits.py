"""A small real data set without a download: scikit-learn's scanned digits, made long-tailed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dualtail.data.folder import read_folder
from dualtail.data.longtail import long_tail_counts
from dualtail.data.manifest import Manifest
from dualtail.errors import DataError, InputError

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VAL_PER_CLASS = 20
TEST_PER_CLASS = 40
_MARK = "digits.json"


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
    folder = Path(folder).expanduser()
    _require_own(folder)
    digits = load_digits()
    rng = np.random.default_rng([seed, 0xD161])
    rows = [rng.permutation(np.flatnonzero(digits.target == label)) for label in range(10)]
    held = VAL_PER_CLASS + TEST_PER_CLASS
    counts = long_tail_counts(10, min(map(len, rows)) - held, ratio)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for label, name in enumerate(CLASS_NAMES):
            val, test, train = np.split(rows[label], [VAL_PER_CLASS, held])
            for split, chosen in (("train", train[: counts[label]]), ("val", val), ("test", test)):
                target = partial / split / name
                target.mkdir(parents=True)
                for row in chosen:
                    _enlarged(digits.images[row], size).save(target / f"{row:04d}.png")
        about = {
            "dataset": "scikit-learn digits",
            "ratio": ratio,
            "seed": seed,
            "size": size,
            "train_counts": counts.tolist(),
        }
        (partial / _MARK).write_text(json.dumps(about, indent=2) + "\n")
        partial.chmod(0o755)  # mkdtemp makes it private
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return read_folder(folder)


def _require_own(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError("this is a file", where=str(folder), fix="name a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise DataError(
            "the folder holds something else", where=str(folder), fix="name a new or an empty folder"
        )


def _enlarged(pixels: np.ndarray, size: int) -> Image.Image:
    """Return an 8-bit greyscale image of pixels from 0 to 16."""
    image = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))
    return image.resize((size, size), Image.Resampling.BICUBIC)
