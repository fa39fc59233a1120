"""Decode any ordinary image file into RGB, right side up, on white."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from dualtail.errors import DataError
from dualtail.files import open_regular

IMAGE_SUFFIXES = frozenset(
    ("." + name)
    for name in (
        *("avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "mpo", "pbm", "pgm", "png", "pnm", "ppm"),
        *("tif", "tiff", "webp"),
    )
)

MAX_PIXELS = 178_956_970
"""Pixels of an image, at most, unless a recipe says otherwise: twice the number that Pillow warns of."""

# A file is what its bytes say, whatever its name: an EPS would start a program, others run decoders that nobody needs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")

# We have a limit of our own, and tell it where it is passed; Pillow's is told again in every worker.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class TooManyPixels(DataError):
    """An image is larger than the limit."""


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # AVIF depends on how Pillow was built


@contextmanager
def open_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image of an ordinary format and read its header; its pixels are not decoded yet.

    Raises:
        DataError: the file does not exist, is no regular file or no image, or holds more than ``max_pixels``; inside
            the block also for whatever decoding it raises.
    """
    where = os.fspath(path)
    if max_pixels > MAX_PIXELS:  # on the user's word alone
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
    try:
        with open_regular(path) as file, Image.open(file, formats=_formats()) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(where, max_pixels)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("there is no such file", where=where) from None
    except UnidentifiedImageError:
        raise DataError("this is no image that Pillow can read", where=where) from None
    except Image.DecompressionBombError:
        raise _too_large(where, 2 * (Image.MAX_IMAGE_PIXELS or 0)) from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # the machine's fault, not the image's
        what = "cannot decode the image" if error.errno is None else "cannot read it"
        raise DataError(f"{what}: {error.strerror or error}", where=where) from None
    except MemoryError:
        raise
    # A broken file makes Pillow's decoders raise nearly anything: SyntaxError, struct.error, KeyError ...
    except Exception as error:
        raise DataError(f"cannot decode the image: {error}", where=where) from None


def _too_large(where: str, limit: int) -> TooManyPixels:
    fix = "make it smaller, or raise the limit: data.max_pixels of the recipe, --max-pixels of predict"
    return TooManyPixels(f"the image has more than {limit:,} pixels", where=where, fix=fix)


def decode_image(
    path: str | os.PathLike[str], min_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return the image of a file as RGB.

    The orientation of EXIF is applied; palettes are looked up; transparency is laid onto white; greyscale, CMYK
    (with and without Adobe's inversion) and 16 bits a channel become 8-bit RGB; of an animation it is the first
    frame.

    Args:
        path: the file.
        min_side: let the JPEG decoder halve the image, up to three times, as long as its shorter side keeps at
            least this many pixels. Much faster for photographs far larger than the input of a model. None decodes
            every pixel.
        max_pixels: of an image, at most.

    Returns:
        A ``PIL.Image`` of mode RGB.

    Raises:
        DataError: the file does not exist, is no regular file, is no image of a format in ``_FORMATS``, is truncated or
            otherwise broken, holds more than ``max_pixels``, or has 32 bits a channel, whose range nobody knows.

    Example:
        >>> decode_image("no/such.png")
        Traceback (most recent call last):
        dualtail.errors.DataError: no/such.png: there is no such file
    """
    where = os.fspath(path)
    with open_image(path, max_pixels) as image:
        if min_side is not None:
            _draft(image, min_side)
        image.load()
        adobe = "adobe" in image.info
        # After loading: the orientation of a PNG may come behind its pixels.
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, where, inverted_cmyk=image.format in ("JPEG", "MPO") and not adobe)


def _draft(image: Image.Image, min_side: int) -> None:
    shorter = min(image.size)
    if shorter >= 2 * min_side and image.format in ("JPEG", "MPO"):
        scale = min_side / shorter
        # Pillow halves while both sides stay at least as large as asked for.
        image.draft(None, (int(image.width * scale), int(image.height * scale)))


def _to_rgb(image: Image.Image, where: str, inverted_cmyk: bool) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise DataError(
            f"32 bits a channel (mode {image.mode}) have no defined range",
            where=where,
            fix="convert it to 8 or 16 bits a channel",
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    if image.mode == "CMYK" and inverted_cmyk:
        # Pillow takes every CMYK JPEG for Adobe's, which are stored inverted; this one has no Adobe marker.
        image = ImageChops.invert(image)
    return image if image.mode == "RGB" and type(image) is Image.Image else image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Map 0 to 65,535 linearly onto 0 to 255 (Pillow's own conversion clips instead)."""
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
