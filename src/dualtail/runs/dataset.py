"""From a recipe's data section to the manifest that the stages use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dualtail.data.check import check_manifest
from dualtail.data.contents import read_contents
from dualtail.data.holdout import hold_out_val
from dualtail.data.longtail import subsample_long_tail
from dualtail.data.manifest import Manifest
from dualtail.data.problems import Problem, raise_errors
from dualtail.data.readers import read_manifest
from dualtail.runs.recipe import Data, Recipe


def build_manifest(data: Data, seed: int, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Read the images' manifest, hold out val where there is none, and subsample train where asked.

    Images that cannot be read are left out first where the recipe skips them, so that everything that is counted or
    drawn later is of the others. What was done is in the manifest's ``notes``.

    Args:
        data: the recipe's section.
        seed: of what is drawn.
        progress: called with (images done, images in all) while they are decoded.

    Raises:
        DataError: the data cannot be read, or a class has no image left in a split.
    """
    manifest = read_manifest(data.reader, data.root, allow_outside=data.allow_outside, **data.options)
    manifest = replace(manifest, max_pixels=data.max_pixels)
    if data.on_bad_image == "skip":
        manifest = without_bad_images(manifest, progress)
    sizes = manifest.split_sizes
    if "val" not in sizes and "train" in sizes and data.val_per_class:
        manifest = hold_out_val(manifest, data.val_per_class, seed)
    if data.long_tail is not None:
        manifest = subsample_long_tail(
            manifest,
            data.long_tail.ratio,
            data.long_tail.profile,
            seed,
            class_order="random" if data.long_tail.shuffle_classes else "given",
        )
    if "test" not in manifest.split_sizes:
        manifest = manifest.with_note(
            "there is no test split: results are measured on val, which priors, fitted weights and kept epochs see too"
        )
    return manifest


def without_bad_images(manifest: Manifest, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Return the images that can be decoded, with a note on the others of each split.

    Raises:
        DataFaults: a split loses all its images, or a class all that it has in a split.
    """
    faults = read_contents(
        manifest.root, manifest.paths, decode=True, max_pixels=manifest.max_pixels, progress=progress
    ).faults
    rows = np.array(sorted(faults), dtype=np.int64)
    kept = manifest.select(np.setdiff1d(np.arange(len(manifest)), rows))
    lost, notes = [], []
    for split in manifest.split_sizes:
        bad = rows[manifest.splits[rows] == split]
        before, after = manifest.counts(split), kept.counts(split)
        for label in np.flatnonzero((before > 0) & (after == 0)) if after.any() else ():
            first = bad[manifest.labels[bad] == label][0]
            where = f"class {manifest.class_names[label]!r}, split {split!r}"
            lost.append(_all_lost(where, before[label], manifest.file(first), faults[first]))
        if not after.any():
            lost.append(_all_lost(f"split {split!r}", before.sum(), manifest.file(bad[0]), faults[bad[0]]))
        if len(bad):
            were = (
                "images of {} could not be read and were"
                if len(bad) > 1
                else "image of {} could not be read and was"
            )
            notes.append(
                f"{len(bad)} {were.format(split)} left out, the first {manifest.paths[bad[0]]}: {faults[bad[0]]}"
            )
    raise_errors(lost)
    return replace(kept, notes=(*kept.notes, *notes))


def _all_lost(where: str, count: int, first: str, why: str) -> Problem:
    what = (
        f"none of {count} images can be read, the first {first}: {why}"
        if count > 1
        else f"its only image cannot be read, {first}: {why}"
    )
    return Problem(what, where, "mend them, or take the class or split out of the data")


def evaluation_split(manifest: Manifest) -> str:
    """Return the split that results are measured on: test, or val where there is none."""
    return "test" if "test" in manifest.split_sizes else "val"


def find_problems(
    manifest: Manifest,
    data: Data,
    *,
    deep: bool = False,
    headers: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Return the problems of the data that matter to a run under the recipe's policy for bad images."""
    deep = deep and data.on_bad_image == "error"  # otherwise every image has been decoded already
    required = ("train", *(("val",) if data.val_per_class or "test" not in manifest.split_sizes else ()))
    return check_manifest(
        manifest,
        deep=deep,
        headers=headers,
        required_splits=required,
        on_bad_image=data.on_bad_image,
        progress=progress,
    )


def prior_sample(manifest: Manifest, per_class: int | None, seed: int) -> Manifest:
    """Return the training images that a prior is estimated from: at most ``per_class`` of each class.

    Example:
        >>> from pathlib import Path
        >>> manifest = Manifest(Path("."), ("a", "b", "c"), [0, 0, 1], ["train"] * 3, ("cat", "dog"))
        >>> prior_sample(manifest, 1, seed=0).counts().tolist()
        [1, 1]
    """
    train = manifest.split("train")
    if per_class is None:
        return train
    order = np.random.default_rng([seed, 0x9A]).permutation(len(train))
    by_class = order[np.argsort(train.labels[order], kind="stable")]
    counts = train.counts()
    rank = np.arange(len(train)) - np.repeat(np.cumsum(counts) - counts, counts)
    return train.select(np.sort(by_class[rank < per_class]))


def find_missing_val(recipe: Recipe, manifest: Manifest) -> list[str]:
    """Return a line for each choice of a recipe that needs a val split where there is none."""
    if "val" in manifest.split_sizes:
        return []
    wants = {
        "prior.split": recipe.prior.split == "val",
        "adjust.weights": recipe.adjust.weights == "fitted",
        "finetune.keep": recipe.finetune.keep == "best",
    }
    lines = []
    for key in (key for key, wanted in wants.items() if wanted):
        fix = "set prior.split to train" if key == "prior.split" else f"leave {key} at its default"
        lines.append(f"{key} needs a val split, and there is none; {fix}, or set data.val_per_class")
    return lines
