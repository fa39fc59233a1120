"""Every subset of M members: one pass that shares partial sums, against stacking and averaging each subset anew.

    OMP_NUM_THREADS=1 python benchmarks/subsets.py [--members 5] [--samples 50000] [--classes 1000]

The peer is what one would write first: for each of the 2^M - 1 subsets, ``torch.stack`` its members, average,
and take the argmax. Both answer the predictions of all subsets from the same logits in memory, take turns in one
process, and are compared for equality. Times are of the processor, so that other work on the machine counts less;
memory is the growth of the process's peak beyond the logits, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dualtail.logits.backdoor import adjust_subsets, all_subsets, evaluate_subsets

Predictions = dict[tuple[int, ...], Tensor]


def stack_and_average(members: list[Tensor], rule: str) -> Predictions:
    """The peer."""
    answers = {}
    for subset in all_subsets(len(members)):
        scores = torch.stack([members[i] for i in subset])
        if rule == "probabilities":
            scores = scores.softmax(-1)
        answers[subset] = scores.mean(0).argmax(-1)
    return answers


def share_partial_sums(members: list[Tensor], rule: str) -> Predictions:
    """What dualtail does."""
    return adjust_subsets(members, rule=rule)


METHODS = (stack_and_average, share_partial_sums)
RULES = ("logits", "probabilities")


def make_members(count: int, samples: int, classes: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator)
    members = []
    for _ in range(count):
        logits = torch.randn(samples, classes, generator=generator).mul_(2)
        logits[torch.arange(samples), labels] += 4
        members.append(logits)
    return members, labels


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Return processor and wall-clock seconds."""
    processor, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - processor, time.perf_counter() - wall


def _grow(answer: multiprocessing.Queue, method: Callable, rule: str, size: tuple[int, int, int]) -> None:
    members, _ = make_members(*size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method(members, rule)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak_growth(method: Callable, rule: str, size: tuple[int, int, int]) -> float:
    """Return by how many MiB the peak memory of a fresh process grows."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_grow, args=(answer, method, rule, size))
    process.start()
    grown = answer.get()
    process.join()
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("members", 5), ("samples", 50_000), ("classes", 1000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    size = (asked.members, asked.samples, asked.classes)
    print(f"{len(all_subsets(asked.members))} subsets of {size}, torch {torch.__version__}", file=sys.stderr)
    # First, while this process is small: on Linux a child's peak starts at its parent's size.
    memory = {rule: [peak_growth(method, rule, size) for method in METHODS] for rule in RULES}
    members, labels = make_members(*size)
    print("| rule | stack and average | one pass | ratio (CPU) | ratio (wall) | memory beyond the logits |")
    print("|---|---|---|---|---|---|")
    for rule in RULES:
        peer, ours = (method(members, rule) for method in METHODS)
        same = statistics.mean(float((peer[s] == ours[s]).double().mean()) for s in peer)
        assert same > 0.9999, f"predictions agree on {same:.6f} only"
        del peer, ours
        rounds = [
            [seconds(partial(method, members, rule)) for method in METHODS] for _ in range(asked.rounds)
        ]
        (peer_cpu, peer_wall), (our_cpu, our_wall) = (
            [statistics.median(times[i][kind] for times in rounds) for kind in (0, 1)] for i in (0, 1)
        )
        print(
            f"| {rule} | {peer_cpu:.1f} s | {our_cpu:.1f} s | {peer_cpu / our_cpu:.1f} "
            f"| {peer_wall / our_wall:.1f} | {memory[rule][0]:.0f} MiB, {memory[rule][1]:.0f} MiB |"
        )
    cpu, wall = seconds(lambda: evaluate_subsets(members, labels))
    print(f"\nThe full evaluation of every subset (`evaluate_subsets`): {cpu:.1f} s CPU, {wall:.1f} s wall.")


if __name__ == "__main__":
    main()
