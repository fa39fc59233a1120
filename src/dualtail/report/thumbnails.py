"""Small JPEG pictures of a class's worst test images, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dualtail.data.images import MAX_PIXELS, decode_image
from dualtail.errors import DataError
from dualtail.files import is_inside
from dualtail.report.samples import Samples

WORST = 12  # images a class, at most
_FEWEST = 3  # images of a class that has fewer errors
_BATCH = 64
_CAPTION_BYTES = 100  # what a page needs to say of a picture


@dataclass(frozen=True)
class Format:
    """How thumbnails are made.

    Attributes:
        side: of the square that they fit in, in pixels.
        quality: of the JPEG.
    """

    side: int
    quality: int


LARGE, SMALL = Format(96, 70), Format(72, 50)
# From this many pictures on they are made small, so that more classes get some.
_MANY_PICTURES = 3000


@dataclass
class Thumbnails:
    """Pictures of the worst test images.

    Attributes:
        pictures: base64 JPEG by the row of the sample.
        wanted: rows that a picture was wanted of.
        unreadable: rows whose image could not be read.
    """

    pictures: dict[int, str] = field(default_factory=dict)
    wanted: int = 0
    unreadable: int = 0

    @property
    def left_out(self) -> int:
        """How many pictures the budget had no room for."""
        return self.wanted - self.unreadable - len(self.pictures)


def worst_images(samples: Samples, num_classes: int) -> list[NDArray[np.int64]]:
    """Return for each class the rows of its worst images: those the ensemble gave the truth the least.

    Of the images that it got right, only so many are taken that a class has three.
    """
    truth, wrong = samples.ensemble.truth, samples.ensemble.prediction != samples.labels
    # Sorted by class, errors first, then by the probability of the truth.
    order = np.lexsort((truth, ~wrong, samples.labels))
    starts = np.searchsorted(samples.labels[order], np.arange(num_classes + 1))
    errors = np.bincount(samples.labels[wrong], minlength=num_classes)
    return [
        order[
            starts[index] : starts[index]
            + min(max(int(errors[index]), _FEWEST), WORST, starts[index + 1] - starts[index])
        ]
        for index in range(num_classes)
    ]


def make_thumbnails(
    rows: Sequence[NDArray[np.int64]],
    samples: Samples,
    root: Path,
    budget: int,
    *,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Thumbnails:
    """Return pictures of ``rows``, until ``budget`` bytes of base64 are spent.

    Every class gets its first picture before any gets its second, and the classes that the ensemble is wrong on most
    often come first, so that a small budget still shows where it hurts.

    Args:
        rows: the worst images of each class, worst first.
        samples: to know their files.
        root: the folder that relative names start from.
        budget: in bytes, captions included.
        allow_outside: show images that lie outside ``root`` too; otherwise they count as unreadable.
        max_pixels: of an image, at most.
    """

    def picture_of(row: int) -> str | None:
        name = samples.sample_ids[row]
        inside = allow_outside or ("\0" not in name and is_inside(root, name))
        return encode(root / name, chosen, max_pixels) if inside else None

    queue = list(_in_rounds(rows, samples))
    thumbnails = Thumbnails(wanted=len(queue))
    chosen = LARGE if len(queue) <= _MANY_PICTURES else SMALL
    spent = 0
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(queue), _BATCH):
            batch = queue[start : start + _BATCH]
            for row, picture in zip(batch, pool.map(picture_of, batch), strict=True):
                if picture is None:
                    thumbnails.unreadable += 1
                elif spent + len(picture) + _CAPTION_BYTES <= budget:
                    spent += len(picture) + _CAPTION_BYTES
                    thumbnails.pictures[row] = picture
            if spent >= 0.99 * budget or (
                start == 0 and not thumbnails.pictures and thumbnails.unreadable == len(batch)
            ):
                # Full; or the images are not where they were, and every further try would fail too.
                break
    if not thumbnails.pictures:
        thumbnails.unreadable = thumbnails.wanted
    return thumbnails


def _in_rounds(rows: Sequence[NDArray[np.int64]], samples: Samples) -> Iterator[int]:
    """Yield every class's first row, then every second one, the classes with the lowest truth first."""
    first = sorted(
        (index for index in range(len(rows)) if len(rows[index])),
        key=lambda index: float(samples.ensemble.truth[rows[index]].mean()),
    )
    for place in range(max((len(row) for row in rows), default=0)):
        for index in first:
            if place < len(rows[index]):
                yield int(rows[index][place])


def encode(path: Path, chosen: Format, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return an image file as a small JPEG in base64, or None if it cannot be read."""
    try:
        image = decode_image(path, min_side=chosen.side, max_pixels=max_pixels)
    except DataError:
        return None
    image.thumbnail((chosen.side, chosen.side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=chosen.quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
