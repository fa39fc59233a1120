"""Images of 32 x 32 pixels from factor values, thousands a second on one thread."""

from __future__ import annotations

import numpy as np

SIZE = 32

# The word for each value of each factor; captions use them.
FACTOR_VALUES: dict[str, tuple[str, ...]] = {
    "shape": ("disc", "square", "triangle", "cross", "ring", "diamond"),
    "texture": ("plain", "barred", "striped", "slanted", "chequered", "dotted"),
    "colour": ("red", "green", "blue", "yellow", "magenta", "cyan"),
    "border": ("unframed", "pink-framed", "lime-framed", "orange-framed", "violet-framed", "teal-framed"),
    "background": ("snow", "night", "sand", "sea", "grass", "earth"),
}

_COLOURS = np.array(
    [
        [0.85, 0.15, 0.15],
        [0.15, 0.7, 0.2],
        [0.2, 0.3, 0.9],
        [0.9, 0.85, 0.2],
        [0.85, 0.25, 0.8],
        [0.2, 0.8, 0.85],
    ],
    dtype=np.float32,
)
_BORDERS = np.array(
    [[0, 0, 0], [1, 0.4, 0.65], [0.6, 1, 0.2], [1, 0.55, 0], [0.5, 0.1, 0.8], [0, 0.5, 0.5]], dtype=np.float32
)
_BACKGROUNDS = np.array(
    [
        [0.85, 0.88, 0.92],
        [0.12, 0.12, 0.2],
        [0.8, 0.7, 0.5],
        [0.3, 0.45, 0.65],
        [0.4, 0.55, 0.3],
        [0.4, 0.28, 0.2],
    ],
    dtype=np.float32,
)
_BORDER_PIXELS = 2
_TEXTURE_DEPTH = 0.6  # how much darker the dark parts of a texture are
_CHUNK = 512  # images at a time: the working set stays in the processor's cache


def render(
    factors: np.ndarray,
    names: tuple[str, ...],
    rng: np.random.Generator,
    *,
    noise: float = 0.08,
    jitter: float = 2.0,
) -> np.ndarray:
    """Return images that show the given factor values.

    Args:
        factors: ``(N, F)`` integers, a column a factor.
        names: the factors' names, in the columns' order; a factor that is not named has its first value.
        rng: draws place, size, phase, brightness and noise.
        noise: standard deviation of the pixels' noise, of a range of 1.
        jitter: largest shift of the shape, in pixels.

    Returns:
        ``(N, 3, 32, 32)`` uint8.

    Example:
        >>> render(np.zeros((2, 1), int), ("shape",), np.random.default_rng(0)).shape
        (2, 3, 32, 32)
    """
    images = np.empty((len(factors), 3, SIZE, SIZE), dtype=np.uint8)
    for start in range(0, len(factors), _CHUNK):
        part = factors[start : start + _CHUNK]
        value = dict.fromkeys(FACTOR_VALUES, np.zeros(len(part), dtype=np.int64))
        value |= {name: part[:, column] for column, name in enumerate(names)}
        images[start : start + _CHUNK] = _render_chunk(value, rng, noise, jitter)
    return images


def _render_chunk(
    value: dict[str, np.ndarray], rng: np.random.Generator, noise: float, jitter: float
) -> np.ndarray:
    count = len(value["shape"])
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    shift = rng.uniform(-jitter, jitter, (2, count, 1)).astype(np.float32)
    radius = rng.uniform(10.5, 12.5, (count, 1, 1)).astype(np.float32)
    x, y = (axis - shift[0])[:, None, :], (axis - shift[1])[:, :, None]
    inside = _per_value(value["shape"], _shape, x / radius, y / radius)
    phase = rng.uniform(0, 8, (2, count, 1, 1)).astype(np.float32)
    light = 1 - _TEXTURE_DEPTH * _per_value(value["texture"], _texture, x + phase[0], y + phase[1])

    def plane(palette: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return palette[chosen][:, :, None, None]

    image = np.where(
        inside[:, None],
        plane(_COLOURS, value["colour"]) * light[:, None],
        plane(_BACKGROUNDS, value["background"]),
    )
    edge = np.abs(axis) > SIZE / 2 - _BORDER_PIXELS
    frame = (edge[:, None] | edge[None, :]) & (value["border"] > 0)[:, None, None]
    image = np.where(frame[:, None], plane(_BORDERS, value["border"]), image)
    image *= rng.uniform(0.85, 1.15, (count, 1, 1, 1)).astype(np.float32)
    image += noise * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _per_value(values: np.ndarray, draw, x: np.ndarray, y: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return ``(N, S, S)`` masks: ``draw(value, x, y)`` on the rows that have the value."""
    mask = np.zeros((len(values), SIZE, SIZE), dtype=bool)
    for value in np.unique(values):
        rows = values == value
        mask[rows] = draw(int(value), x[rows], y[rows])
    return mask


def _shape(value: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where the shape is; ``x`` ``(n, 1, S)`` and ``y`` ``(n, S, 1)`` are in units of its radius."""
    if value == 0:
        return x**2 + y**2 < 1
    if value == 1:
        return (np.abs(x) < 0.85) & (np.abs(y) < 0.85)
    if value == 2:
        return (y < 0.75) & (y > 2 * np.abs(x) - 1)
    if value == 3:
        return ((np.abs(x) < 0.32) & (np.abs(y) < 1)) | ((np.abs(y) < 0.32) & (np.abs(x) < 1))
    distance = x**2 + y**2 if value == 4 else np.abs(x) + np.abs(y)
    return (distance < 1) & (distance > 0.3) if value == 4 else distance < 1.15


def _texture(value: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where the texture is dark; ``x`` and ``y`` are in pixels."""
    if value == 0:
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    if value == 1:
        return np.broadcast_to(y % 5 < 2.5, np.broadcast_shapes(x.shape, y.shape))
    if value == 2:
        return np.broadcast_to(x % 5 < 2.5, np.broadcast_shapes(x.shape, y.shape))
    if value == 3:
        return (x + y) % 6 < 3
    if value == 4:
        return (x % 8 < 4) ^ (y % 8 < 4)
    return (x % 4 < 2) & (y % 4 < 2)
