"""What a foundation model sees, and what the downstream task shows: samples of a world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dualtail.lab.render import render
from dualtail.lab.world import CORPUS, Foundation, World


@dataclass(frozen=True)
class Sample:
    """Images with what they show.

    Attributes:
        images: ``(N, 3, 32, 32)`` uint8.
        labels: ``(N,)`` int64.
        factors: ``(N, F)`` int64, the values that the images show.
    """

    images: np.ndarray
    labels: np.ndarray
    factors: np.ndarray

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)


def draw_factors(
    world: World,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    lossy: np.ndarray | None = None,
    lost: tuple[str, ...] = (),
) -> np.ndarray:
    """Return what an image of each label shows, ``(N, F)``: its code, each factor resampled now and then.

    Args:
        world: codes and resampling.
        labels: ``(N,)`` class numbers.
        rng: draws which factors are resampled, and to what.
        lossy: ``(C,)`` bool, classes whose images have the factors ``lost`` scrambled.
        lost: names of factors.
    """
    codes = world.codes[labels]
    sizes = np.array(list(world.factors.values()))
    anew = rng.random(codes.shape) < world.resample
    if lossy is not None:
        anew |= lossy[labels][:, None] & np.isin(world.factor_names, lost)
    return np.where(anew, rng.integers(0, sizes, codes.shape), codes)


def draw(
    world: World,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    lossy: np.ndarray | None = None,
    lost: tuple[str, ...] = (),
) -> Sample:
    """Return an image of each label; the arguments are those of :func:`draw_factors`."""
    factors = draw_factors(world, labels, rng, lossy=lossy, lost=lost)
    images = render(factors, world.factor_names, rng, noise=world.noise, jitter=world.jitter)
    return Sample(images, labels.astype(np.int64), factors)


def draw_corpus(world: World, foundation: Foundation) -> Sample:
    """Return the pre-training images of a foundation."""
    rng = world.rng(CORPUS, foundation.prior, foundation.seed)
    labels = rng.choice(world.classes, size=world.pretraining.images, p=world.label_prior(foundation))
    return draw(world, labels, rng, lossy=world.lossy_classes(foundation), lost=tuple(foundation.lost))
