"""Mixup and CutMix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dualtail.engine.mixing import mix
from dualtail.logits.losses import build_loss

IMAGES = torch.randint(0, 256, (6, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)
SEEDS = st.integers(0, 2**63 - 1)


@given(SEEDS, st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=40, deadline=None)
def test_mixup_is_a_blend_with_the_partner(seed: int, alpha: float) -> None:
    mixed = mix(IMAGES, LABELS, mixup=alpha, seed=seed)
    exact = mixed.weight * IMAGES.float() + (1 - mixed.weight) * IMAGES[mixed.partners].float()
    assert (mixed.images.float() - exact).abs().max() <= 0.5 + 1e-3
    assert sorted(mixed.partners.tolist()) == LABELS.tolist()


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_cutmix_weight_is_the_area_that_is_left(seed: int) -> None:
    # Constant images, so that a pixel tells whose it is.
    images = (LABELS * 40).to(torch.uint8).view(6, 1, 1, 1).expand(6, 3, 12, 10)
    mixed = mix(images, LABELS, cutmix=1.0, seed=seed)
    own = mixed.images == (LABELS * 40).to(torch.uint8).view(6, 1, 1, 1)
    others = mixed.images == (mixed.partners * 40).to(torch.uint8).view(6, 1, 1, 1)
    assert (own | others).all()
    moved = mixed.partners != mixed.labels
    assert torch.allclose(own[moved].flatten(1).float().mean(1), torch.tensor(mixed.weight))


def test_everything_random_follows_from_the_seed() -> None:
    first, second, other = (mix(IMAGES, LABELS, mixup=1.0, cutmix=1.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, second.images)
    assert first.weight == second.weight != other.weight


def test_probability_and_choice() -> None:
    weights = [mix(IMAGES, LABELS, mixup=1.0, probability=0.25, seed=seed).weight for seed in range(400)]
    assert 0.18 < sum(weight < 1 for weight in weights) / 400 < 0.32
    assert mix(IMAGES, LABELS, seed=0).images is IMAGES


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    shares = torch.tensor([mix(IMAGES, LABELS, mixup=alpha, seed=seed).weight for seed in range(2000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_the_loss_is_that_of_the_soft_label() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    mixed = mix(IMAGES, LABELS, mixup=1.0, seed=4)
    soft = mixed.weight * F.one_hot(mixed.labels, 6) + (1 - mixed.weight) * F.one_hot(mixed.partners, 6)
    loss = build_loss("la", counts=torch.tensor([50, 20, 10, 5, 2, 1]))
    prior = torch.tensor([50.0, 20, 10, 5, 2, 1]).div(88).log()
    assert torch.allclose(mixed.loss(loss, logits), F.cross_entropy(logits + prior, soft), atol=1e-6)
    assert torch.equal(mixed.majority, mixed.labels if mixed.weight >= 0.5 else mixed.partners)
