"""What tests of several rooms share: a folder with images, two tiny backbones and a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

COLOURS = {"red panda": (200, 60, 40), "blue jay": (50, 80, 210), "green frog": (60, 180, 70)}


def write_images(root: Path, counts: dict[str, tuple[int, int, int]], seed: int = 0) -> None:
    """Write noisy images of one colour a class as ``root/split/class/n.png``; counts are (train, val, test)."""
    rng = np.random.default_rng(seed)
    for name, sizes in counts.items():
        for split, size in zip(("train", "val", "test"), sizes, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(size):
                pixels = np.array(COLOURS[name]) + rng.normal(0, 40, (24, 30, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def write_backbone(folder: Path, width: int, patch: int) -> Path:
    """Write the config of a tiny open_clip model (its weights are to be random)."""
    config = {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": {
                "image_size": 16,
                "layers": 2,
                "width": width,
                "head_width": 32,
                "patch_size": patch,
            },
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests find out of files is no part of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUALTAIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, two tiny backbones and a recipe that a run finishes in seconds."""
    root = tmp_path_factory.mktemp("workshop")
    write_images(root / "images", {"red panda": (40, 6, 8), "blue jay": (16, 6, 8), "green frog": (4, 6, 8)})
    write_backbone(root / "tiny_a", 32, 8)
    write_backbone(root / "tiny_b", 64, 4)
    recipe = {
        "name": "workshop",
        "data": {"root": "images"},
        "members": [
            {"backbone": "open_clip:./tiny_a", "weights": "random"},
            {"backbone": "open_clip:./tiny_b", "weights": "random"},
        ],
        "finetune": {"epochs": 3, "batch_size": 16, "tuner": {"name": "adaptformer"}},
        "evaluate": {"groups": {"many": 30, "few": 10}},
        "runtime": {"device": "cpu", "workers": 0},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root
