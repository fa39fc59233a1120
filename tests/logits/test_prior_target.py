"""The prior of an unlabelled set, against plain expectation maximisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dualtail.errors import InputError
from dualtail.logits import _passes
from dualtail.logits.prior import LabelPrior, estimate_target_prior


def sample(
    prob: list[float], size: int, seed: int, sharpness: float = 1.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are calibrated under a uniform prior, of labels drawn from ``prob``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor(prob), size, replacement=True, generator=generator)
    noise = torch.randn(size, len(prob), generator=generator, dtype=torch.float64)
    return sharpness * (noise + sharpness * torch.nn.functional.one_hot(labels, len(prob))), labels


def plain_em(
    logits: torch.Tensor, source: torch.Tensor, smoothing: float = 0.0, steps: int = 20_000
) -> torch.Tensor:
    """Saerens, Latinne and Decaestecker's iteration, written out."""
    likelihood = (logits - source.log()).softmax(1)
    prior = torch.full_like(source, 1 / len(source))
    for _ in range(steps):
        posterior = likelihood * prior
        expected = (posterior / posterior.sum(1, keepdim=True)).sum(0) + smoothing
        prior = expected / expected.sum()
    return prior


def log_likelihood(logits: torch.Tensor, source: torch.Tensor, prior: torch.Tensor) -> float:
    return float(((logits - source.log()).softmax(1) @ prior).log().mean())


class TestTargetPrior:
    @pytest.mark.parametrize("smoothing", [0.0, 3.0])
    def test_agrees_with_expectation_maximisation(self, smoothing):
        logits, _ = sample([0.5, 0.2, 0.2, 0.1], 600, seed=1)
        source = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
        logits = logits + source.log()
        found = estimate_target_prior(logits, source.log(), smoothing=smoothing)
        torch.testing.assert_close(found.prob, plain_em(logits, source, smoothing), atol=1e-4, rtol=0)
        assert found.source == "unlabelled"
        assert found.num_samples == 600

    def test_gap_bounds_the_excess(self):
        logits, _ = sample([0.7, 0.2, 0.1], 300, seed=2)
        uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
        found = estimate_target_prior(logits, LabelPrior.uniform(3))
        best = log_likelihood(logits, uniform, plain_em(logits, uniform))
        assert best - log_likelihood(logits, uniform, found.prob) <= found.optimality_gap + 1e-12
        assert found.optimality_gap <= 1e-5

    def test_the_truth_is_recovered(self):
        truth = [0.4, 0.3, 0.15, 0.1, 0.05]
        logits, labels = sample(truth, 20_000, seed=3)
        found = estimate_target_prior(logits, LabelPrior.uniform(5))
        frequencies = torch.bincount(labels) / len(labels)
        torch.testing.assert_close(found.prob.float(), frequencies, atol=0.02, rtol=0)
        predicted = torch.bincount(logits.argmax(1)) / len(labels)
        assert float((found.prob - frequencies).abs().sum()) < 0.5 * float(
            (predicted - frequencies).abs().sum()
        )

    def test_a_class_without_support_vanishes_or_is_smoothed(self):
        logits, _ = sample([0.6, 0.4, 0.0], 500, seed=4, sharpness=4)
        plain = estimate_target_prior(logits, LabelPrior.uniform(3))
        assert float(plain.prob[2]) < 1e-6
        assert bool(torch.isfinite(plain.log_prob).all())
        smooth = estimate_target_prior(logits, LabelPrior.uniform(3), smoothing=1.0)
        assert float(smooth.prob[2]) == pytest.approx(1 / 503, rel=0.2)

    def test_kinds_dimensions_and_permutation(self, monkeypatch):
        logits, _ = sample([0.6, 0.3, 0.1], 120, seed=5)
        source = LabelPrior.from_counts([1, 2, 3])
        expected = estimate_target_prior(logits, source).prob
        order = torch.tensor([2, 0, 1])
        permuted = estimate_target_prior(logits[:, order], LabelPrior.from_counts([3, 1, 2])).prob
        monkeypatch.setattr(_passes, "CACHE_BYTES", 0)
        for other in (logits.numpy(), logits.float(), logits.reshape(4, 5, 6, 3), logits + 7):
            torch.testing.assert_close(estimate_target_prior(other, source).prob, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(permuted, expected[order], atol=1e-4, rtol=0)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"source_prior": np.log([0.5, 0.5])}, "source_prior: 2 classes, but 3 are expected"),
            ({"source_prior": [1.0, 1.0, 1.0]}, "log-probabilities expected"),
            ({"source_prior": LabelPrior.uniform(3), "smoothing": -1.0}, "smoothing is -1.0"),
        ],
    )
    def test_bad_values_are_refused(self, arguments, message):
        with pytest.raises(InputError, match=message):
            estimate_target_prior(torch.zeros(5, 3), **arguments)
