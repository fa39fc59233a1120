"""Make a balanced training set long-tailed, as the benchmarks of the field do."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from dualtail.data.manifest import Manifest
from dualtail.errors import DataError, InputError, check_choice

Profile = Literal["exponential", "pareto"]
PROFILES: tuple[str, ...] = ("exponential", "pareto")


def long_tail_counts(
    num_classes: int, largest: int, ratio: float, profile: Profile = "exponential", power: float = 6.0
) -> np.ndarray:
    """Return the class counts of a long tail, largest first.

    With ``i = 0 ... C-1`` and ``u = i / (C-1)``:

    - ``"exponential"``: ``n_i = largest * ratio ** -u`` (CIFAR-LT; Cui et al., CVPR 2019, arXiv 1901.05555).
    - ``"pareto"``: the quantiles of a Pareto distribution with shape ``power``,
      ``n_i ~ (1 - v_i) ** (-1 / power)``, shifted and scaled so that they run from ``largest`` to
      ``largest / ratio``. ImageNet-LT and Places-LT were drawn from a Pareto distribution with power 6 (Liu et
      al., CVPR 2019, arXiv 1904.05160); their own lists are the benchmark, this is only the shape.

    Args:
        num_classes: ``C``.
        largest: the count of the first class.
        ratio: the imbalance ratio, first count over last, at least 1.
        profile: one of ``PROFILES``.
        power: the shape of the Pareto distribution; smaller has a heavier tail.

    Returns:
        int64 ``(C,)``, not increasing, each at least 1; fractions are cut off, as in CIFAR-LT.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> long_tail_counts(5, 500, 100).tolist()
        [500, 158, 50, 15, 5]
        >>> long_tail_counts(5, 500, 100, "pareto").tolist()
        [500, 229, 120, 52, 5]
    """
    check_choice("profile", profile, PROFILES)
    if num_classes < 2 or largest < 1 or not 1 <= ratio < math.inf or not power > 0:
        raise InputError(
            f"no long tail of {num_classes} classes from {largest} with ratio {ratio} and power {power}",
            fix="give at least 2 classes and 1 image, a ratio of at least 1 and a power above 0",
        )
    position = np.arange(num_classes) / (num_classes - 1)
    if profile == "exponential":
        counts = largest * ratio**-position
    else:
        # Quantiles at the middle of C equal slices, the rarest (largest) first.
        quantiles = (np.arange(num_classes)[::-1] + 0.5) / num_classes
        shape = (1 - quantiles) ** (-1 / power)
        shape = (shape - shape[-1]) / (shape[0] - shape[-1])
        counts = largest / ratio + shape * (largest - largest / ratio)
    # The small addition keeps exact values, such as 500 / 100, from falling below themselves by rounding.
    return np.maximum(1, np.floor(counts + 1e-9)).astype(np.int64)


def subsample_long_tail(
    manifest: Manifest,
    ratio: float,
    profile: Profile = "exponential",
    seed: int = 0,
    *,
    largest: int | None = None,
    power: float = 6.0,
    class_order: Literal["given", "random"] = "given",
) -> Manifest:
    """Keep a seeded long-tailed part of ``train``; ``val`` and ``test`` stay as they are.

    A smaller ratio or another profile keeps, of every class, the first images of the same seeded order.

    Args:
        manifest: the data; its training set should be balanced, or at least rich enough.
        ratio: the imbalance ratio.
        profile: see ``long_tail_counts``.
        seed: of the choice of images and of a random class order.
        largest: count of the most frequent class; by default the most that every class could give.
        power: see ``long_tail_counts``.
        class_order: ``"given"``: the first class is the most frequent; ``"random"``: a seeded permutation.

    Raises:
        DataError: a class has fewer training images than its count asks for, or none.

    Example:
        >>> from pathlib import Path
        >>> paths = [f"{i}.png" for i in range(300)]
        >>> manifest = Manifest(Path("."), paths, np.repeat([0, 1, 2], 100), ["train"] * 300, ("a", "b", "c"))
        >>> subsample_long_tail(manifest, ratio=10).counts().tolist()
        [100, 31, 10]
    """
    if class_order not in ("given", "random"):
        raise InputError(f"unknown class_order {class_order!r}", fix="use given or random")
    available = manifest.counts("train")
    rng = np.random.default_rng([seed, 0x17])
    order = np.arange(manifest.num_classes)
    if class_order == "random":
        order = rng.permutation(order)
    most = int(available.min()) if largest is None else largest
    if most < 1:
        empty = manifest.class_names[int(available.argmin())]
        raise DataError("no training image", where=f"class {empty!r}", fix="add some or remove the class")
    counts = np.empty(manifest.num_classes, dtype=np.int64)
    counts[order] = long_tail_counts(manifest.num_classes, most, ratio, profile, power)
    for label in np.flatnonzero(counts > available)[:1]:
        raise DataError(
            f"the long tail asks for {counts[label]} training images and there are {available[label]}",
            where=f"class {manifest.class_names[label]!r}",
            fix="choose a smaller `largest`",
        )
    keep = manifest.splits != "train"
    for label in range(manifest.num_classes):
        rows = np.flatnonzero((manifest.labels == label) & (manifest.splits == "train"))
        keep[rng.permutation(rows)[: counts[label]]] = True
    note = (
        f"train: long tail of {counts.sum()} of {available.sum()} images, {profile} profile, imbalance ratio "
        f"{counts.max() / counts.min():g} ({counts.max()} to {counts.min()} a class), seed {seed}"
    )
    return manifest.select(np.flatnonzero(keep)).with_note(note)
