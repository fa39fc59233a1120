"""Mixup and CutMix on the device, for every loss that takes hard labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixed:
    """A batch of mixed images and what each is made of.

    Attributes:
        images: uint8 (B, 3, H, W).
        labels: int64 (B,), of the first image.
        partners: int64 (B,), of the image that was mixed in.
        weight: share of the first image, in [0, 1].
    """

    images: Tensor
    labels: Tensor
    partners: Tensor
    weight: float

    def loss(self, loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor) -> Tensor:
        r"""Return :math:`w\, \ell(f, y) + (1 - w)\, \ell(f, y')`.

        For every loss that is linear in the label's one-hot vector (cross-entropy and all logit-adjusted forms of
        it) this *is* the loss of the soft label; for the others it is Mixup's own definition.
        """
        if self.weight == 1.0:
            return loss(logits, self.labels)
        return self.weight * loss(logits, self.labels) + (1 - self.weight) * loss(logits, self.partners)

    @property
    def majority(self) -> Tensor:
        """The label of the larger share, int64 (B,): what a mixed image's accuracy is counted against."""
        return self.labels if self.weight >= 0.5 else self.partners


def mix(
    images: Tensor,
    labels: Tensor,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    probability: float = 1.0,
    seed: int,
) -> Mixed:
    r"""Mix a batch with a permutation of itself by Mixup or CutMix.

    The share is :math:`w \sim \mathrm{Beta}(\alpha, \alpha)`, one a batch. Mixup blends,
    :math:`w x + (1 - w) x'`, rounded to the nearest of the 256 levels; CutMix pastes a box of area :math:`1 - w`
    (clipped at the border, :math:`w` corrected) from the partner. Everything random is a function of ``seed``.

    Args:
        images: uint8 (B, 3, H, W), on any device.
        labels: int64 (B,).
        mixup: alpha of Mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off. With both, a fair coin chooses.
        probability: that the batch is mixed at all.
        seed: of the coin, the share, the box and the permutation.

    Source:
        Zhang et al., 2018, arXiv 1710.09412; Yun et al., 2019, arXiv 1905.04899.

    Example:
        >>> images = torch.arange(2, dtype=torch.uint8).mul(200).view(2, 1, 1, 1).expand(2, 3, 4, 4)
        >>> mixed = mix(images, torch.tensor([0, 1]), mixup=1.0, seed=3)
        >>> mixed.images.dtype, mixed.images.shape, 0 <= mixed.weight <= 1
        (torch.uint8, torch.Size([2, 3, 4, 4]), True)
    """
    random = np.random.default_rng(seed)
    coin, kind = random.random(2)
    if coin >= probability or not (mixup or cutmix):
        return Mixed(images, labels, labels, 1.0)
    use_cutmix = bool(cutmix) and (not mixup or kind < 0.5)
    alpha = cutmix if use_cutmix else mixup
    share = float(random.beta(alpha, alpha))
    order = torch.from_numpy(random.permutation(len(images))).to(images.device, non_blocking=True)
    other = images[order]
    if use_cutmix:
        height, width = images.shape[-2:]
        top, bottom, left, right = _box(height, width, 1 - share, random)
        images = images.clone()
        images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = torch.lerp(other.float(), images.float(), share).round_().to(torch.uint8)
    return Mixed(images, labels, labels[order], share)


def _box(height: int, width: int, area: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a box with this share of the area, centred anywhere, clipped."""
    side = math.sqrt(area)
    half_height, half_width = round(height * side / 2), round(width * side / 2)
    y, x = int(random.integers(height)), int(random.integers(width))
    return (
        max(0, y - half_height),
        min(height, y + half_height),
        max(0, x - half_width),
        min(width, x + half_width),
    )
