"""The pre-training prior from labelled logits: optimum, errors, shrinkage, temperature, streaming, contracts."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch.nn.functional import cross_entropy

from dualtail.errors import InputError
from dualtail.logits import _intercepts, _passes
from dualtail.logits.prior import LabelPrior, estimate_label_prior


class World:
    """Gaussian classes with known ``log p(x | y)`` and a model that believes in the prior ``truth``.

    Classes come in clusters of ten that are confused with each other, as breeds of dogs are.
    """

    def __init__(
        self, classes: int, seed: int, spread: float = 1.0, radius: float = 4.0, dim: int = 24
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        cluster = torch.randn(max(1, classes // 10), dim, generator=self.generator)
        means = cluster[torch.arange(classes) % len(cluster)]
        means = means + 0.7 * torch.randn(classes, dim, generator=self.generator)
        self.means = radius * torch.nn.functional.normalize(means, dim=1)
        prior = spread * torch.randn(classes, generator=self.generator, dtype=torch.float64)
        self.truth = prior.log_softmax(0)

    def logits(self, labels: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(labels), self.means.shape[1], generator=self.generator)
        samples = self.means[labels] + noise
        evidence = samples @ self.means.T - self.means.square().sum(1) / 2
        return evidence + self.truth.float()

    def balanced(self, each: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(len(self.truth)).repeat(each)
        return self.logits(labels), labels

    def drawn(self, prob: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.multinomial(prob, size, replacement=True, generator=self.generator)
        return self.logits(labels), labels


class Small(NamedTuple):
    logits: torch.Tensor
    labels: torch.Tensor
    log_pi: torch.Tensor


def small_problem(seed: int, classes: int = 6, samples: int = 90) -> Small:
    """A problem without structure, in float64, whose labels come from a skewed prior."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    log_pi = torch.randn(classes, generator=generator, dtype=torch.float64).log_softmax(0)
    labels = torch.multinomial(log_pi.exp(), samples, replacement=True, generator=generator)
    labels[:classes] = torch.arange(classes)
    return Small(logits, labels, log_pi)


def objective(
    problem: Small, b: torch.Tensor, strength: float = 0.0, temperature: float = 1.0
) -> torch.Tensor:
    """The documented objective, written out."""
    loss = cross_entropy(problem.logits / temperature - b + problem.log_pi, problem.labels, reduction="sum")
    return loss + strength / 2 * (b - b.mean()).square().sum()


