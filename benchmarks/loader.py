"""Images per second of dualtail's loaders beside torchvision's ``ImageFolder`` and torch's ``DataLoader``.

Both read the same files with the same augmentation, batch size and workers, take turns in one process, and are
compared round by round, so that other work on the machine disturbs both. What a loader delivers differs on
purpose: uint8 images for ours (normalised on the device), normalised float32 for the peer, as its users have it.

    python benchmarks/loader.py [--images 600] [--rounds 5] [--workers 2]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dualtail.data.loader import eval_loader, train_loader
from dualtail.data.readers import read_manifest
from dualtail.data.transforms import build_augmentation, eval_transform
from dualtail.imagespec import ImageSpec

BATCH = 128
# Name -> width, height, suffix, size of the model's input.
KINDS = {
    "web image": (500, 375, "jpg", 224),
    "camera photo": (4000, 3000, "jpg", 224),
    "CIFAR": (32, 32, "png", 224),
    "digits": (32, 32, "png", 32),
}


def write_images(folder: Path, width: int, height: int, suffix: str, count: int) -> None:
    """Write images with the detail and the file size of photographs: smooth shapes and some noise."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "train" / label).mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noise = rng.integers(-12, 13, smooth.shape, dtype=np.int16)
        image = Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))
        image.save(folder / "train" / "ab"[index % 2] / f"{index}.{suffix}", quality=88)


def peer(folder: Path, spec: ImageSpec, train: bool, workers: int) -> DataLoader:
    mode = v2.InterpolationMode.BICUBIC
    crop = [
        v2.RandomResizedCrop(spec.size, interpolation=mode, antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    centre = [
        v2.Resize(spec.size + spec.size // 7, interpolation=mode, antialias=True),
        v2.CenterCrop(spec.size),
    ]
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    dataset = ImageFolder(str(folder / "train"), v2.Compose([*(crop if train else centre), *to_float]))
    return DataLoader(
        dataset, BATCH, shuffle=train, num_workers=workers, persistent_workers=workers > 0, pin_memory=False
    )


def seconds(loader: Iterable[object]) -> float:
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def measure(kind: str, count: int, rounds: int, workers: int) -> None:
    width, height, suffix, size = KINDS[kind]
    spec = ImageSpec(size=size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, width, height, suffix, count)
        manifest = read_manifest("folder", folder)
        options = {"batch_size": BATCH, "workers": workers}
        crop, centre = build_augmentation(spec), {"": eval_transform(spec)}
        contests = {
            "train": (True, train_loader(manifest, crop, **options)),
            "eval": (False, eval_loader(manifest, centre, **options)),
        }
        if kind == "camera photo":
            contests["train with cache"] = (
                True,
                train_loader(manifest, crop, cache=folder / "copies", **options),
            )
        for stage, (train, ours) in contests.items():
            theirs = peer(folder, spec, train, workers)
            rounds_of = [(seconds(theirs), seconds(ours)) for _ in range(rounds + 1)][
                1:
            ]  # the first warms up
            rates = [count / statistics.median(times) for times in zip(*rounds_of, strict=True)]
            ratio = statistics.median(theirs / ours for theirs, ours in rounds_of)
            print(
                f"{kind:13} {width}x{height} {stage:17} dualtail {rates[1]:6.0f}  peer {rates[0]:6.0f} images/s  "
                f"ratio {ratio:.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=600, help="images of each kind (a tenth of it for photos)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        count = max(BATCH // 4, arguments.images // 10) if kind == "camera photo" else arguments.images
        measure(kind, count, arguments.rounds, arguments.workers)


if __name__ == "__main__":
    main()
