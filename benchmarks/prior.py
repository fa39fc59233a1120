"""The pre-training prior: processor time, optimality and memory, and what shrinkage gains on held-out samples.

The synthetic model is well specified and its prior known: Gaussian classes in clusters of ten that are confused
with each other (79 % balanced accuracy at best, like a good zero-shot ImageNet model), and logits
``log p(x | y) + log P_P(y)`` with normal ``log P_P``.

    OMP_NUM_THREADS=1 python benchmarks/prior.py speed [--steps 1000]   # against primal-dual SGD, C = 1000
    OMP_NUM_THREADS=2 python benchmarks/prior.py large                  # C = 8142, N = 24426
    OMP_NUM_THREADS=2 python benchmarks/prior.py shrinkage [--draws 10] # held-out loss, C = 1000, 20 a class
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dualtail.logits import prior as prior_module
from dualtail.logits._passes import SoftmaxPasses
from dualtail.logits.prior import LabelPrior, estimate_label_prior


class World:
    """Classes, a known pre-training prior, and balanced samples of them."""

    def __init__(self, classes: int, seed: int, dim: int = 48, radius: float = 4.8) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        clusters = torch.randn(classes // 10, dim, generator=self.generator)
        means = clusters[torch.arange(classes) % len(clusters)]
        means = means + 0.7 * torch.randn(classes, dim, generator=self.generator)
        self.means = radius * torch.nn.functional.normalize(means, dim=1)
        self.truth = torch.randn(classes, generator=self.generator, dtype=torch.float64).log_softmax(0)

    def balanced(self, each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(self.truth)).repeat(each)
        noise = torch.randn(len(labels), self.means.shape[1], generator=self.generator)
        logits = (self.means[labels] + noise) @ self.means.T
        # In place: the peak memory before the estimate is then that of the logits.
        logits += (self.truth - self.means.square().sum(1) / 2).float()
        return logits, labels


class PassCount:
    """Counts the passes that the estimates inside the ``with`` make."""

    def __enter__(self) -> PassCount:
        self.made: list[SoftmaxPasses] = []
        self._original = prior_module.SoftmaxPasses

        def remember(*arguments: Any) -> SoftmaxPasses:
            self.made.append(self._original(*arguments))
            return self.made[-1]

        prior_module.SoftmaxPasses = remember  # type: ignore[assignment, misc]
        return self

    def __exit__(self, *_: object) -> None:
        prior_module.SoftmaxPasses = self._original  # type: ignore[misc]

    @property
    def passes(self) -> int:
        return sum(passes.count for passes in self.made)


def primal_dual_sgd(logits: Tensor, labels: Tensor, steps: int, rate: float, dual_rate: float) -> Tensor:
    """GLA's solver (Zhu et al. 2023), written from its description: full-batch steps on the Lagrangian.

    ``min over q, max over l >= 0 and v of  CE(f - log q, y) - sum l q + v (sum q - 1)``; returns ``log q``.
    """
    classes = logits.shape[1]
    q = torch.full((classes,), 1 / classes, requires_grad=True)
    positive, total = torch.zeros(classes), torch.zeros(())
    for _ in range(steps):
        loss = cross_entropy(logits - q.log(), labels) - positive @ q + total * (q.sum() - 1)
        (gradient,) = torch.autograd.grad(loss, q)
        with torch.no_grad():
            q -= rate * gradient
            q.clamp_(min=1e-8)
            positive = (positive - dual_rate * q).clamp_(min=0)
            total += dual_rate * (q.sum() - 1)
    return q.detach().log()


def processor_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def loss_of(logits: Tensor, labels: Tensor, log_prior: Tensor) -> float:
    """Mean cross-entropy in float64, in chunks."""
    total = 0.0
    for rows in range(0, len(labels), 2000):
        scores = logits[rows : rows + 2000].double() - log_prior.double()
        total += float(cross_entropy(scores, labels[rows : rows + 2000], reduction="sum"))
    return total / len(labels)


ESTIMATES: dict[str, dict[str, Any]] = {
    "plain": {"shrinkage": 0, "standard_errors": False},
    "plain, errors": {"shrinkage": 0},
    "shrunken": {"standard_errors": False},
    "shrunken, errors": {},
}


def speed(steps: int, rounds: int, rates: tuple[float, float]) -> None:
    """Take turns, so that other work on the machine disturbs all alike."""
    world = World(1000, seed=0)
    logits, labels = world.balanced(20)
    held_out = world.balanced(50)
    best = loss_of(*held_out, world.truth)
    times: dict[str, list[float]] = {name: [] for name in (*ESTIMATES, "two passes")}
    priors: dict[str, LabelPrior] = {}
    counts = {}

    def one_round() -> None:
        for name, options in ESTIMATES.items():
            with PassCount() as count:
                taken, priors[name] = processor_seconds(
                    lambda options=options: estimate_label_prior(logits, labels, **options)
                )
            times[name].append(taken)
            counts[name] = count.passes
        taken, _ = processor_seconds(lambda: [logits.logsumexp(1) for _ in range(2)])
        times["two passes"].append(taken)

    for _ in range(rounds):
        one_round()
    sgd_time, log_q = processor_seconds(lambda: primal_dual_sgd(logits, labels, steps, *rates))
    for _ in range(rounds):
        one_round()
    print(
        f"N = {len(labels)}, C = 1000, median of {2 * rounds}; SGD: {steps} steps, sum of q {log_q.exp().sum():.2f}\n"
    )
    print("| estimate | processor s | passes | times faster | loss | gap | held-out excess |")
    print("|---|---|---|---|---|---|---|")
    rows = [("primal-dual SGD", sgd_time, "-", log_q.log_softmax(0), "-")]
    for name in ESTIMATES:
        found = priors[name]
        taken = statistics.median(times[name])
        rows.append((name, taken, str(counts[name]), found.log_prob, f"{found.optimality_gap:.0e}"))
    for name, taken, passes, log_prior, gap in rows:
        excess = loss_of(*held_out, log_prior) - best
        print(
            f"| {name} | {taken:.3f} | {passes} | {sgd_time / taken:.0f} | {loss_of(logits, labels, log_prior):.6f} "
            f"| {gap} | {excess:.5f} |"
        )
    print(f"\ntwo passes of logsumexp: {statistics.median(times['two passes']):.3f} s")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def large() -> None:
    world = World(8142, seed=0)
    logits, labels = world.balanced(3)
    size = logits.numel() * 4 / 2**20
    before = peak_megabytes()
    print(f"N = {len(labels)}, C = 8142: logits {size:.0f} MB\n")
    print("| estimate | wall s | processor s | passes | gap | MB beyond the logits | coverage of 95 % |")
    print("|---|---|---|---|---|---|---|")
    for name in ("plain", "shrunken", "shrunken, errors"):
        with PassCount() as count:
            start = time.perf_counter()
            taken, found = processor_seconds(
                lambda name=name: estimate_label_prior(logits, labels, **ESTIMATES[name])
            )
            wall = time.perf_counter() - start
        inside = "-"
        if found.standard_errors is not None:
            near = (found.log_prob - world.truth).abs() < 1.96 * found.standard_errors
            inside = f"{float(near.double().mean()):.3f}"
        print(
            f"| {name} | {wall:.1f} | {taken:.1f} | {count.passes} | {found.optimality_gap:.0e} "
            f"| {peak_megabytes() - before:.0f} | {inside} |",
            flush=True,
        )


def shrinkage(draws: int) -> None:
    print(
        f"C = 1000, 20 a class, {draws} draws, held-out loss beyond that of the true prior (nats), mean (s.e.)\n"
    )
    print("| estimate | held-out excess | correlation with log P_P | rms error | coverage of 95 % |")
    print("|---|---|---|---|---|")
    options: dict[str, dict[str, Any]] = {"plain": {"shrinkage": 0}, "shrunken": {}}
    options |= {f"ridge {s:g}": {"shrinkage": s} for s in (0.25, 0.5, 1.0, 2.0)}
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in options}
    strengths = []
    for seed in range(draws):
        world = World(1000, seed=100 + seed)
        sample, held_out = world.balanced(20), world.balanced(50)
        best = loss_of(*held_out, world.truth)
        for name, chosen in options.items():
            found = estimate_label_prior(*sample, **chosen)
            if name == "shrunken":
                strengths.append(found.shrinkage)
            error = found.log_prob - world.truth
            assert found.standard_errors is not None
            results[name].append(
                (
                    loss_of(*held_out, found.log_prob) - best,
                    float(np.corrcoef(found.log_prob, world.truth)[0, 1]),
                    float(error.square().mean().sqrt()),
                    float((error.abs() < 1.96 * found.standard_errors).double().mean()),
                )
            )
    for name, rows in results.items():
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0) / np.sqrt(draws)
        cells = " | ".join(f"{m:.4f} ({s:.4f})" for m, s in zip(mean, spread, strict=True))
        print(f"| {name} | {cells} |")
    ratio = [s[0] / p[0] for s, p in zip(results["shrunken"], results["plain"], strict=True)]
    print(
        f"\nshrunken over plain excess: {np.mean(ratio):.3f}, from {min(ratio):.3f} to {max(ratio):.3f}; "
        f"strength chosen: {min(strengths):.2f} to {max(strengths):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("speed", "large", "shrinkage"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument(
        "--rates", type=float, nargs=2, default=(1e-5, 1e-3), help="of q and of the multipliers"
    )
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.part == "speed":
        speed(arguments.steps, arguments.rounds, tuple(arguments.rates))
    elif arguments.part == "large":
        large()
    else:
        shrinkage(arguments.draws)


if __name__ == "__main__":
    main()
