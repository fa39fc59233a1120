from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtail.data.manifest import Manifest


@pytest.fixture
def write_tree(tmp_path: Path) -> Callable[..., Path]:
    """Write small PNG files: ``{"train": {"cat": 3}}`` is three images in train/cat."""

    def write(counts: Mapping[str, Mapping[str, int]], root: Path | None = None, size: int = 12) -> Path:
        root = root or tmp_path / "tree"
        rng = np.random.default_rng(0)
        for split, classes in counts.items():
            for name, count in classes.items():
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{name} {index}.png")
        return root

    return write


@pytest.fixture
def balanced() -> Manifest:
    """A manifest of 3 classes x 100 training and 10 test images, without files."""
    labels = np.concatenate([np.repeat([0, 1, 2], 100), np.repeat([0, 1, 2], 10)])
    splits = ["train"] * 300 + ["test"] * 30
    return Manifest(Path("."), [f"{row}.png" for row in range(330)], labels, splits, ("a", "b", "c"))
