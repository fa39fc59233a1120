"""A small classifier and loaders of synthetic images: all that the engine needs of the rooms below it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dualtail.process_group import ProcessGroup

CLASSES = 4
SIZE = 8
ALONE = ProcessGroup()


def synthetic_images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise around one pattern a class: uint8 (count, 3, 8, 8) and labels, learnable in a few epochs."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 256, (CLASSES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(7))
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    noise = torch.randint(-90, 90, (count, 3, SIZE, SIZE), generator=generator)
    return (patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels


class SyntheticLoader:
    """Batches whose order is a function of (seed, epoch), as dualtail's train loader gives them."""

    def __init__(
        self, count: int = 50, batch_size: int = 8, seed: int = 0, group: ProcessGroup = ALONE
    ) -> None:
        self.images, self.labels = synthetic_images(count, seed)
        self.batch_size, self.seed, self.group = batch_size, seed, group
        self.epoch = self.skip = 0
        self.served = 0

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        self.epoch, self.skip = epoch, skip_batches

    def __iter__(self) -> Iterator[Any]:
        order = torch.from_numpy(np.random.default_rng([self.seed, self.epoch]).permutation(len(self.labels)))
        for rows in list(order.split(self.batch_size))[self.skip :]:
            mine = rows[self.group.rank :: self.group.size]
            self.served += 1
            yield SimpleNamespace(images=self.images[mine], labels=self.labels[mine], index=mine)


class EvalLoader:
    """Every image once, in order, one crop a key; ``left_out`` rows are skipped as unreadable ones are."""

    def __init__(
        self,
        count: int = 50,
        batch_size: int = 8,
        *,
        left_out: tuple[int, ...] = (),
        crops: int = 0,
        group: ProcessGroup = ALONE,
    ) -> None:
        self.images, self.labels = synthetic_images(count, seed=1)
        self.rows = torch.arange(count).tensor_split(group.size)[group.rank]
        self.batch_size, self.left_out, self.crops = batch_size, left_out, crops
        self.passes = 0

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for rows in self.rows.split(self.batch_size):
            rows = torch.tensor([row for row in rows.tolist() if row not in self.left_out], dtype=torch.int64)
            if not len(rows):
                continue
            images = self.images[rows]
            if self.crops:
                images = torch.stack([images.roll(shift, -1) for shift in range(self.crops)], dim=1)
            views = {"plain": images, "flipped": images.flip(-1)}
            yield SimpleNamespace(images=views, labels=self.labels[rows], index=rows)


class TinyClassifier(nn.Module):
    """A frozen stem, a trained layer with dropout, and a head, initialised from a seed of its own."""

    def __init__(self, seed: int = 0, *, dropout: float = 0.2, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Linear(3 * SIZE * SIZE, 32).requires_grad_(False)
            self.tuner = nn.Linear(32, 16)
            self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(16, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1).to(torch.float32) / 127.5 - 1
        return self.norm(torch.tanh(self.tuner(torch.tanh(self.stem(pixels)))))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(images)))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
