"""Decode any ordinary image file into RGB, right side up, on white."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from dualtail.errors import DataError

IMAGE_SUFFIXES = frozenset(
    ("." + name)
    for name in (
        *("avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "mpo", "pbm", "pgm", "png", "pnm", "ppm"),
        *("tif", "tiff", "webp"),
    )
)


def decode_image(path: str | os.PathLike[str], min_side: int | None = None) -> Image.Image:
    """Return the image of a file as RGB.

    The orientation of EXIF is applied; palettes are looked up; transparency is laid onto white; greyscale, CMYK
    (with and without Adobe's inversion) and 16 bits a channel become 8-bit RGB; of an animation it is the first
    frame.

    Args:
        path: the file.
        min_side: let the JPEG decoder halve the image, up to three times, as long as its shorter side keeps at
            least this many pixels. Much faster for photographs far larger than the input of a model. None decodes
            every pixel.

    Returns:
        A ``PIL.Image`` of mode RGB.

    Raises:
        DataError: the file does not exist, is no image, is truncated or otherwise broken, holds more pixels than
            Pillow's limit against decompression bombs, or has 32 bits a channel, whose range nobody knows.

    Example:
        >>> decode_image("no/such.png")
        Traceback (most recent call last):
        dualtail.errors.DataError: no/such.png: there is no such file
    """
    where = os.fspath(path)
    try:
        with Image.open(path) as image:
            if min_side is not None:
                _draft(image, min_side)
            image.load()
            adobe = "adobe" in image.info
            # After loading: the orientation of a PNG may come behind its pixels.
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image, where, inverted_cmyk=image.format in ("JPEG", "MPO") and not adobe)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("there is no such file", where=where) from None
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(f"cannot read it: {error.strerror}", where=where) from None
    except UnidentifiedImageError:
        raise DataError("this is no image that Pillow can read", where=where) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"the image has more than {limit:,} pixels", where=where, fix="make it smaller"
        ) from None
    # A broken file makes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, KeyError ...
    except Exception as error:
        raise DataError(f"cannot decode the image: {error}", where=where) from None


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
