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


def draw(
    world: World,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    lossy: np.ndarray | None = None,
    lost: tuple[str, ...] = (),
) -> Sample:
    """Return an image of each label: its code, each factor resampled now and then.

    Args:
        world: codes, resampling, noise.
        labels: ``(N,)`` class numbers.
        rng: draws everything.
        lossy: ``(C,)`` bool, classes whose images have the factors ``lost`` scrambled.
        lost: names of factors.
    """
    factors = world.codes[labels].copy()
    sizes = np.array(list(world.factors.values()))
    anew = rng.random(factors.shape) < world.resample
    if lossy is not None:
        anew |= lossy[labels][:, None] & np.isin(world.factor_names, lost)
    factors = np.where(anew, rng.integers(0, sizes, factors.shape), factors)
    images = render(factors, world.factor_names, rng, noise=world.noise, jitter=world.jitter)
    return Sample(images, labels.astype(np.int64), factors)


def draw_corpus(world: World, foundation: Foundation) -> Sample:
    """Return the pre-training images of a foundation."""
    rng = world.rng(CORPUS, foundation.prior, foundation.seed)
    labels = rng.choice(world.classes, size=world.pretraining.images, p=world.label_prior(foundation))
    return draw(world, labels, rng, lossy=world.lossy_classes(foundation), lost=tuple(foundation.lost))
