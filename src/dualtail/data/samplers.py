"""Which training image comes when: pure functions of (seed, epoch)."""

from __future__ import annotations

import numpy as np

from dualtail.errors import InputError, check_choice

SAMPLINGS = ("instance", "class_balanced", "square_root", "progressive")


def sampled_counts(sampling: str, counts: np.ndarray, epoch: int = 0, epochs: int = 1) -> np.ndarray:
    """Return what a class's draws of one epoch are proportional to, float64 ``(C,)``.

    ``n_j ** q`` with q = 1 (``"instance"``: the counts themselves), 0 (``"class_balanced"``) or 1/2
    (``"square_root"``). ``"progressive"`` is ``(1 - t) n_j / N + t / C`` with ``t = epoch / epochs``, ``N`` images and
    ``C`` classes that have some: the first epoch is as in the data, and even the last is not quite balanced. A class
    without an image is never drawn.

    Args:
        sampling: one of ``SAMPLINGS``.
        counts: images of each class, ``(C,)``.
        epoch: which epoch, from 0.
        epochs: how many there are.

    Raises:
        InputError: an unknown sampling, or no image at all.

    Source:
        Kang et al., Decoupling representation and classifier, ICLR 2020 (arXiv 1910.09217).

    Example:
        >>> sampled_counts("square_root", np.array([81, 9])).tolist()
        [9.0, 3.0]
        >>> sampled_counts("progressive", np.array([90, 10]), epoch=1, epochs=2).round(3).tolist()
        [0.7, 0.3]
    """
    check_choice("sampling", sampling, SAMPLINGS)
    counts = np.array(counts, dtype=np.float64)
    if not counts.sum() > 0:
        raise InputError("no class has an image to draw")
    if sampling == "instance":
        return counts
    if sampling == "square_root":
        return np.sqrt(counts)
    present = (counts > 0).astype(np.float64)
    if sampling == "class_balanced":
        return present
    progress = epoch / epochs
    return (1 - progress) * (counts / counts.sum()) + progress * (present / present.sum())


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
        sampling: one of ``SAMPLINGS``.
        seed: of the whole training.
        epoch: which epoch, from 0.
        epochs: how many there are; see ``sampled_counts``.

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
    prob = sampled_counts(sampling, counts, epoch, epochs)
    prob /= prob.sum()
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
