"""Smaller copies of large photographs on disk: decoded at full size once, not in every epoch of every member."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from PIL import Image

from dualtail.data.images import decode_image
from dualtail.errors import DataError
from dualtail.files import atomic_path

# Below this many times the side that is needed, a copy would save too little to be worth its space.
WORTHWHILE = 1.5
_JPEG = {"quality": 95, "subsampling": 0}


class SmallCopies:
    """Reads images, by way of copies whose shorter side is just what the transforms need.

    A copy is a JPEG file of quality 95, made when the image is first read and named by the image's path, size and
    time of change, so that a changed image gets a new one. Any number of processes may share the folder. Images
    that are not much larger than needed are read as they are.

    Args:
        folder: where the copies lie; made if absent.
        min_side: the shorter side that the transforms need, see ``Transform``.
    """

    def __init__(self, folder: str | Path, min_side: int) -> None:
        self.folder = Path(folder).expanduser()
        self.min_side = min_side
        self._small: set[str] = set()  # images that need no copy, so that their size is looked up once

    def decode(self, path: str) -> Image.Image:
        """Return the image, or its copy, as RGB; see ``decode_image``.

        Raises:
            DataError: the image cannot be decoded, or the copy cannot be written.
        """
        if path in self._small:
            return decode_image(path, self.min_side)
        copy = self._copy_of(path)
        if copy is None:
            return decode_image(path, self.min_side)
        if not copy.exists():
            if not self._is_large(path):
                self._small.add(path)
                return decode_image(path, self.min_side)
            self._write(decode_image(path, self.min_side), copy)
        # The copy even where it was just made: the first epoch must see what every later one sees.
        return decode_image(copy)

    def _copy_of(self, path: str) -> Path | None:
        try:
            state = os.stat(path)
        except OSError:
            return None  # decode_image says what is wrong with it
        key = f"{os.path.abspath(path)}\0{state.st_size}\0{state.st_mtime_ns}\0{self.min_side}"
        name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
        return self.folder / name[:2] / f"{name[2:]}.jpg"

    def _is_large(self, path: str) -> bool:
        try:
            with Image.open(path) as image:
                return min(image.size) >= WORTHWHILE * self.min_side
        except Exception:  # whatever is wrong with it is said by decode_image
            return False

    def _write(self, image: Image.Image, copy: Path) -> None:
        scale = self.min_side / min(image.size)
        size = (
            max(self.min_side, round(image.width * scale)),
            max(self.min_side, round(image.height * scale)),
        )
        try:
            with atomic_path(copy) as temporary:
                image.resize(size, Image.Resampling.LANCZOS).save(temporary, "JPEG", **_JPEG)
        except OSError as error:
            raise DataError(
                f"cannot write a copy of an image: {error.strerror}",
                where=str(self.folder),
                fix="make room there, name another folder, or do without copies",
            ) from None
