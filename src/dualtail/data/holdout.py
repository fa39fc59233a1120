"""A validation set for data that came without one."""

from __future__ import annotations

import numpy as np

from dualtail.data.manifest import Manifest
from dualtail.errors import DataError, InputError


def hold_out_val(manifest: Manifest, per_class: int = 20, seed: int = 0) -> Manifest:
    """Move a balanced, seeded validation set out of the training split; say so in a note.

    Every class gives ``per_class`` images, or fewer if the smallest class could then not keep a training image:
    the number given is the largest for which every class keeps at least one and no class keeps less than it
    gives. A class with a single training image cannot give any; then it has no validation image, the others
    give one or more, and the note says that the set is not balanced.

    Args:
        manifest: a manifest without a ``val`` split.
        per_class: images a class to hold out.
        seed: of the choice of images.

    Returns:
        The manifest with some rows of ``train`` now in ``val``; the order of the rows does not change.

    Raises:
        InputError: ``per_class`` is less than 1.
        DataError: there is a ``val`` split already, or nothing can be held out.

    Example:
        >>> from pathlib import Path
        >>> paths = [f"{i}.png" for i in range(60)]
        >>> manifest = Manifest(Path("."), paths, [0] * 40 + [1] * 20, ["train"] * 60, ("cat", "dog"))
        >>> held = hold_out_val(manifest, per_class=5)
        >>> held.counts("val").tolist(), held.counts("train").tolist(), held.notes[-1]
        ([5, 5], [35, 15], 'val: 10 images (5 a class) held out of train')
    """
    if per_class < 1:
        raise InputError(f"per_class is {per_class}", fix="hold out at least 1 image a class")
    if "val" in manifest.split_sizes:
        raise DataError("there is a val split already", fix="hold out only where there is none")
    counts = manifest.counts("train")
    givers = counts >= 2
    if not givers.any():
        raise DataError(
            "no class has the 2 training images that it takes to hold one out for val", fix="give a val split"
        )
    given = min(per_class, int(counts[givers].min()) // 2)
    rng = np.random.default_rng([seed, 0x7A1])
    splits = manifest.splits.copy()
    for label in np.flatnonzero(givers):
        rows = np.flatnonzero((manifest.labels == label) & (manifest.splits == "train"))
        splits[rng.permutation(rows)[:given]] = "val"
    note = f"val: {given * int(givers.sum())} images ({given} a class) held out of train"
    if given < per_class:
        note += (
            f"; {per_class} a class were asked for, but the smallest class has {int(counts[givers].min())}"
        )
    if not givers.all():
        none = int((~givers).sum())
        note += f"; not balanced: {none} class{'es' * (none > 1)} with fewer than 2 training images gave none"
    return manifest.with_note(note, splits=splits)
