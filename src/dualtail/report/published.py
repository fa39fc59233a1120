"""Figures that papers published for the benchmark data sets, to stand beside a run's own, marked as published.

A run is recognised by its classes and training images, which no other data set shares. Accuracies are fractions, of
ViT-B/16 unless said otherwise; "D" groups are those of the literature (more than 100, 20 to 100, fewer than 20).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dualtail.runs.results import Classes

_BACKDOOR = "Chen et al., ICML 2025"
_LIFT = "Shi et al., ICML 2024"
_OTHERS = "as reported by its authors"


@dataclass(frozen=True)
class Published:
    """A published row.

    Attributes:
        label: the method.
        source: who published the figure.
        overall: accuracy over all test images.
        d_many: accuracy of D-Many.
        d_medium: accuracy of D-Medium.
        d_few: accuracy of D-Few.
        epochs: of training.
        m: number of foundation models, where the row belongs to an ablation over it.
    """

    label: str
    source: str
    overall: float | None = None
    d_many: float | None = None
    d_medium: float | None = None
    d_few: float | None = None
    epochs: int | None = None
    m: int | None = None

    def to_row(self) -> dict[str, Any]:
        """Return a table's row, marked as published."""
        return {
            "label": f"{self.label}, {self.epochs} epochs" if self.epochs else self.label,
            "members": self.source,
            "m": self.m,
            "overall": self.overall,
            "d_many": self.d_many,
            "d_medium": self.d_medium,
            "d_few": self.d_few,
            "mark": "published",
        }


@dataclass(frozen=True)
class Benchmark:
    """A benchmark data set.

    Attributes:
        name: as it is known.
        classes: how many.
        train: training images.
        methods: published rows.
        ablation: published rows by the number of foundation models.
    """

    name: str
    classes: int
    train: int
    methods: tuple[Published, ...]
    ablation: tuple[Published, ...] = ()


BENCHMARKS = (
    Benchmark(
        "ImageNet-LT",
        1000,
        115_846,
        (
            Published("zero-shot CLIP", _LIFT, 0.683),
            Published("LiVT", _BACKDOOR, 0.609, 0.736, 0.564, 0.410, 100),
            Published("VL-LTR", _BACKDOOR, 0.772, 0.845, 0.746, 0.593, 100),
            Published("BALLAD", _BACKDOOR, 0.757, 0.791, 0.745, 0.698, 60),
            Published("Decoder", _BACKDOOR, 0.732, epochs=18),
            Published("GML", _BACKDOOR, 0.780, epochs=100),
            Published("LIFT", _BACKDOOR, 0.770, 0.802, 0.761, 0.715, 10),
            Published("LIFT, test-time ensembling", _LIFT, 0.783),
            Published("LIFT, ViT-L/14, test-time ensembling", _LIFT, 0.829),
            Published("backdoor adjustment, M = 3", _BACKDOOR, 0.7957, 0.8221, 0.7875, 0.7499, 10),
        ),
        (
            Published("CLIP", _BACKDOOR, None, 0.8025, 0.7605, 0.7153, m=1),
            Published("OpenCLIP", _BACKDOOR, None, 0.7994, 0.7617, 0.7170, m=1),
            Published("MetaCLIP", _BACKDOOR, None, 0.8045, 0.7706, 0.7264, m=1),
            Published("pair 1", _BACKDOOR, None, 0.8165, 0.7799, 0.7391, m=2),
            Published("pair 2", _BACKDOOR, None, 0.8186, 0.7826, 0.7433, m=2),
            Published("pair 3", _BACKDOOR, None, 0.8164, 0.7802, 0.7408, m=2),
            Published("all three", _BACKDOOR, 0.7957, 0.8221, 0.7875, 0.7499, m=3),
        ),
    ),
    Benchmark(
        "Places-LT",
        365,
        62_500,
        (
            Published("VL-LTR", _OTHERS, 0.501),
            Published("RAC", _OTHERS, 0.472),
            Published("LIFT", _LIFT, 0.515),
            Published("LIFT, test-time ensembling", _LIFT, 0.522),
            Published("LIFT, ViT-L/14, test-time ensembling", _LIFT, 0.537),
        ),
    ),
    Benchmark(
        "iNaturalist 2018",
        8142,
        437_513,
        (
            Published("LiVT", _OTHERS, 0.761),
            Published("VL-LTR", _OTHERS, 0.768),
            Published("RAC", _OTHERS, 0.802),
            Published("GML", _OTHERS, 0.821),
            Published("LIFT", _LIFT, 0.791),
            Published("LIFT, test-time ensembling", _LIFT, 0.804),
            Published("LIFT, ViT-L/14, test-time ensembling", _LIFT, 0.852),
        ),
    ),
    Benchmark(
        "CIFAR-100-LT, ratio 100", 100, 10_847, (Published("LIFT, test-time ensembling", _LIFT, 0.817),)
    ),
    Benchmark(
        "CIFAR-100-LT, ratio 50", 100, 12_608, (Published("LIFT, test-time ensembling", _LIFT, 0.831),)
    ),
    Benchmark(
        "CIFAR-100-LT, ratio 10", 100, 19_573, (Published("LIFT, test-time ensembling", _LIFT, 0.849),)
    ),
)


def find_benchmark(classes: Classes) -> Benchmark | None:
    """Return the benchmark whose numbers of classes and of training images a run has, or None.

    Where val was held out of train, the two together are the benchmark's training images.
    """
    train, val = (sum(classes.counts.get(split, [])) for split in ("train", "val"))
    return next(
        (b for b in BENCHMARKS if b.classes == len(classes) and b.train in (train, train + val)), None
    )


def published_marks(classes: Classes) -> dict[str, str]:
    """Return how a table calls its published rows."""
    benchmark = find_benchmark(classes)
    if benchmark is None:
        return {}
    whole = sum(classes.counts.get("train", [])) == benchmark.train
    trained = "" if whole else ", trained on all of train (here val is held out of it)"
    return {"published": f"published for {benchmark.name}{trained}"}
