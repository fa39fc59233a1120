"""How fast the kNN check is beside the one-hot scatter of self-supervised research code, on the same features.

    python benchmarks/neighbors.py                      # bank 115,846 x 768, 50,000 queries, C = 1,000, k = 200
    python benchmarks/neighbors.py --queries 5000       # a tenth of the queries

The peer is written anew after the kNN classifier of InstDisc (Wu et al. 2018), as DINO and others carry it on: chunks
of 500 queries, each with a product in float32, ``topk``, a one-hot array (500 k, C), its product with the weights and
a sum, and a full sort of the classes. It gets features of length 1, as it expects; ours normalises its own.
Bank and queries are sorted by class, as folders of images are.

Rounds alternate, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualtail.logits.neighbors import knn_predict


class Stages:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


class PeakMemory:
    """The most resident memory beyond that at the start, sampled every 5 ms."""

    def __enter__(self) -> PeakMemory:
        self._first, self.bytes, self._stop = self._resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self._resident() - self._first)

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def one_hot_scatter(
    bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float, stage: Stages
) -> Tensor:
    """Predict as the research code does."""
    bank, chunk, predicted = bank.t(), 500, []
    one_hot = torch.zeros(k, classes)
    for part in queries.split(chunk):
        n = len(part)
        with stage("float32 product"):
            similarity = torch.mm(part, bank)
        with stage("topk of the whole bank"):
            distance, place = similarity.topk(k, largest=True, sorted=True)
        with stage("one-hot scatter, product, sum"):
            found = torch.gather(labels.view(1, -1).expand(n, -1), 1, place)
            one_hot.resize_(n * k, classes).zero_()
            one_hot.scatter_(1, found.view(-1, 1), 1)
            weight = distance.clone().div_(temperature).exp_()
            votes = torch.sum(torch.mul(one_hot.view(n, -1, classes), weight.view(n, -1, 1)), 1)
        with stage("sort of the classes"):
            _, order = votes.sort(1, True)
        predicted.append(order[:, 0])
    return torch.cat(predicted)


def make_features(bank: int, queries: int, dim: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a long-tailed bank sorted by class and queries of every class, each around the class's direction."""
    generator = torch.Generator().manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    shares = torch.from_numpy(np.geomspace(1280, 5, classes))
    labels = torch.multinomial(shares, bank, replacement=True, generator=generator).sort().values

    def around(label: Tensor) -> Tensor:
        features = torch.randn(len(label), dim, generator=generator).mul_(0.75 / dim**0.5).add_(means[label])
        return features.div_(torch.linalg.vector_norm(features, dim=1, keepdim=True))

    return around(labels), labels, around(torch.arange(queries) * classes // queries)


def timed(function: Callable[[], Tensor]) -> tuple[Tensor, float, float, float]:
    """Return the result, seconds by the clock, seconds of processor time and peak memory in GB."""
    with PeakMemory() as memory:
        clock, processor = time.perf_counter(), time.process_time()
        result = function()
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return result, clock, processor, memory.bytes / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bank", type=int, default=115_846)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--alone", action="store_true", help="without the peer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bank, labels, queries = make_features(options.bank, options.queries, options.dim, options.classes)
    theirs = Stages()
    figures: dict[str, list[tuple[float, float, float]]] = {"ours": [], "one-hot scatter": []}
    same = 0
    for part in (queries[start :: options.rounds] for start in range(options.rounds)):
        mine, *measured = timed(lambda part=part: knn_predict(bank, labels, part, options.classes, options.k))
        figures["ours"].append(tuple(measured))
        if not options.alone:
            peer, *measured = timed(
                lambda part=part: one_hot_scatter(bank, labels, part, options.classes, options.k, 0.1, theirs)
            )
            figures["one-hot scatter"].append(tuple(measured))
            same += int((mine == peer).sum())
    report: dict[str, object] = {"threads": options.threads}
    for name, rounds in figures.items():
        if rounds:
            clock, processor, memory = (list(column) for column in zip(*rounds, strict=True))
            report[name] = {
                "seconds": round(sum(clock), 2),
                "processor seconds": round(sum(processor), 2),
                "peak GB beyond the inputs": round(max(memory), 2),
            }
    if not options.alone:
        report["one-hot scatter by stage"] = {
            stage: round(seconds, 2) for stage, seconds in theirs.seconds.items()
        }
        clock, processor = (
            sum(x[i] for x in figures["one-hot scatter"]) / sum(x[i] for x in figures["ours"]) for i in (0, 1)
        )
        report |= {"times faster": round(clock, 2), "times less processor time": round(processor, 2)}
        report["same prediction"] = same / len(queries)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
