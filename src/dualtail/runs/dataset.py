"""From a recipe's data section to the manifest that the stages use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dualtail.data.check import check_manifest
from dualtail.data.holdout import hold_out_val
from dualtail.data.longtail import subsample_long_tail
from dualtail.data.manifest import Manifest
from dualtail.data.problems import Problem
from dualtail.data.readers import read_manifest
from dualtail.runs.recipe import Data, Recipe


def build_manifest(data: Data, seed: int) -> Manifest:
    """Read the images' manifest, hold out val where there is none, and subsample train where asked.

    What was done is in the manifest's ``notes``.

    Raises:
        DataError: the data cannot be read.
    """
    manifest = read_manifest(data.reader, data.root, **data.options)
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


def evaluation_split(manifest: Manifest) -> str:
    """Return the split that results are measured on: test, or val where there is none."""
    return "test" if "test" in manifest.split_sizes else "val"


def find_problems(
    manifest: Manifest, data: Data, *, deep: bool = False, progress: Callable[[int, int], None] | None = None
) -> list[Problem]:
    """Return the problems of the data that matter to a run under the recipe's policy for bad images."""
    required = ("train", *(("val",) if data.val_per_class or "test" not in manifest.split_sizes else ()))
    return check_manifest(
        manifest, deep=deep, required_splits=required, on_bad_image=data.on_bad_image, progress=progress
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
