"""What a builder hands to ``Backbone``: a model of some library, taken apart in one vocabulary."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dualtail.errors import BackboneError, InputError, nearest
from dualtail.imagespec import ImageSpec

RANDOM = "random"

_INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass
class Parts:
    """A foundation model as its builder found it.

    Attributes:
        family: what its vision tower is; decides which tuners fit.
        visual: images ``(B, 3, S, S)``, normalised, to features ``(B, D)``.
        projection: features to the joint space.
        blocks: the vision tower's blocks (empty for towers that are no plain transformer).
        image_spec: what it expects of an image.
        feature_dim: D.
        fingerprint: SHA-256 of the weights as loaded.
        text: the text side of an open_clip model, or None.
        text_blocks: the text tower's blocks.
        tokenizer: makes the tokenizer, on first use.
    """

    family: str
    visual: nn.Module
    projection: nn.Module
    blocks: list[nn.Module]
    image_spec: ImageSpec
    feature_dim: int
    fingerprint: str
    text: nn.Module | None = None
    text_blocks: list[nn.Module] | None = None
    tokenizer: Callable[[], Any] | None = None


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
    sides = {int(side) for side in size} if isinstance(size, (tuple, list)) else {int(size)}  # type: ignore[call-overload]
    if len(sides) != 1:
        raise BackboneError(
            f"expects images of {'x'.join(map(str, size))} pixels",  # type: ignore[call-overload]
            where=name,
            fix="only square inputs are supported: choose another backbone or set image_size",
        )
    mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
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


def check_options(what: str, maker: type, options: dict[str, Any]) -> None:
    """Refuse options that ``maker`` does not take as keywords, naming the nearest it does."""
    parameters = inspect.signature(maker).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            guess = nearest(option, known)
            raise InputError(
                f"{what} has no option {option!r}",
                fix=f"did you mean {guess!r}?" if guess else f"it takes {', '.join(known) or 'none'}",
            )