def scipy_optimum(problem: Small, strength: float = 0.0) -> torch.Tensor:
    def value_and_gradient(b: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(b, requires_grad=True)
        value = objective(problem, leaf, strength)
        value.backward()
        return value.item(), leaf.grad.numpy()

    found = optimize.minimize(
        value_and_gradient, np.zeros(problem.logits.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    return torch.from_numpy(found.x).log_softmax(0)


def dense_covariance(problem: Small, log_prob: torch.Tensor, strength: float = 0.0) -> torch.Tensor:
    """Covariance of the normalised log-probabilities from autograd's Hessian."""
    hessian = torch.autograd.functional.hessian(lambda b: objective(problem, b, strength), log_prob)
    jacobian = torch.eye(len(log_prob), dtype=torch.float64) - log_prob.exp()
    return jacobian @ torch.linalg.pinv(hessian, hermitian=True) @ jacobian.T


class TestOptimum:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("strength", [0.0, 2.5])
    def test_agrees_with_scipy(self, seed, strength):
        problem = small_problem(seed)
        found = estimate_label_prior(problem.logits, problem.labels, problem.log_pi, shrinkage=strength)
        torch.testing.assert_close(found.log_prob, scipy_optimum(problem, strength), atol=2e-5, rtol=0)
        assert found.source == "zero_shot"
        assert (found.num_samples, found.temperature, found.shrinkage) == (90, 1.0, strength)

    def test_gap_bounds_the_excess(self):
        problem = small_problem(4)
        found = estimate_label_prior(problem.logits, problem.labels, problem.log_pi, shrinkage=0)
        best = objective(problem, scipy_optimum(problem))
        excess = float(objective(problem, found.log_prob) - best) / 90
        assert -1e-12 < excess <= found.optimality_gap + 1e-12 < 1e-9

    def test_expected_counts_match_the_labels(self):
        logits, labels = World(50, seed=1).balanced(20)
        found = estimate_label_prior(logits, labels, shrinkage=0)
        expected = (logits - found.log_prob).softmax(1).sum(0)
        torch.testing.assert_close(expected, torch.full_like(expected, 20), atol=2e-3, rtol=0)

    def test_a_class_that_is_never_predicted_is_found(self):
        logits, labels = World(8, seed=2).balanced(50)
        logits[:, 3] -= 300
        found = estimate_label_prior(logits, labels, shrinkage=0)
        moved = estimate_label_prior(logits + 300 * torch.eye(8)[3], labels, shrinkage=0)
        difference = found.log_prob - moved.log_prob
        assert float(difference[3]) == pytest.approx(-300, abs=1)
        others = torch.arange(8) != 3
        assert float(difference[others].std()) < 1e-3

    def test_weakly_linked_clusters_are_solved_all_the_same(self):
        """Where quasi-Newton steps crawl, the Hessian takes over."""
        world = World(60, seed=3, radius=9)
        logits, labels = world.balanced(20)
        found = estimate_label_prior(logits.double(), labels, shrinkage=0)
        assert found.optimality_gap < 1e-8

    def test_groups_that_never_mix_are_refused_by_name(self):
        logits = torch.full((40, 4), -1e4)
        logits[:20, :2], logits[20:, 2:] = torch.randn(20, 2), torch.randn(20, 2)
        labels = torch.arange(4).repeat_interleave(10)
        with pytest.raises(InputError, match=r"do not determine the prior.*shrinkage='auto'"):
            estimate_label_prior(logits, labels, shrinkage=0)
        assert bool(torch.isfinite(estimate_label_prior(logits, labels).standard_errors).all())


class TestBound:
    def test_bound_holds_away_from_the_optimum(self):
        problem = small_problem(5)
        passes = _passes.SoftmaxPasses(problem.logits, problem.labels)
        inner = _intercepts.InterceptObjective(passes, problem.log_pi)
        best = scipy_optimum(problem)
        directions = torch.randn(20, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        half_decrements_below = 0
        for distance in (1e-3, 1e-2, 0.05):
            for direction in (*directions, *-directions):
                point = inner.at(best + distance * direction)
                curvature = _intercepts.DenseCurvature(inner, point)
                decrement = float(point.gradient @ curvature.solve(point.gradient[:, None])[:, 0])
                excess = point.value - inner.at(best).value
                bound = _intercepts._gap_bound(decrement, point, curvature)
                assert excess <= bound * (1 + 1e-6) + 1e-12
                assert bound <= 2 * excess
                half_decrements_below += decrement / 2 < 0.999 * excess
        assert half_decrements_below > 5  # where Newton's own estimate would not have been a bound


class TestStandardErrors:
    def test_labels_drawn_at_random_use_the_inverse_hessian(self):
        problem = small_problem(7, samples=400)
        found = estimate_label_prior(problem.logits, problem.labels, problem.log_pi, shrinkage=0)
        expected = dense_covariance(problem, found.log_prob).diagonal().sqrt()
        torch.testing.assert_close(found.standard_errors, expected, rtol=1e-4, atol=0)

    def test_fixed_counts_take_off_their_share(self):
        logits, labels = World(6, seed=8).balanced(30)
        problem = Small(logits.double(), labels, torch.full((6,), -np.log(6.0)))
        found = estimate_label_prior(problem.logits, labels, shrinkage=0)
        jacobian = torch.eye(6, dtype=torch.float64) - found.prob
        expected = dense_covariance(problem, found.log_prob) - jacobian @ jacobian.T / 30
        torch.testing.assert_close(found.standard_errors, expected.diagonal().sqrt(), rtol=1e-4, atol=0)

    def test_shrunken_errors_are_posterior_deviations_for_random_labels(self):
        problem = small_problem(9, samples=300)
        found = estimate_label_prior(problem.logits, problem.labels, problem.log_pi, shrinkage=4.0)
        expected = dense_covariance(problem, found.log_prob, 4.0).diagonal().sqrt()
        torch.testing.assert_close(found.standard_errors, expected, rtol=1e-4, atol=0)

    def test_shrunken_errors_are_mean_squared_errors_for_fixed_counts(self, monkeypatch):
        """Written out densely: A V A + spread (I - A)^2 with A = (H + strength)^-1 H."""
        monkeypatch.setattr(_intercepts, "_BLOCK", 2)
        logits, labels = World(5, seed=10).balanced(25)
        problem = Small(logits.double(), labels, torch.full((5,), -np.log(5.0)))
        found = estimate_label_prior(problem.logits, labels, shrinkage=3.0)
        share = (problem.logits - found.log_prob + problem.log_pi).softmax(1)
        counts = share.sum(0)
        hessian = torch.diag(counts) - share.T @ share
        centre = torch.eye(5, dtype=torch.float64) - 1 / 5
        spread = float((share.square().sum(0) / counts).mean()) / 3.0
        shrink = torch.linalg.pinv(hessian + 3.0 * centre, hermitian=True) @ hessian
        sampling = torch.linalg.pinv(hessian, hermitian=True) - centre @ torch.diag(1 / counts) @ centre
        total = shrink @ sampling @ shrink.T + spread * (centre - shrink) @ (centre - shrink).T
        jacobian = torch.eye(5, dtype=torch.float64) - found.prob
        expected = (jacobian @ total @ jacobian.T).diagonal().sqrt()
        torch.testing.assert_close(found.standard_errors, expected, rtol=1e-4, atol=0)

    def test_can_be_left_out(self):
        logits, labels = World(12, seed=11).balanced(10)
        full = estimate_label_prior(logits, labels)
        bare = estimate_label_prior(logits, labels, standard_errors=False)
        assert bare.standard_errors is None
        torch.testing.assert_close(bare.log_prob, full.log_prob, atol=1e-4, rtol=0)
        assert bare.optimality_gap < 1e-8

    @pytest.mark.parametrize("shrinkage", [0.0, 1.5])
    def test_probes_stand_in_for_a_hessian_that_is_too_large(self, monkeypatch, shrinkage):
        logits, labels = World(200, seed=12).balanced(10)
        exact = estimate_label_prior(logits, labels, shrinkage=shrinkage)
        monkeypatch.setattr(_intercepts, "DENSE_BYTES", 0)
        probed = estimate_label_prior(logits, labels, shrinkage=shrinkage)
        torch.testing.assert_close(probed.log_prob, exact.log_prob, atol=2e-3, rtol=0)
        ratio = probed.standard_errors / exact.standard_errors
        assert abs(float(ratio.mean()) - 1) < 0.02
        assert float(ratio.std()) < 0.12
        assert probed.optimality_gap < 1e-8


def coverage(estimates: list[LabelPrior], truth: list[torch.Tensor]) -> float:
    """The share of classes whose true log-probability is within 1.96 standard errors."""
    inside = [
        ((found.log_prob - true).abs() < 1.96 * found.standard_errors).double()
        for found, true in zip(estimates, truth, strict=True)
    ]
    return float(torch.stack(inside).mean())


class TestRecovery:
    """Nominal 95 % intervals hold the truth in 95 % of 4,000 cases; the binomial error is 0.4 %, taken threefold."""

    @pytest.mark.parametrize("shrinkage", [0, "auto"])
    def test_balanced_sets(self, shrinkage):
        estimates, truth = [], []
        for seed in range(200):
            world = World(20, seed=seed, radius=3)
            estimates.append(estimate_label_prior(*world.balanced(25), shrinkage=shrinkage))
            truth.append(world.truth)
        assert coverage(estimates, truth) == pytest.approx(0.95, abs=0.0125)

    def test_labels_drawn_at_random(self):
        world = World(20, seed=1000, radius=3)
        uniform = torch.full((20,), 0.05)
        estimates = [
            estimate_label_prior(*world.drawn(uniform, 600), LabelPrior.uniform(20), shrinkage=0)
            for _ in range(200)
        ]
        assert coverage(estimates, [world.truth] * 200) == pytest.approx(0.95, abs=0.0125)

    def test_the_long_tailed_training_set_serves_with_its_prior(self):
        estimates, truth = [], []
        counts = torch.tensor([400, 200, 100, 50, 25] * 4)
        labels = torch.arange(20).repeat_interleave(counts)
        for seed in range(100):
            world = World(20, seed=2000 + seed, radius=3)
            source = LabelPrior.from_counts(counts)
            estimates.append(estimate_label_prior(world.logits(labels), labels, source, shrinkage=0))
            truth.append(world.truth)
        assert coverage(estimates, truth) == pytest.approx(0.95, abs=0.0175)

    def test_the_prior_of_the_very_samples_is_more_precise(self):
        """Labels drawn at random, told as drawn or as they are: the second takes off their fluctuations."""
        world = World(20, seed=3000, radius=2)
        uniform = torch.full((20,), 0.05)
        errors = {"drawn": [], "as they are": []}
        for _ in range(30):
            logits, labels = world.drawn(uniform, 800)
            empirical = LabelPrior.from_counts(torch.bincount(labels, minlength=20))
            for name, prior in (("drawn", LabelPrior.uniform(20)), ("as they are", empirical)):
                found = estimate_label_prior(logits, labels, prior, shrinkage=0)
                errors[name].append(float((found.log_prob - world.truth).square().mean()))
        assert np.mean(errors["as they are"]) < 0.75 * np.mean(errors["drawn"])


class TestShrinkage:
    def test_better_on_held_out_samples_at_a_thousand_classes(self):
        world = World(1000, seed=20, radius=4.8, dim=48)
        logits, labels = world.balanced(20)
        held_out = world.balanced(20)

        def excess(log_prob: torch.Tensor) -> float:
            return float(cross_entropy(held_out[0] - log_prob, held_out[1]))

        best = excess(world.truth)
        plain = estimate_label_prior(logits, labels, shrinkage=0)
        shrunken = estimate_label_prior(logits, labels)
        assert 0.008 < excess(plain.log_prob) - best < 0.03
        assert excess(shrunken.log_prob) - best < 0.92 * (excess(plain.log_prob) - best)
        correlations = [float(np.corrcoef(p.log_prob, world.truth)[0, 1]) for p in (plain, shrunken)]
        assert correlations[1] > correlations[0]
        assert (
            float(((shrunken.log_prob - world.truth).abs() < 1.96 * shrunken.standard_errors).double().mean())
            > 0.94
        )

    @pytest.mark.parametrize("each", [3, 20])
    def test_close_to_the_best_fixed_strength(self, each):
        world = World(100, seed=21, radius=3)
        logits, labels = world.balanced(each)
        held_out = world.balanced(200)

        def loss(prior: LabelPrior) -> float:
            return float(cross_entropy(held_out[0] - prior.log_prob, held_out[1]))

        grid = [
            loss(estimate_label_prior(logits, labels, shrinkage=s, standard_errors=False))
            for s in (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
        ]
        assert loss(estimate_label_prior(logits, labels)) < min(grid) + 0.1 * (grid[0] - min(grid)) + 1e-3

    @pytest.mark.parametrize("fixed", [True, False])
    @pytest.mark.parametrize("spread", [0.3, 1.0])
    def test_the_spread_of_the_truth_is_found(self, spread, fixed):
        found = []
        for seed in range(20):
            world = World(60, seed=seed, spread=spread, radius=3)
            logits, labels = world.balanced(20) if fixed else world.drawn(torch.full((60,), 1 / 60), 1200)
            passes = _passes.SoftmaxPasses(logits, labels)
            problem = _intercepts.InterceptObjective(
                passes, torch.full((60,), -np.log(60.0)), strength=1 / spread**2
            )
            point = _intercepts.quasi_newton(problem, torch.zeros(60, dtype=torch.float64), 1e-9)
            found.append(_intercepts.spread_of(_intercepts.Curvature(problem, point), fixed))
        error = np.std(found) / np.sqrt(len(found))
        assert abs(np.mean(found) - spread**2) < 3 * error + 0.03 * spread**2

    def test_without_any_spread_the_estimate_is_almost_uniform(self):
        world = World(100, seed=22, spread=0.0, radius=2)
        found = estimate_label_prior(*world.balanced(20))
        assert found.shrinkage > 20
        assert float(found.log_prob.std()) < 0.1

    def test_a_class_never_seen_stays_finite(self):
        logits, labels = World(10, seed=23).balanced(20)
        kept = (labels != 4) & (labels != 7)
        with pytest.raises(InputError, match=r"no sample of classes 4, 7.*infinite; use shrinkage='auto'"):
            estimate_label_prior(logits[kept], labels[kept], shrinkage=0)
        found = estimate_label_prior(logits[kept], labels[kept], LabelPrior.from_counts([20] * 10))
        assert float(found.log_prob.abs().max()) < 20
        assert float(found.standard_errors[[4, 7]].min()) > 0.1

    def test_plenty_of_samples_outweigh_it(self):
        logits, labels = World(5, seed=24, radius=2).balanced(5000)
        plain = estimate_label_prior(logits, labels, shrinkage=0)
        torch.testing.assert_close(
            estimate_label_prior(logits, labels).log_prob, plain.log_prob, atol=5e-3, rtol=0
        )


class TestTemperature:
    def test_a_given_temperature_divides(self):
        logits, labels = World(8, seed=30).balanced(20)
        found = estimate_label_prior(logits, labels, temperature=2.0)
        divided = estimate_label_prior(logits / 2, labels)
        torch.testing.assert_close(found.log_prob, divided.log_prob, atol=1e-5, rtol=0)
        assert (found.temperature, divided.temperature) == (2.0, 1.0)

    @pytest.mark.parametrize("temperature", [0.01, 0.4, 1.0, 3.0, 100.0])
    @pytest.mark.parametrize("shrinkage", [0, "auto"])
    def test_fitted_temperature_undoes_a_scale(self, temperature, shrinkage):
        world = World(20, seed=31, radius=3)
        logits, labels = world.balanced(100)
        found = estimate_label_prior(temperature * logits, labels, temperature="fit", shrinkage=shrinkage)
        assert found.temperature == pytest.approx(temperature, rel=0.15)
        assert float((found.log_prob - world.truth).abs().max()) < 1

    @pytest.mark.parametrize("strength", [0.0, 2.0])
    def test_joint_optimum_agrees_with_scipy(self, strength):
        logits, labels = World(5, seed=32, radius=2).balanced(60)
        problem = Small(2 * logits.double(), labels, torch.full((5,), -np.log(5.0)))

        def value(x: np.ndarray) -> float:
            return float(objective(problem, torch.from_numpy(x[1:]), strength, float(np.exp(x[0]))))

        best = optimize.minimize(value, np.zeros(6), method="BFGS", options={"gtol": 1e-6})
        found = estimate_label_prior(problem.logits, labels, temperature="fit", shrinkage=strength)
        assert found.temperature == pytest.approx(np.exp(best.x[0]), rel=1e-3)
        expected = torch.from_numpy(best.x[1:]).log_softmax(0)
        torch.testing.assert_close(found.log_prob, expected, atol=2e-3, rtol=0)
        excess = (value(np.r_[np.log(found.temperature), found.log_prob]) - best.fun) / 300
        assert excess < 1e-8

    def test_its_uncertainty_widens_the_errors(self):
        logits, labels = World(5, seed=33, radius=2).balanced(30)
        fitted = estimate_label_prior(logits, labels, temperature="fit", shrinkage=1.0)
        fixed = estimate_label_prior(logits, labels, temperature=fitted.temperature, shrinkage=1.0)
        torch.testing.assert_close(fitted.log_prob, fixed.log_prob, atol=1e-3, rtol=0)
        assert bool((fitted.standard_errors > fixed.standard_errors).all())

    def test_coverage_with_a_fitted_temperature(self):
        estimates, truth = [], []
        for seed in range(100):
            world = World(20, seed=4000 + seed, radius=3)
            logits, labels = world.balanced(25)
            estimates.append(estimate_label_prior(3 * logits, labels, temperature="fit"))
            truth.append(world.truth)
        assert coverage(estimates, truth) == pytest.approx(0.95, abs=0.0175)

    def test_logits_against_the_labels_are_refused(self):
        logits, labels = World(5, seed=34).balanced(20)
        with pytest.raises(InputError, match="no temperature fits"):
            estimate_label_prior(-logits, labels, temperature="fit")


class TestStreaming:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ">f4"])
    def test_memory_maps_are_read_in_chunks(self, tmp_path, monkeypatch, dtype):
        logits, labels = World(30, seed=40).balanced(20)
        array = logits.numpy().astype(dtype)
        np.save(tmp_path / "logits.npy", array)
        in_memory = estimate_label_prior(array.astype("f8").copy(), labels)
        monkeypatch.setattr(_passes, "CACHE_BYTES", 0)
        monkeypatch.setattr(_passes, "_CPU_BUDGET", 30 * 7)
        mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
        found = estimate_label_prior(mapped, labels)
        torch.testing.assert_close(found.log_prob, in_memory.log_prob, atol=2e-5, rtol=0)
        torch.testing.assert_close(found.standard_errors, in_memory.standard_errors, atol=0, rtol=1e-3)

    def test_anything_that_slices_by_rows(self):
        class Dataset:
            def __init__(self, array: np.ndarray) -> None:
                self.array, self.shape, self.dtype = array, array.shape, array.dtype
                self.largest = 0

            def __getitem__(self, rows: slice) -> np.ndarray:
                self.largest = max(self.largest, len(range(*rows.indices(self.shape[0]))))
                return self.array[rows]

        logits, labels = World(1000, seed=41).balanced(2)
        dataset = Dataset(logits.numpy())
        found = estimate_label_prior(dataset, labels, standard_errors=False)
        expected = estimate_label_prior(logits, labels, standard_errors=False)
        torch.testing.assert_close(found.log_prob, expected.log_prob)
        assert dataset.largest < 300

    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("classes", [7, 300])
    def test_every_pass_against_dense_algebra(self, monkeypatch, keep, classes):
        generator = torch.Generator().manual_seed(42)
        logits = 5 * torch.randn(150, classes, generator=generator, dtype=torch.float64)
        offset = torch.randn(classes, generator=generator, dtype=torch.float64)
        vectors = torch.randn(classes, 3, generator=generator, dtype=torch.float64)
        monkeypatch.setattr(_passes, "_CPU_BUDGET", classes * 40)
        monkeypatch.setattr(_passes, "_PRODUCT_BUDGET", classes * 70)
        passes = _passes.SoftmaxPasses(logits, cache_bytes=1 << 30 if keep else 0)
        for shift, scale in ((0.0, 1.0), (30.0, 1.0), (30.0, 0.5)):
            here = offset + shift * torch.eye(classes)[0]
            scores = scale * logits + here
            share = scores.softmax(1)
            found = passes.evaluate(here, scale)
            assert found.log_partition == pytest.approx(float(scores.logsumexp(1).sum()))
            torch.testing.assert_close(found.expected, share.sum(0))
            gram = share.T @ share
            torch.testing.assert_close(passes.gram(here, scale), gram)
            torch.testing.assert_close(passes.gram_diagonal(here, scale), gram.diagonal())
            torch.testing.assert_close(passes.product(here, vectors, scale), gram @ vectors)
            moments = passes.slope(here, scale)
            mean = (share * logits).sum(1, keepdim=True)
            assert moments.mean == pytest.approx(float(mean.sum()))
            torch.testing.assert_close(moments.covariance, (share * (logits - mean)).sum(0))
            assert moments.variance == pytest.approx(float((share * (logits - mean) ** 2).sum()))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_large_hessian_is_kept_in_float32(self, monkeypatch, dtype):
        logits, labels = World(40, seed=46).balanced(10)
        exact = estimate_label_prior(logits.double(), labels)
        monkeypatch.setattr(_intercepts, "_FLOAT64_CLASSES", 0)
        found = estimate_label_prior(logits.to(dtype), labels)
        torch.testing.assert_close(found.log_prob, exact.log_prob, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.standard_errors, exact.standard_errors, atol=0, rtol=1e-4)

    @pytest.mark.parametrize("strength", [0.0, 0.7])
    def test_hessian_against_dense_algebra(self, monkeypatch, strength):
        monkeypatch.setattr(_intercepts, "_BLOCK", 5)
        problem = small_problem(43, classes=12, samples=200)
        inner = _intercepts.InterceptObjective(
            _passes.SoftmaxPasses(problem.logits, problem.labels), problem.log_pi, strength=strength
        )
        point = inner.at(torch.randn(12, generator=torch.Generator().manual_seed(44), dtype=torch.float64))
        share = (problem.logits + problem.log_pi - point.b).softmax(1)
        centre = torch.eye(12, dtype=torch.float64) - 1 / 12
        hessian = torch.diag(share.sum(0)) - share.T @ share + strength * centre
        inverse = torch.linalg.pinv(hessian, hermitian=True)
        vectors = centre @ torch.randn(
            12, 4, generator=torch.Generator().manual_seed(45), dtype=torch.float64
        )
        dense, operator = (kind(inner, point) for kind in (_intercepts.DenseCurvature, _intercepts.Curvature))
        torch.testing.assert_close(dense.inverse, inverse)
        torch.testing.assert_close(operator.multiply(vectors), hessian @ vectors)
        torch.testing.assert_close(operator.solve(vectors, 1e-10), inverse @ vectors)
        torch.testing.assert_close(dense.solve(vectors), inverse @ vectors)
        torch.testing.assert_close(dense.self_share, operator.self_share)


class TestContract:
    @pytest.fixture
    def data(self):
        return World(12, seed=50).balanced(15)

    @pytest.mark.parametrize("shrinkage", [0, "auto"])
    def test_adding_to_a_samples_logits_changes_nothing(self, data, shrinkage):
        logits, labels = data
        shift = 5 * torch.randn(len(logits), 1, generator=torch.Generator().manual_seed(51))
        expected = estimate_label_prior(logits, labels, shrinkage=shrinkage)
        found = estimate_label_prior(logits + shift, labels, shrinkage=shrinkage)
        torch.testing.assert_close(found.log_prob, expected.log_prob, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("shrinkage", [0, "auto"])
    def test_adding_to_a_classs_logits_moves_its_prior_only(self, data, shrinkage):
        """Plainly: what is believed more is estimated more; exactly so without shrinkage."""
        logits, labels = data
        shift = torch.randn(12, generator=torch.Generator().manual_seed(52), dtype=torch.float64)
        expected = (estimate_label_prior(logits, labels, shrinkage=0).log_prob + shift).log_softmax(0)
        found = estimate_label_prior(logits + shift, labels, shrinkage=shrinkage).log_prob
        torch.testing.assert_close(found, expected, atol=1e-4 if shrinkage == 0 else 1.0, rtol=0)

    @pytest.mark.parametrize("shrinkage", [0, "auto"])
    def test_classes_and_samples_permute(self, data, shrinkage):
        logits, labels = data
        classes = torch.randperm(12, generator=torch.Generator().manual_seed(53))
        samples = torch.randperm(len(labels), generator=torch.Generator().manual_seed(54))
        expected = estimate_label_prior(logits, labels, shrinkage=shrinkage)
        permuted = logits[samples][:, classes]
        found = estimate_label_prior(permuted, classes.argsort()[labels[samples]], shrinkage=shrinkage)
        torch.testing.assert_close(found.log_prob, expected.log_prob[classes], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            found.standard_errors, expected.standard_errors[classes], atol=1e-5, rtol=0
        )

    def test_leading_dimensions_are_samples(self, data):
        logits, labels = data
        expected = estimate_label_prior(logits, labels)
        found = estimate_label_prior(logits.reshape(4, 5, 9, 12), labels.reshape(4, 5, 9))
        assert torch.equal(found.log_prob, expected.log_prob)

    @pytest.mark.parametrize(
        ("convert", "tolerance"),
        [
            (lambda x: x.numpy(), 1e-6),
            (lambda x: x.tolist(), 1e-5),
            (lambda x: x.double(), 1e-5),
            (lambda x: x.bfloat16(), 0.1),
            (lambda x: x.half(), 1e-2),
            (lambda x: x.requires_grad_(), 1e-6),
            (lambda x: x.T.contiguous().T, 1e-5),
        ],
    )
    def test_kinds_and_dtypes(self, data, convert, tolerance):
        logits, labels = data
        expected = estimate_label_prior(logits, labels)
        found = estimate_label_prior(convert(logits.clone()), labels.numpy())
        torch.testing.assert_close(found.log_prob, expected.log_prob, atol=tolerance, rtol=0)
        assert found.log_prob.dtype == torch.float64
        assert not found.log_prob.requires_grad

    def test_the_inputs_are_not_changed(self, data):
        logits, labels = data
        before = logits.clone(), labels.clone()
        estimate_label_prior(logits, labels, temperature="fit")
        assert torch.equal(logits, before[0])
        assert torch.equal(labels, before[1])

    def test_the_same_twice(self, data):
        first, second = estimate_label_prior(*data), estimate_label_prior(*data)
        assert torch.equal(first.log_prob, second.log_prob)
        assert torch.equal(first.standard_errors, second.standard_errors)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f, y: (f[:, :1], y), r"expected \(\.\.\., C\) with at least 2 classes"),
            (lambda f, y: (f.long(), y), "expected floating point"),
            (lambda f, y: (f, y[:-1]), r"labels has shape \(179,\); expected \(180,\)"),
            (lambda f, y: (f, y + 1), "expected values from 0 to 11"),
            (lambda f, y: (f, y.float()), "expected integers"),
            (lambda f, y: (f[:0], y[:0]), "hold no sample"),
            (lambda f, y: (f.index_fill(0, torch.tensor(7), float("nan")), y), "nan for sample 7, class 0"),
            (
                lambda f, y: (f - torch.inf * (f == f[100, 3]), y),
                "nan for sample|-inf for sample 100, class 3",
            ),
        ],
    )
    def test_bad_values_are_refused(self, data, change, message):
        with pytest.raises(InputError, match=message):
            estimate_label_prior(*change(*data))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"shrinkage": -1.0}, "shrinkage is -1.0"),
            ({"shrinkage": "none"}, "expected 'auto' or a number"),
            ({"temperature": 0.0}, "temperature is 0.0"),
            ({"temperature": "auto"}, "expected None, 'fit' or a positive number"),
            ({"sample_prior": [0.5] * 12}, "sample_prior: log-probabilities expected"),
            ({"sample_prior": LabelPrior.uniform(3)}, "sample_prior: 3 classes, but 12 are expected"),
        ],
    )
    def test_bad_options_are_refused(self, data, options, message):
        with pytest.raises(InputError, match=message):
            estimate_label_prior(*data, **options)

    def test_a_forgotten_sample_prior_is_noticed(self, data):
        counts = [500, 200, 60, 20, 10, 10, 10, 5, 5, 5, 5, 5]
        labels = torch.arange(12).repeat_interleave(torch.tensor(counts))
        logits = World(12, seed=55).logits(labels)
        with pytest.warns(UserWarning, match=r"sample_prior \(uniform by default\)"):
            estimate_label_prior(logits, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            estimate_label_prior(logits, labels, LabelPrior.from_counts(counts))
            estimate_label_prior(*data)

    @settings(max_examples=60, deadline=None)
    @given(
        classes=st.integers(2, 6),
        samples=st.integers(1, 15),
        size=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
        seed=st.integers(0, 10_000),
    )
    def test_always_finite(self, classes, samples, size, seed):
        generator = torch.Generator().manual_seed(seed)
        logits = size * torch.randn(samples, classes, generator=generator)
        labels = torch.randint(0, classes, (samples,), generator=generator)
        found = estimate_label_prior(logits, labels)
        assert bool(torch.isfinite(found.log_prob).all())
        assert bool(torch.isfinite(found.standard_errors).all())
        assert found.optimality_gap < 1e-4
