"""The downstream task: a long-tailed training set, balanced val and test, in memory or as image files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dualtail.data.longtail import long_tail_counts
from dualtail.data.manifest import Manifest
from dualtail.data.readers import read_manifest
from dualtail.files import atomic_folder, check_replaceable, write_csv, write_json
from dualtail.lab.corpus import Sample, draw
from dualtail.lab.render import FACTOR_VALUES
from dualtail.lab.world import TASK, World

TASK_FILE = "task.json"
# The files have a margin around the 32 x 32 pixels: what resizing to 8/7 of the input and cutting the centre, the
# usual preprocessing, takes off again.
MARGIN = 2
MANIFEST_FILE = "manifest.csv"


def train_counts(world: World, *, balanced: bool = False) -> np.ndarray:
    """Return ``(C,)`` training images a class: a long tail over the classes in an order of the task's own.

    Args:
        world: its task says how long the tail is.
        balanced: spread as many images evenly instead.

    Example:
        >>> counts = train_counts(World(classes=10))
        >>> counts.max(), counts.min()
        (np.int64(200), np.int64(2))
    """
    counts = long_tail_counts(world.classes, world.task.largest, world.task.ratio)
    if balanced:
        return np.full(world.classes, round(counts.mean()))
    return counts[world.rng(TASK).permutation(world.classes)]


def draw_task(world: World, *, balanced: bool = False) -> dict[str, Sample]:
    """Return the splits ``train``, ``val`` and ``test``; val and test do not depend on ``balanced``."""
    per_class = {
        "train": train_counts(world, balanced=balanced),
        "val": np.full(world.classes, world.task.val_per_class),
        "test": np.full(world.classes, world.task.test_per_class),
    }
    streams = {"train": 3 if balanced else 0, "val": 1, "test": 2}
    return {
        split: draw(world, np.repeat(np.arange(world.classes), counts), world.rng(TASK, streams[split]))
        for split, counts in per_class.items()
    }


def write_task(world: World, folder: str | Path) -> Manifest:
    """Write the task as PNG files in an ImageFolder tree, with a table beside it that names every factor.

    Nothing of the lab is in the tree: the data room's ``folder`` reader sees ordinary images.

    Args:
        world: what to draw.
        folder: must be absent, empty, or hold an earlier task. The same world gives the same files.

    Returns:
        The manifest of what was written.

    Raises:
        DataError: the folder holds something else.
    """
    folder = Path(os.path.expanduser(folder))
    check_replaceable(folder, TASK_FILE, "task of the lab")
    with atomic_folder(folder) as temporary:
        rows = [
            row
            for split, sample in draw_task(world).items()
            for row in _write_split(world, temporary, split, sample)
        ]
        write_csv(temporary / MANIFEST_FILE, rows)
        write_json(temporary / TASK_FILE, describe(world))
    return read_manifest("folder", folder)


def describe(world: World) -> dict[str, Any]:
    """Return what ``task.json`` says of a world's task: all that its images follow from."""
    return world.describe_task() | {"train_counts": train_counts(world).tolist()}


def _write_split(world: World, root: Path, split: str, sample: Sample) -> list[dict[str, str]]:
    for name in world.class_names:
        (root / split / name).mkdir(parents=True)
    rows = []
    for number, (image, label, factors) in enumerate(
        zip(sample.images, sample.labels, sample.factors, strict=True)
    ):
        name = world.class_names[label]
        path = f"{split}/{name}/{number:05d}.png"
        pixels = np.pad(image.transpose(1, 2, 0), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")
        Image.fromarray(pixels).save(root / path, compress_level=1)
        words = {
            key: FACTOR_VALUES[key][value] for key, value in zip(world.factor_names, factors, strict=True)
        }
        rows.append({"path": path, "label": name, "split": split, **words})
    return rows
