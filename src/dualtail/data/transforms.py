"""From a decoded image to the uint8 square that a model takes; normalisation happens later, on the device.

A transform is a small frozen dataclass, so that it can be compared, hashed and printed. It is called with an RGB
image and the progress of the training in [0, 1], and draws what is random from torch's global generator, which the
loader seeds for every sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dualtail.errors import InputError, check_choice
from dualtail.imagespec import ImageSpec
from dualtail.registry import Registry
from dualtail.schema import PositiveFloat, Probability, Size

CROPS = (1, 5, 10)
INTERPOLATIONS = ("bicubic", "bilinear")
SCHEDULES = ("convex", "linear", "concave", "min", "max")
Interpolation = Literal["bicubic", "bilinear"]
Area = Annotated[float, Field(gt=0, le=1)]
Operations = Annotated[int, Field(ge=0, le=100)]
Magnitude = Annotated[int, Field(ge=0, le=30)]


class Transform(Protocol):
    """From a decoded image to what a model takes; what is random comes from torch's global generator."""

    @property
    def min_side(self) -> int:
        """The shorter side in pixels from which a larger image shows no more detail after the transform."""

    def __call__(self, image: Image.Image, progress: float = 0.0) -> Tensor:
        """Return uint8 ``(3, S, S)``, or ``(K, 3, S, S)`` for ``K`` crops."""


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side, or both for a model that was trained so, then cut the centre, or five or ten crops.

    Attributes:
        size: side of the output.
        resize: length of the shorter side before the crop (of both sides with ``squash``), at least ``size``.
        interpolation: ``"bicubic"`` or ``"bilinear"``, with antialiasing.
        crops: 1 (centre), 5 (corners and centre) or 10 (the same and their mirror images); more than one gives
            ``(K, 3, S, S)``.
        flip: probability of a mirror image (0 at test time).
        squash: make both sides ``resize`` long, whatever the image's shape.

    Example:
        >>> EvalTransform(8, 9, "bicubic", crops=5)(Image.new("RGB", (20, 12))).shape
        torch.Size([5, 3, 8, 8])
    """

    size: int
    resize: int
    interpolation: str
    crops: int = 1
    flip: Probability = 0.0
    squash: bool = False

    def __post_init__(self) -> None:
        if self.resize < self.size:
            raise InputError(f"resize is {self.resize}", fix=f"give at least the crop's {self.size}")
        if self.crops not in CROPS:
            raise InputError(f"crops is {self.crops!r}", fix="use 1, 5 or 10")
        _check_common(self.size, self.interpolation, self.flip)

    @property
    def key(self) -> str:
        """A short name; two transforms of the same key give the same crops.

        Example:
            >>> EvalTransform(224, 256, "bicubic").key
            '224_256_bicubic_1crop'
        """
        more = ("_flip" + format(self.flip, "g")) * bool(self.flip) + "_squash" * self.squash
        return f"{self.size}_{self.resize}_{self.interpolation}_{self.crops}crop{more}"

    @property
    def min_side(self) -> int:
        """Twice the side it is resized to."""
        return 2 * self.resize

    def __call__(self, image: Image.Image, progress: float = 0.0) -> Tensor:
        """Return uint8 ``(3, S, S)``, or ``(K, 3, S, S)`` for more than one crop."""
        mode = v2.InterpolationMode(self.interpolation)
        sides = [self.resize] * (1 + self.squash)
        resized = F.resize(F.pil_to_tensor(image), sides, interpolation=mode, antialias=True)
        size = [self.size, self.size]
        if self.crops == 1:
            return _maybe_flip(F.center_crop(resized, size), self.flip).contiguous()
        crops = F.five_crop(resized, size) if self.crops == 5 else F.ten_crop(resized, size)
        return torch.stack(crops)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a random part of the image and resize it: the augmentation of LIFT (arXiv 2309.10019).

    Attributes:
        size: side of the output.
        interpolation: ``"bicubic"`` or ``"bilinear"``, with antialiasing.
        scale: smallest and largest part of the image's area.
        ratio: smallest and largest width over height.
        flip: probability of a mirror image; 0 where left and right matter, as for digits.
        num_ops: operations of RandAugment (Cubuk et al., 2020, arXiv 1909.13719) after the crop; 0 for none.
        magnitude: their strength, 0 to 30.
    """

    size: int
    interpolation: Interpolation = "bicubic"
    scale: tuple[Area, Area] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    num_ops: Operations = 0
    magnitude: Magnitude = 9

    def __post_init__(self) -> None:
        _check_common(self.size, self.interpolation, self.flip)
        _check_range("scale", self.scale, 1.0)
        _check_range("ratio", self.ratio, math.inf)
        if self.num_ops < 0 or not 0 <= self.magnitude <= 30:
            raise InputError(
                f"num_ops is {self.num_ops} and magnitude {self.magnitude}",
                fix="give at least 0 operations of magnitude 0 to 30",
            )

    @property
    def min_side(self) -> int:
        """Where the smallest crop still has ``size`` pixels."""
        return math.ceil(self.size / math.sqrt(self.scale[0]))

    def __call__(self, image: Image.Image, progress: float = 0.0) -> Tensor:
        """Return uint8 ``(3, S, S)``."""
        top, left, height, width = self.draw_box(*image.size)
        out = _cut(image, top, left, height, width, self.size, self.interpolation)
        out = _maybe_flip(out, self.flip)
        if self.num_ops:
            out = _rand_augment(self.num_ops, self.magnitude)(out)
        return out.contiguous()

    def draw_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return a random ``(top, left, height, width)`` for an image, as torchvision draws it.

        Area uniform in ``scale``, logarithm of the ratio uniform in that of ``ratio``; the first of ten tries that
        fits, else the largest centre crop whose ratio is in range.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for part, log_ratio, down, right in torch.rand(10, 4).tolist():
            area = width * height * (self.scale[0] + part * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + log_ratio * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        w, h = max(w, 1), max(h, 1)
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class MinimalistCrop:
    """Cut a square whose smallest size grows during the training: the augmentation of LIFT+ (arXiv 2504.13282).

    The area of the square, as a part of the image's, is uniform in ``[s(t), 1]``, both cut off at the largest
    square that fits, with ``s(t) = a + (1 - a) g(t)``, ``a = scale[0]`` and ``t`` the progress. The first epochs
    see small parts, the last (``t = 1``) the largest square. There is no other augmentation.

    ==========  =======================================
    schedule    ``g(t)``
    ==========  =======================================
    convex      ``1 - sqrt(1 - t^2)`` (LIFT+'s default)
    linear      ``t``
    concave     ``sqrt(1 - (1 - t)^2)``
    min, max    0, 1
    ==========  =======================================

    Attributes:
        size: side of the output.
        interpolation: ``"bicubic"`` or ``"bilinear"``, with antialiasing.
        scale: smallest and largest part of the image's area.
        schedule: one of ``SCHEDULES``.
        flip: probability of a mirror image, 0 in LIFT+.

    Example:
        >>> crop = MinimalistCrop(224, "bicubic")
        >>> [round(crop.min_scale(t), 3) for t in (0, 0.5, 1)]
        [0.08, 0.203, 1.0]
    """

    size: int
    interpolation: Interpolation = "bicubic"
    scale: tuple[Area, Area] = (0.08, 1.0)
    schedule: Literal["convex", "linear", "concave", "min", "max"] = "convex"
    flip: Probability = 0.0

    def __post_init__(self) -> None:
        _check_common(self.size, self.interpolation, self.flip)
        _check_range("scale", self.scale, 1.0)
        check_choice("schedule", self.schedule, SCHEDULES)

    @property
    def min_side(self) -> int:
        """Where the smallest crop still has ``size`` pixels."""
        return math.ceil(self.size / math.sqrt(self.scale[0]))

    def min_scale(self, progress: float) -> float:
        """Return ``s(t)``, the smallest part of the image's area at progress ``t`` in [0, 1]."""
        t = min(max(progress, 0.0), 1.0)
        grown = {
            "convex": 1 - math.sqrt(1 - t * t),
            "linear": t,
            "concave": math.sqrt(1 - (1 - t) ** 2),
            "min": 0.0,
            "max": 1.0,
        }[self.schedule]
        return self.scale[0] + grown * (self.scale[1] - self.scale[0])

    def __call__(self, image: Image.Image, progress: float = 0.0) -> Tensor:
        """Return uint8 ``(3, S, S)``."""
        width, height = image.size
        largest = min(width, height) ** 2 / (width * height)
        low, high = min(self.min_scale(progress), largest), min(self.scale[1], largest)
        part = low + (high - low) * float(torch.rand(()))
        side = min(max(1, round(math.sqrt(part * width * height))), width, height)
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        out = _cut(image, top, left, side, side, self.size, self.interpolation)
        return _maybe_flip(out, self.flip).contiguous()


def _resize_only(
    size: int,
    interpolation: Interpolation = "bicubic",
    resize: Size | None = None,
    flip: Probability = 0.0,
    squash: bool = False,
) -> EvalTransform:
    return EvalTransform(size, resize or size, interpolation, flip=flip, squash=squash)


def _rand_augmented(
    size: int,
    interpolation: Interpolation = "bicubic",
    num_ops: Operations = 2,
    magnitude: Magnitude = 9,
    scale: tuple[Area, Area] = (0.08, 1.0),
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
    flip: Probability = 0.5,
) -> RandomResizedCrop:
    return RandomResizedCrop(size, interpolation, scale, ratio, flip, num_ops, magnitude)


AUGMENTATIONS: Registry[Callable[..., Transform]] = Registry(
    "augmentation",
    {
        "random_resized_crop": RandomResizedCrop,
        "minimalist": MinimalistCrop,
        "rand_augment": _rand_augmented,
        "resize": _resize_only,
    },
    group="dualtail.augmentations",
    given=("size",),
)
"""What makes a ``Transform`` of training images: ``augmentation(size, **options)``."""


def build_augmentation(spec: ImageSpec, name: str = "random_resized_crop", /, **options: Any) -> Transform:
    """Return the augmentation of the training images.

    Args:
        spec: what the backbone expects; gives the size, and the interpolation and ``squash`` of an augmentation that
            has these options.
        name: a key of ``AUGMENTATIONS``: ``"random_resized_crop"`` (LIFT), ``"minimalist"`` (LIFT+),
            ``"rand_augment"`` (a random resized crop and RandAugment), ``"resize"`` (none: as at test time).
        **options: the augmentation's own, such as ``flip=0`` or ``scale=(0.5, 1)``; lists become tuples.

    Raises:
        InputError: an unknown name or option (with the nearest), or a value out of range.

    Example:
        >>> augmentation = build_augmentation(ImageSpec(size=32), flip=0.0)
        >>> augmentation(Image.new("RGB", (50, 40))).shape
        torch.Size([3, 32, 32])
    """
    options = AUGMENTATIONS.check_options(name, options)
    known = AUGMENTATIONS.options(name)
    own: dict[str, Any] = {key: getattr(spec, key) for key in ("interpolation", "squash") if key in known}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return AUGMENTATIONS[name](size=spec.size, **{**own, **given})


def eval_transform(
    spec: ImageSpec, *, resize: int | None = None, crops: int = 1, interpolation: str | None = None
) -> EvalTransform:
    """Return the transform of validation and test images.

    Args:
        spec: what the backbone expects.
        resize: length of the shorter side before the crop. By default ``size + size // 7`` (256 for 224) for one crop
            and ``size + round(24 size / 224)`` (248 for 224) for several, as LIFT has it; for one crop of a backbone
            whose images are squashed ``size``, so that nothing is cut off.
        crops: 1, or 5 or 10 for test-time ensembling.
        interpolation: overrides the backbone's.

    Example:
        >>> eval_transform(ImageSpec(size=224)).key, eval_transform(ImageSpec(size=224), crops=5).key
        ('224_256_bicubic_1crop', '224_248_bicubic_5crop')
    """
    if resize is None:
        margin = spec.size // 7 * (not spec.squash) if crops == 1 else round(24 * spec.size / 224)
        resize = spec.size + margin
    return EvalTransform(spec.size, resize, interpolation or spec.interpolation, crops, squash=spec.squash)


def _check_common(size: int, interpolation: str, flip: float) -> None:
    if size < 1:
        raise InputError(f"size is {size}", fix="give at least 1 pixel")
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    if not 0 <= flip <= 1:
        raise InputError(f"flip is {flip}", fix="give a probability from 0 to 1")


def _check_range(name: str, value: tuple[float, float], largest: float) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1] <= largest:
        raise InputError(f"{name} is {value}", fix=f"give two rising numbers above 0, at most {largest:g}")


def _maybe_flip(image: Tensor, probability: float) -> Tensor:
    return F.horizontal_flip(image) if probability and float(torch.rand(())) < probability else image


def _cut(
    image: Image.Image, top: int, left: int, height: int, width: int, size: int, interpolation: str
) -> Tensor:
    mode = v2.InterpolationMode(interpolation)
    return F.resized_crop(
        F.pil_to_tensor(image), top, left, height, width, [size, size], interpolation=mode, antialias=True
    )


@lru_cache(maxsize=8)
def _rand_augment(num_ops: int, magnitude: int) -> v2.RandAugment:
    return v2.RandAugment(num_ops, magnitude, interpolation=v2.InterpolationMode.BILINEAR)
