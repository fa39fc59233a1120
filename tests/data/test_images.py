from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from dualtail.data.images import IMAGE_SUFFIXES, decode_image
from dualtail.errors import DataError

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def scene(width: int = 40, height: int = 24) -> Image.Image:
    """A smooth picture without symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * x, 255 * y, 255 * (1 - x) * y], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def difference(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).max())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    upright = scene()
    # What a camera stores is the picture moved back by the inverse of what the tag asks for.
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"png": {}, "tif": {}, "jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}[
        suffix
    ]
    path = tmp_path / f"image.{suffix}"
    stored.save(path, exif=exif, **options)
    decoded = decode_image(path)
    assert decoded.mode == "RGB"
    assert decoded.size == upright.size
    assert difference(decoded, upright) <= (12 if suffix == "jpg" else 0)


def test_palette(tmp_path):
    image = scene().quantize(16)
    image.save(tmp_path / "p.png")
    assert difference(decode_image(tmp_path / "p.png"), image.convert("RGB")) == 0


def test_transparency_becomes_white(tmp_path):
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(*RED, 255), (0, 0, 0, 0), (0, 0, 0, 51)])
    rgba.save(tmp_path / "rgba.png")
    assert [decode_image(tmp_path / "rgba.png").getpixel((x, 0)) for x in range(3)] == [
        RED,
        WHITE,
        (204,) * 3,
    ]

    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLACK])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "p.gif", transparency=1)
    palette.save(tmp_path / "bytes.png", transparency=bytes([255, 51]))
    for name, second in (("p.png", WHITE), ("p.gif", WHITE), ("bytes.png", (204,) * 3)):
        image = decode_image(tmp_path / name)
        assert [image.getpixel((x, 0)) for x in range(2)] == [RED, second], name

    grey = Image.new("LA", (2, 1))
    grey.putdata([(100, 255), (0, 0)])
    grey.save(tmp_path / "la.png")
    assert [decode_image(tmp_path / "la.png").getpixel((x, 0)) for x in range(2)] == [(100,) * 3, WHITE]

    rgb = Image.new("RGB", (2, 1))
    rgb.putdata([RED, BLACK])
    rgb.save(tmp_path / "key.png", transparency=BLACK)
    assert [decode_image(tmp_path / "key.png").getpixel((x, 0)) for x in range(2)] == [RED, WHITE]


@pytest.mark.parametrize("mode", ["L", "1"])
def test_greyscale(tmp_path, mode):
    image = scene().convert(mode)
    image.save(tmp_path / "grey.png")
    decoded = decode_image(tmp_path / "grey.png")
    assert decoded.mode == "RGB"
    assert difference(decoded, image.convert("L").convert("RGB")) == 0


def jpeg_without_adobe_marker(data: bytes) -> bytes:
    """Remove the APP14 segment, so that nothing says that the inks are stored inverted."""
    out, at = data[:2], 2
    while data[at : at + 2] != b"\xff\xda":
        length = 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        if data[at + 1] != 0xEE:
            out += data[at : at + length]
        at += length
    return out + data[at:]


def test_cmyk(tmp_path):
    upright = scene()
    cmyk = upright.convert("CMYK")
    cmyk.save(tmp_path / "cmyk.tif")
    assert difference(decode_image(tmp_path / "cmyk.tif"), upright) <= 1
    buffer = io.BytesIO()
    cmyk.save(buffer, "JPEG", quality=95)
    (tmp_path / "adobe.jpg").write_bytes(buffer.getvalue())
    assert difference(decode_image(tmp_path / "adobe.jpg"), upright) < 25

    from PIL import ImageChops

    buffer = io.BytesIO()
    ImageChops.invert(cmyk).save(buffer, "JPEG", quality=95)  # Pillow inverts once more: stored as they are
    plain = jpeg_without_adobe_marker(buffer.getvalue())
    assert b"Adobe" not in plain
    (tmp_path / "plain.jpg").write_bytes(plain)
    assert difference(decode_image(tmp_path / "plain.jpg"), upright) < 25


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_greyscale_is_scaled(tmp_path, suffix):
    values = np.array([[0, 255, 256, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"grey.{suffix}")
    decoded = decode_image(tmp_path / f"grey.{suffix}")
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 1, 1, 100, 255]


def png_of_16_bit_rgb(values: np.ndarray) -> bytes:
    """Return a PNG file of uint16 ``(H, W, 3)``, which Pillow can read but not write."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_16_bit_colour(tmp_path):
    values = np.array([[[0, 257 * 100, 65535], [65535, 256 * 7, 300]]], dtype=np.uint16)
    (tmp_path / "rgb16.png").write_bytes(png_of_16_bit_rgb(values))
    decoded = np.asarray(decode_image(tmp_path / "rgb16.png"))
    assert decoded.tolist() == [[[0, 100, 255], [255, 7, 1]]]


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLACK)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.gif").getpixel((0, 0)) == RED


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_range(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif: 32 bits a channel .* convert it to 8 or 16 bits"):
        decode_image(tmp_path / "deep.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, kept):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    image = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    image.save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: int(kept * len(buffer.getvalue()))])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: "):
        decode_image(path)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_broken_bytes_never_raise_anything_else(tmp_path):
    """Flip bytes of valid files: the result is an image or a DataError."""
    rng = np.random.default_rng(1)
    for kind in ("png", "jpeg", "gif", "tiff", "webp", "bmp"):
        buffer = io.BytesIO()
        scene().save(buffer, kind)
        for _ in range(60):
            data = np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy()
            where = rng.integers(0, len(data), 3)
            data[where] = rng.integers(0, 256, 3)
            path = tmp_path / f"broken.{kind}"
            path.write_bytes(data.tobytes())
            with contextlib.suppress(DataError):
                assert decode_image(path).mode == "RGB"


def test_decompression_bomb(tmp_path, monkeypatch):
    Image.new("L", (50, 50)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.png: the image has more than 2,000 pixels"):
        decode_image(tmp_path / "bomb.png")


def test_what_is_no_file(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        decode_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot read it"):
        decode_image(tmp_path)


def test_fast_decoding_keeps_enough_pixels(tmp_path):
    image = scene(640, 480)
    image.save(tmp_path / "big.jpg", quality=95)
    image.save(tmp_path / "big.png")
    assert decode_image(tmp_path / "big.jpg", 500).size == (640, 480)
    assert decode_image(tmp_path / "big.jpg", 240).size == (320, 240)
    assert decode_image(tmp_path / "big.jpg", 239).size == (320, 240)
    assert decode_image(tmp_path / "big.jpg", 60).size == (80, 60)
    assert decode_image(tmp_path / "big.jpg", 1).size == (80, 60)
    assert decode_image(tmp_path / "big.png", 60).size == (640, 480)
    reduced = decode_image(tmp_path / "big.jpg", 240)
    assert difference(reduced, image.resize((320, 240), Image.Resampling.BOX)) < 6


@pytest.mark.parametrize("size", [(641, 479), (1000, 333), (333, 1000), (255, 257)])
@pytest.mark.parametrize("min_side", [30, 61, 120])
def test_fast_decoding_never_goes_below(tmp_path, size, min_side):
    scene(*size).save(tmp_path / "odd.jpg")
    assert min(decode_image(tmp_path / "odd.jpg", min_side).size) >= min_side


def test_suffixes_are_what_pillow_reads():
    known = Image.registered_extensions()
    assert sorted(suffix for suffix in IMAGE_SUFFIXES if suffix not in known) == []
