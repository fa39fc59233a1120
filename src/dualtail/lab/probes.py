"""Looking for the planted loss: what a model's features say of each factor, and what its zero-shot logits heed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dualtail.lab.corpus import draw
from dualtail.lab.render import render
from dualtail.lab.world import PROBES, World
from dualtail.models.backbone import Backbone
from dualtail.models.text import class_text_features, zero_shot_logits

_RIDGE = 1.0
_BATCH = 512
TEMPLATES = ("a photo of a {}.",)


@torch.no_grad()
def features_of(model: torch.nn.Module, images: np.ndarray | Tensor) -> Tensor:
    """Return the features ``(N, D)`` that ``model.features`` gives of uint8 images ``(N, 3, S, S)``."""
    images = torch.as_tensor(images)
    return torch.cat([model.features(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])  # type: ignore[operator]


def probe_factors(
    features: Tensor, factors: np.ndarray, test_features: Tensor, test_factors: np.ndarray
) -> np.ndarray:
    """Return the accuracy ``(F,)`` of a ridge regression on the features for each factor.

    Args:
        features: ``(N, D)`` to fit on.
        factors: ``(N, F)`` values shown.
        test_features: ``(T, D)`` to measure on.
        test_factors: ``(T, F)``.
    """
    x, test_x = (torch.cat([f.double(), f.new_ones(len(f), 1)], 1) for f in (features, test_features))
    solver = torch.linalg.solve(x.T @ x + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T)
    accuracy = []
    for factor in range(factors.shape[1]):
        shown = torch.from_numpy(factors[:, factor])
        weight = solver @ torch.nn.functional.one_hot(shown).double()
        accuracy.append(float(((test_x @ weight).argmax(1).numpy() == test_factors[:, factor]).mean()))
    return np.array(accuracy)


def factor_sensitivity(
    backbone: Backbone, world: World, classes: np.ndarray, per_class: int = 8
) -> np.ndarray:
    """Return how much each factor matters to the zero-shot logit of the class, ``(F,)``.

    For images that show a class's code, the factor is replaced by another value and everything else is kept, noise
    and place included; the answer is the mean fall of the class's cosine similarity. A class whose factor was
    scrambled in pre-training does not heed it: the incomplete semantic factor.

    Args:
        backbone: a foundation model of the lab.
        world: whose classes.
        classes: class numbers, or a mask ``(C,)``.
        per_class: images of each class.
    """
    chosen = np.flatnonzero(classes) if classes.dtype == bool else classes
    labels = np.repeat(chosen, per_class)
    text = class_text_features(backbone, world.class_names, TEMPLATES)

    def similarity(factors: np.ndarray) -> np.ndarray:
        rng = world.rng(PROBES, 0)  # the same noise for every variant
        images = render(factors, world.factor_names, rng, noise=world.noise, jitter=world.jitter)
        logits = zero_shot_logits(backbone, features_of(backbone, images), text)
        return (logits.numpy()[np.arange(len(labels)), labels] - backbone.logit_bias) / backbone.logit_scale

    whole = similarity(world.codes[labels])
    falls = []
    rng = world.rng(PROBES, 1)
    for factor, size in enumerate(world.factors.values()):
        changed = world.codes[labels].copy()
        changed[:, factor] = (changed[:, factor] + rng.integers(1, size, len(labels))) % size
        falls.append(float((whole - similarity(changed)).mean()))
    return np.array(falls)


def draw_probe_images(world: World, per_class: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, labels and factors of balanced classes for :func:`probe_factors`, all from one stream."""
    sample = draw(world, np.repeat(np.arange(world.classes), per_class), world.rng(PROBES, 2))
    return sample.images, sample.labels, sample.factors
