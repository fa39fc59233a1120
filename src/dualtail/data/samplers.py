"""Which training image comes when: pure functions of (seed, epoch)."""

from __future__ import annotations

import numpy as np

from dualtail.errors import InputError, nearest

SAMPLINGS = ("instance", "class_balanced", "square_root", "progressive")


def sampling_prob(counts: np.ndarray, sampling: str, progress: float = 0.0) -> np.ndarray:
    """Return how often each class is drawn, ``(C,)`` summing to 1 (Kang et al., ICLR 2020, arXiv 1910.09217).

    ``p_j ~ n_j ** q`` with q = 1 (``"instance"``: as in the data), 0 (``"class_balanced"``) or 1/2
    (``"square_root"``); ``"progressive"`` is ``(1 - t) instance + t class_balanced`` with ``t`` the progress.
    A class without an image is never drawn.

    Example:
        >>> sampling_prob(np.array([90, 10]), "square_root").round(3).tolist()
        [0.75, 0.25]
        >>> sampling_prob(np.array([90, 10]), "progressive", progress=0.5).round(3).tolist()
        [0.7, 0.3]
    """
    if sampling not in SAMPLINGS:
        found = nearest(sampling, SAMPLINGS)
        raise InputError(
            f"there is no sampling {sampling!r}",
            fix=f"did you mean {found!r}?" if found else f"use one of {', '.join(SAMPLINGS)}",
        )
    counts = np.asarray(counts, dtype=np.float64)
    if not counts.sum() > 0:
        raise InputError("no class has an image to draw")
    instance = counts / counts.sum()
    balanced = (counts > 0) / np.count_nonzero(counts)
    if sampling == "instance":
        return instance
    if sampling == "class_balanced":
        return balanced
    if sampling == "square_root":
        return np.sqrt(counts) / np.sqrt(counts).sum()
    return (1 - progress) * instance + progress * balanced


def epoch_order(
    labels: np.ndarray,
    num_classes: int,
    sampling: str = "instance",
    *,
    seed: int,
    epoch: int,
    epochs: int = 1,
) -> np.ndarray:
    """Return the rows of one epoch in their order, int64 ``(N,)``.

    An epoch has as many draws as there are images. The number of draws of a class is its share of them, rounded
    up or down at random so that the shares hold on average; within a class, an image comes again only after all
    the others of its class came. Under ``"instance"`` every image comes exactly once.

    Args:
        labels: class of each image, ``(N,)``.
        num_classes: ``C``.
        sampling: one of `SAMPLINGS`.
        seed: of the whole training.
        epoch: which epoch, from 0.
        epochs: how many there are; ``"progressive"`` moves with ``t = epoch / epochs``.

    Example:
        >>> labels = np.array([0] * 8 + [1] * 2)
        >>> rows = epoch_order(labels, 2, "class_balanced", seed=0, epoch=0)
        >>> np.bincount(labels[rows]).tolist()
        [5, 5]
    """
    labels = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng([seed, epoch, 0x0DE5])
    if sampling == "instance":
        return rng.permutation(len(labels))
    counts = np.bincount(labels, minlength=num_classes)
    prob = sampling_prob(counts, sampling, epoch / epochs)
    # Systematic rounding: one random offset, so that each share is met within one draw.
    edges = np.floor(np.concatenate([[0.0], np.cumsum(prob)]) * len(labels) + rng.random())
    edges[-1] = edges[0] + len(labels)
    draws = np.diff(edges).astype(np.int64)
    by_class = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    rows = []
    for label in np.flatnonzero(draws):
        members = by_class[starts[label] : starts[label] + counts[label]]
        rounds = -(-draws[label] // len(members))
        rows.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[: draws[label]])
    return rng.permutation(np.concatenate(rows))
