"""Smaller copies of large photographs on disk: decoded at full size once, not in every epoch of every member."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path

from PIL import Image

from dualtail.data.images import MAX_PIXELS, decode_image, open_image
from dualtail.errors import DataError, FileError
from dualtail.files import atomic_path

# Below this many times the side that is needed, a copy would save too little to be worth its space.
WORTHWHILE = 1.5
_JPEG = {"quality": 95, "subsampling": 0}
_CHECKSUM_BYTES = 32


class SmallCopies:
    """Reads images, by way of copies whose shorter side is just what the transforms need.

    A copy is a JPEG file of quality 95, made when the image is first read and named by the image's path, size, times of
    change and inode, so that a changed image gets a new one. It ends with a checksum of its name and content: a copy
    that is damaged, or another image's, is made again. Any number of processes may share the folder. Images that are
    not much larger than needed are read as they are.

    Args:
        folder: where the copies lie; made if absent.
        min_side: the shorter side that the transforms need, see ``Transform``.
        max_pixels: of an image, at most.
    """

    def __init__(self, folder: str | Path, min_side: int, max_pixels: int = MAX_PIXELS) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self.min_side, self.max_pixels = min_side, max_pixels
        self._small: set[str] = set()  # images that need no copy, so that their size is looked up once

    def decode(self, path: str) -> Image.Image:
        """Return the image, or its copy, as RGB; see ``decode_image``.

        Raises:
            DataError: the image cannot be decoded.
            FileError: the copy cannot be written.
        """
        if path in self._small:
            return self._original(path)
        copy = self._copy_of(path)
        if copy is None:
            return self._original(path)
        content = _intact(copy)
        if content is None:
            if not self._is_large(path):
                self._small.add(path)
                return self._original(path)
            content = self._write(self._original(path), copy)
        # The copy even where it was just made: the first epoch must see what every later one sees.
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            return image.convert("RGB")

    def _original(self, path: str) -> Image.Image:
        return decode_image(path, self.min_side, self.max_pixels)

    def _copy_of(self, path: str) -> Path | None:
        try:
            state = os.stat(path)
        except OSError:
            return None  # decode_image says what is wrong with it
        changed = f"{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}\0{state.st_ino}"
        key = f"{os.path.abspath(path)}\0{changed}\0{self.min_side}"
        name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
        return self.folder / name[:2] / f"{name[2:]}.jpg"

    def _is_large(self, path: str) -> bool:
        try:
            with open_image(path, self.max_pixels) as image:
                return min(image.size) >= WORTHWHILE * self.min_side
        except DataError:  # decode_image says it again
            return False

    def _write(self, image: Image.Image, copy: Path) -> bytes:
        scale = self.min_side / min(image.size)
        size = (
            max(self.min_side, round(image.width * scale)),
            max(self.min_side, round(image.height * scale)),
        )
        content = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(content, "JPEG", **_JPEG)
        try:
            if copy.is_dir():
                shutil.rmtree(copy, ignore_errors=True)
            with atomic_path(copy, flush=False) as temporary:  # one that is lost is made again
                temporary.write_bytes(content.getvalue() + _checksum(copy, content.getvalue()))
        except FileError as error:
            raise FileError(
                f"cannot write a copy of an image: {error.reason}",
                where=str(self.folder),
                fix="make room there, name another folder, or do without copies",
            ) from None
        return content.getvalue()


def _intact(copy: Path) -> bytes | None:
    """Return the JPEG of a copy, None where it is absent, unreadable, damaged or another image's."""
    try:
        if not copy.is_file():
            return None
        whole = copy.read_bytes()
    except OSError:
        return None
    content, checksum = whole[:-_CHECKSUM_BYTES], whole[-_CHECKSUM_BYTES:]
    return content if checksum == _checksum(copy, content) else None


def _checksum(copy: Path, content: bytes) -> bytes:
    return hashlib.sha256(f"{copy.parent.name}{copy.stem}\0".encode() + content).digest()
