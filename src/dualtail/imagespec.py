"""What a backbone expects of an image; shared by the rooms that must not know each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSpec:
    """Input size and normalisation of a backbone.

    Attributes:
        size: side of the square input, in pixels.
        mean: per-channel mean (R, G, B) of the values in [0, 1].
        std: per-channel standard deviation of the same.
        interpolation: ``"bicubic"`` or ``"bilinear"``, used when an image is resized.
        squash: whether the model was trained on whole images squeezed into the square, whatever their shape (as
            open_clip's SigLIP), rather than on squares cut out of them.

    Example:
        >>> ImageSpec(size=32).interpolation
        'bicubic'
    """

    size: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    squash: bool = False
