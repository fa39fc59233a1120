"""What a library's builder hands to ``Backbone``: a model taken apart in one vocabulary, and what builders share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dualtail.errors import BackboneError, InputError, check_choice
from dualtail.imagespec import ImageSpec
from dualtail.models.projection import Projection
from dualtail.models.weights import fingerprint

RANDOM = "random"
"""What stands for random weights in the place of a file's name."""

# What a tower can be; the columns of the table of which tuner fits where.
FAMILIES: dict[str, str] = {
    "open_clip_vit": "open_clip's vision transformers",
    "open_clip_resnet": "open_clip's CLIP ResNets",
    "timm_vit": "timm's plain vision transformers, also as open_clip trunks (SigLIP, DeiT, DINOv2)",
    "timm_relative_vit": "timm's vision transformers with positions inside the attention (EVA-02, DINOv3, BEiT)",
    "timm_other": "every other timm model (ConvNeXt, EfficientNet, Swin, FastViT)",
    "open_clip_text": "open_clip's text transformers",
    "hub_text": "text towers from the Hugging Face hub",
}

_INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass
class Parts:
    """A foundation model as the builder of its library took it apart; what follows works on these parts alone.

    A vision tower needs only the first four; the others are for towers with blocks that tuners reach, a projection, or
    a text tower.

    Attributes:
        family: what its vision tower is, a key of ``FAMILIES``; decides which tuners fit. A tower of another library is
            ``"timm_vit"`` if its blocks are like timm's, else ``"timm_other"``.
        visual: images ``(B, 3, S, S)``, normalised, to features ``(B, D)``; in evaluation mode.
        image_spec: what it expects of an image.
        feature_dim: D.
        projection: features ``(..., D)`` to the joint space ``(..., E)``, and ``back``; by default the identity.
        blocks: the vision tower's blocks (empty for towers that are no plain transformer).
        fingerprint: SHA-256 of the weights as loaded; by default that of ``visual``.
        text: the text side of a model with open_clip's ``encode_text``, ``logit_scale`` and ``logit_bias``, or None.
        text_blocks: the text tower's blocks.
        tokenizer: makes the tokenizer, on first use.

    Raises:
        BackboneError: an unknown family.

    Example:
        >>> def build(name, rest, *, weights, seed):
        ...     "A builder as in ``BACKBONES``: every feature is the mean of a colour."
        ...     with seeded(seed):
        ...         visual = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        ...     return Parts("timm_other", visual.eval(), ImageSpec(size=8), feature_dim=3)
        >>> build("mean:colour", "colour", weights=RANDOM, seed=0).visual(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3])
    """

    family: str
    visual: nn.Module
    image_spec: ImageSpec
    feature_dim: int
    projection: nn.Module = field(default_factory=Projection)
    blocks: list[nn.Module] = field(default_factory=list)
    fingerprint: str = ""
    text: nn.Module | None = None
    text_blocks: list[nn.Module] = field(default_factory=list)
    tokenizer: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        check_choice("family", self.family, FAMILIES, error=BackboneError)
        self.fingerprint = self.fingerprint or fingerprint(self.visual)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers (CPU) from ``seed`` inside the block, leaving the global state untouched.

    Example:
        >>> with seeded(3):
        ...     a = torch.rand(1)
        >>> with seeded(3):
        ...     print(bool(a == torch.rand(1)))
        True
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators' generators too, which are not forked.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' own remarks about weights, which we check and report ourselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def image_spec(name: str, size: object, config: Mapping[str, Any]) -> ImageSpec:
    """Return the ImageSpec of a library's preprocessing settings.

    open_clip calls it ``resize_mode``, timm ``crop_mode``, where whole images are squeezed into the square.
    """
    try:
        sides = {int(side) for side in size} if isinstance(size, (tuple, list)) else {int(size)}  # type: ignore[call-overload]
        mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise BackboneError(
            f"its preprocessing cannot be read ({type(error).__name__}: {error})",
            where=name,
            fix="mend size, mean and std in its configuration",
        ) from None
    if len(sides) != 1:
        raise BackboneError(
            f"expects images of {'x'.join(map(str, size))} pixels",  # type: ignore[call-overload]
            where=name,
            fix="only square inputs are supported: choose another backbone or set image_size",
        )
    if len(mean) != 3 or len(std) != 3:
        raise BackboneError(f"expects {len(mean)} image channels", where=name, fix="only RGB is supported")
    interpolation = str(config.get("interpolation", "bicubic"))
    return ImageSpec(
        size=sides.pop(),
        mean=mean,
        std=std,
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
        squash="squash" in (config.get("resize_mode"), config.get("crop_mode")),
    )


def require_name(kind: type) -> None:
    """Refuse a class of tuners or heads without a name now, rather than when the trained member is saved."""
    if not isinstance(getattr(kind, "name", None), str):
        fix = "set `name` to what it is registered as"
        raise InputError("the class has no name", where=f"{kind.__module__}.{kind.__qualname__}", fix=fix)
