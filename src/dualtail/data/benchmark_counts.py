"""What the benchmarks of long-tailed recognition must contain, and whether a copy does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dualtail.data.manifest import Manifest
from dualtail.data.problems import DataFaults, Problem


@dataclass(frozen=True)
class BenchmarkCounts:
    """Counts that a benchmark's authors state.

    Attributes:
        name: the benchmark.
        num_classes: number of classes.
        sizes: images of each split; a split that a copy may lack is only checked where it is there.
        largest: training images of the most frequent class, None if nobody states it.
        smallest: training images of the rarest class, None likewise.
    """

    name: str
    num_classes: int
    sizes: dict[str, int] = field(default_factory=dict)
    largest: int | None = None
    smallest: int | None = None


IMAGENET_LT = BenchmarkCounts(
    "ImageNet-LT", 1000, {"train": 115_846, "val": 20_000, "test": 50_000}, largest=1280, smallest=5
)
PLACES_LT = BenchmarkCounts(
    "Places-LT", 365, {"train": 62_500, "val": 7_300, "test": 36_500}, largest=4980, smallest=5
)
INATURALIST_2018 = BenchmarkCounts("iNaturalist 2018", 8142, {"train": 437_513, "test": 24_426})


def verified(manifest: Manifest, published: BenchmarkCounts) -> Manifest:
    """Return the manifest with a note that its counts are the published ones.

    Raises:
        DataFaults: they are not; every difference is named.
    """
    sizes = manifest.split_sizes
    counts = manifest.counts("train")
    expected = {
        "classes": (manifest.num_classes, published.num_classes),
        **{
            f"{split} images": (sizes.get(split, 0), size)
            for split, size in published.sizes.items()
            if split in sizes or split == "train"
        },
        "training images of the largest class": (int(counts.max()), published.largest),
        "training images of the smallest class": (int(counts.min()), published.smallest),
    }
    problems = [
        Problem(
            f"{present:,} {what} where {published.name} has {stated:,}",
            str(manifest.root),
            "get the official files, or set verify to false to take the data as they are",
        )
        for what, (present, stated) in expected.items()
        if stated is not None and present != stated
    ]
    if problems:
        raise DataFaults(problems)
    total = f"{int(np.sum(counts)):,} training images of {manifest.num_classes:,} classes"
    return manifest.with_note(f"{published.name}: {total}, as published")
