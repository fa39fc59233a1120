"""Batches of uint8 images from a manifest: shuffled, augmented and sharded by pure functions of seed and epoch."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dualtail.data.copies import SmallCopies
from dualtail.data.images import decode_image
from dualtail.data.manifest import Manifest
from dualtail.data.samplers import SAMPLINGS, epoch_order
from dualtail.data.transforms import Transform
from dualtail.errors import DataError, DualtailError, FileError, InputError, check_choice, first_line
from dualtail.files import file_error
from dualtail.process_group import ProcessGroup

OnBadImage = Literal["error", "skip"]
_FEWER = "memory may have run out: use fewer workers or smaller batches, and run the same command again"


@dataclass(frozen=True)
class Batch:
    """What a loader yields.

    Attributes:
        images: uint8 ``(B, 3, S, S)`` from a train loader; from an eval loader a dict of transform key to
            ``(B, 3, S, S)``, or ``(B, K, 3, S, S)`` for ``K`` crops.
        labels: int64 ``(B,)``.
        index: int64 ``(B,)``, the row of each image in the manifest that the loader was made from.
        total: number of samples of this batch over all processes (``B`` for a single one).
        skipped: ids of the images of this batch that could not be read, if ``on_bad_image="skip"``.
    """

    images: Tensor | dict[str, Tensor]
    labels: Tensor
    index: Tensor
    total: int
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory; the loader calls it where there is a GPU."""
        images = self.images
        pinned = (
            {key: value.pin_memory() for key, value in images.items()}
            if isinstance(images, dict)
            else images.pin_memory()
        )
        return replace(self, images=pinned, labels=self.labels.pin_memory(), index=self.index.pin_memory())


class BatchIndices(NamedTuple):
    """What a worker is asked for: rows, with what the randomness of each depends on."""

    rows: np.ndarray
    positions: np.ndarray
    epoch: int
    progress: float
    total: int


class ImageDataset(Dataset):
    """Decodes and transforms a batch at a time: ``dataset[indices]`` is a ``Batch``, or the error that prevents it.

    Args:
        manifest: one split.
        transforms: a transform, or a dict of them by key; each image is decoded once for all.
        seed: of the augmentation.
        on_bad_image: ``"error"``, or ``"skip"`` to leave out images that cannot be read.
        fast_decode: let the JPEG decoder halve images far larger than the transforms need.
        cache: a folder for smaller copies of such images, see ``SmallCopies``.
    """

    def __init__(
        self,
        manifest: Manifest,
        transforms: Transform | Mapping[str, Transform],
        *,
        seed: int = 0,
        on_bad_image: OnBadImage = "error",
        fast_decode: bool = False,
        cache: str | Path | None = None,
    ) -> None:
        check_choice("on_bad_image", on_bad_image, ("error", "skip"))
        self.manifest = manifest
        self.keyed = isinstance(transforms, Mapping)
        self.transforms: dict[str, Transform] = (
            dict(transforms) if isinstance(transforms, Mapping) else {"": transforms}
        )
        if not self.transforms:
            raise InputError("there is no transform")
        self.seed = seed
        self.on_bad_image = on_bad_image
        min_side = max(transform.min_side for transform in self.transforms.values())
        self.min_side = min_side if fast_decode else None
        self.copies = None if cache is None else SmallCopies(cache, min_side, manifest.max_pixels)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, indices: BatchIndices) -> Batch | DualtailError:
        # An error is raised by the loader: a traceback of the worker would bury the line.
        try:
            return self._batch(indices)
        except DualtailError as error:
            return error
        except OSError as error:
            return file_error(str(self.manifest.root), error)
        except MemoryError:
            return DataError("memory ran out while images were read", fix=_FEWER)

    def _batch(self, indices: BatchIndices) -> Batch:
        crops: dict[str, list[Tensor]] = {key: [] for key in self.transforms}
        rows, skipped = [], []
        with torch.random.fork_rng(devices=[]):
            for row, position in zip(indices.rows.tolist(), indices.positions.tolist(), strict=True):
                try:
                    image = self._decode(self.manifest.file(row))
                except DataError as error:
                    if self.on_bad_image == "error" or isinstance(error, FileError):
                        raise  # a full disk, say, is no bad image
                    skipped.append(self.manifest.paths[row])
                    continue
                for key, transform in self.transforms.items():
                    torch.default_generator.manual_seed(sample_seed(self.seed, indices.epoch, position))
                    crops[key].append(transform(image, indices.progress))
                rows.append(row)
        index = torch.tensor(rows, dtype=torch.int64)
        stacked = {key: torch.stack(value) for key, value in crops.items()} if rows else {}
        images = stacked if self.keyed else stacked.get("", torch.empty(0, dtype=torch.uint8))
        labels = torch.from_numpy(self.manifest.labels[rows])
        return Batch(images, labels, index, indices.total, tuple(skipped))

    def _decode(self, path: str) -> Image.Image:
        if self.copies is not None:
            return self.copies.decode(path)
        return decode_image(path, self.min_side, self.manifest.max_pixels)


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Return the seed of one sample's augmentation: a hash of what it may depend on and nothing else."""
    return int(np.random.SeedSequence([seed, epoch, position]).generate_state(1, np.uint64)[0])


class Plan(Sampler):
    """The batches of an epoch for one process; the loader's workers are sent whole batches of rows.

    The global batch is cut among the processes, so that any number of them sees the same global batches.

    Args:
        size: number of images.
        batch_size: images of a batch: over all processes for training, of each process for evaluation.
        group: the processes that share the epoch.
    """

    def __init__(self, size: int, batch_size: int, group: ProcessGroup) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}", fix="give at least 1")
        self.size, self.batch_size, self.group = size, batch_size, group
        self.epoch = self.skip_batches = 0

    def order(self) -> np.ndarray:
        """Return the rows of the epoch, over all processes, int64 ``(N,)``."""
        raise NotImplementedError

    @cached_property
    def shares(self) -> list[tuple[np.ndarray, int]]:
        """Return, for every batch of this process, positions in the epoch's order and the global batch's size."""
        raise NotImplementedError

    @property
    def progress(self) -> float:
        """Progress of the training in [0, 1]."""
        return 0.0

    def __iter__(self) -> Iterator[BatchIndices]:
        order = self.order()
        for positions, total in self.shares[self.skip_batches :]:
            yield BatchIndices(order[positions % len(order)], positions, self.epoch, self.progress, total)

    def __len__(self) -> int:
        return len(self.shares)


class TrainPlan(Plan):
    """Shuffled and re-sampled batches; every process has equally many."""

    def __init__(
        self,
        labels: np.ndarray,
        num_classes: int,
        sampling: str,
        epochs: int,
        seed: int,
        batch_size: int,
        group: ProcessGroup,
        drop_last: bool,
    ) -> None:
        super().__init__(len(labels), batch_size, group)
        if batch_size < group.size:
            raise InputError(
                f"batch_size {batch_size} is less than the {group.size} processes", fix="make it larger"
            )
        self.labels, self.num_classes, self.sampling = labels, num_classes, sampling
        self.epochs, self.seed, self.drop_last = epochs, seed, drop_last

    def order(self) -> np.ndarray:
        """Return the rows of the epoch, over all processes, int64 ``(N,)``."""
        return epoch_order(
            self.labels, self.num_classes, self.sampling, seed=self.seed, epoch=self.epoch, epochs=self.epochs
        )

    @property
    def progress(self) -> float:
        """From 0 in the first epoch to 1 in the last; 0 if there is only one."""
        return min(1.0, self.epoch / (self.epochs - 1)) if self.epochs > 1 else 0.0

    @cached_property
    def shares(self) -> list[tuple[np.ndarray, int]]:
        """Return, for every batch of this process, positions in the epoch's order and the global batch's size."""
        shares = []
        for start in range(0, self.size, self.batch_size):
            stop = min(start + self.batch_size, self.size)
            if self.drop_last and stop - start < self.batch_size and start:
                break
            # A last batch with less than a sample a process is filled up from the epoch's start: a process
            # without any would leave the others waiting for its gradients.
            positions = np.arange(start, max(stop, start + self.group.size))
            shares.append((positions[self.group.rank :: self.group.size], len(positions)))
        return shares


class EvalPlan(Plan):
    """Every row once, in order; each process has one stretch of them."""

    def order(self) -> np.ndarray:
        """Return all rows."""
        return np.arange(self.size)

    @cached_property
    def shares(self) -> list[tuple[np.ndarray, int]]:
        """Return, for every batch of this process, positions in the epoch's order and the batch's size."""
        mine = np.array_split(np.arange(self.size), self.group.size)[self.group.rank]
        batches = [mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)]
        return [(batch, len(batch)) for batch in batches]


class Loader:
    """Iterates over ``Batch``; made by ``train_loader`` and ``eval_loader``.

    Iterating twice without ``set_epoch`` gives the same batches twice. Worker processes are kept between epochs.
    """

    def __init__(self, dataset: ImageDataset, plan: Plan, workers: int | None) -> None:
        workers = default_workers() if workers is None else workers
        if workers < 0:
            raise InputError(f"workers is {workers}", fix="give 0 or more")
        self.dataset, self.plan = dataset, plan
        self._skipped: dict[str, None] = {}  # a dict keeps the order
        self._batches: DataLoader = DataLoader(
            dataset,
            sampler=plan,
            batch_size=None,  # the plan yields whole batches
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            collate_fn=_unchanged,
            # Its own generator, as the data loader would otherwise draw from the global one that training uses.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, for this process."""
        return len(self.plan)

    @property
    def num_samples(self) -> int:
        """Number of images, over all processes."""
        return len(self.dataset)

    @property
    def batch_size(self) -> int:
        """Number of images of a full batch: over all processes for training, of each for evaluation."""
        return self.plan.batch_size

    @property
    def skipped(self) -> tuple[str, ...]:
        """Ids of the images met so far (by this process) that could not be read."""
        return tuple(self._skipped)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Choose the epoch that the next iteration gives, without its first ``skip_batches`` batches.

        Order and augmentation depend on the seed and the epoch alone, and skipped batches are not decoded, so
        that a resumed training sees what it would have seen.
        """
        if epoch < 0 or not 0 <= skip_batches <= len(self):
            raise InputError(
                f"epoch {epoch} with {skip_batches} of {len(self)} batches skipped does not exist"
            )
        self.plan.epoch, self.plan.skip_batches = epoch, skip_batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._read():
            if isinstance(batch, DualtailError):
                raise batch
            self._skipped.update(dict.fromkeys(batch.skipped))
            if len(batch.index):
                yield batch
            elif isinstance(self.plan, TrainPlan) and self.plan.group.size > 1:
                # Going on with one batch less than the other processes would leave them waiting for ever.
                raise DataError(
                    "none of a batch's images could be read",
                    where=batch.skipped[0],
                    fix="mend or remove the unreadable images",
                )

    def _read(self) -> Iterator[Batch | DualtailError]:
        """Yield what the workers send; the death of one is a line, raised between batches and nowhere else."""
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            batches = iter(self._batches)
            if signal.getsignal(signal.SIGCHLD) is not handler:
                # Torch would raise wherever this process happens to be, such as within an update of the weights.
                signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
            yield from batches
        except (ConnectionError, EOFError) as error:  # it died while it sent
            raise _dead_workers(error) from None
        except OSError as error:
            raise DataError(
                f"the processes that read images cannot be used ({error.strerror or error})", fix=_FEWER
            ) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) and "Too many open files" not in str(error):
                raise
            raise _dead_workers(error) from None


def train_loader(
    manifest: Manifest,
    transform: Transform,
    *,
    batch_size: int,
    seed: int = 0,
    sampling: str = "instance",
    epochs: int = 1,
    workers: int | None = None,
    on_bad_image: OnBadImage = "error",
    fast_decode: bool = True,
    cache: str | Path | None = None,
    drop_last: bool = False,
    group: ProcessGroup = ProcessGroup(),
) -> Loader:
    """Return shuffled, augmented batches of a training split.

    Args:
        manifest: the training images, as of ``manifest.split("train")``.
        transform: see ``build_augmentation``.
        batch_size: images of a batch, over all processes.
        seed: of order and augmentation.
        sampling: one of ``SAMPLINGS``, see ``epoch_order``.
        epochs: length of the training, which progressive sampling and the minimalist crop depend on.
        workers: processes that decode; 0 decodes in this one, None takes one a core, at most 8.
        on_bad_image: ``"error"`` stops at an image that cannot be read; ``"skip"`` leaves it out and lists it in
            ``loader.skipped``.
        fast_decode: let the JPEG decoder halve photographs far larger than the crop needs.
        cache: a folder for smaller copies of such photographs, made in the first epoch (``SmallCopies``); pays where
            decoding them takes longer than training.
        drop_last: leave out a last batch that is not full.
        group: the processes that share each batch.

    Raises:
        InputError: an option that does not exist or a value out of range.
        DataError: no image, or (while iterating) an image that cannot be read.
    """
    _require_images(manifest)
    check_choice("sampling", sampling, SAMPLINGS)  # now, not in the first epoch
    if epochs < 1:
        raise InputError(f"epochs is {epochs}", fix="give at least 1")
    plan = TrainPlan(
        manifest.labels, manifest.num_classes, sampling, epochs, seed, batch_size, group, drop_last
    )
    dataset = ImageDataset(
        manifest, transform, seed=seed, on_bad_image=on_bad_image, fast_decode=fast_decode, cache=cache
    )
    return Loader(dataset, plan, workers)


def eval_loader(
    manifest: Manifest,
    transforms: Mapping[str, Transform],
    *,
    batch_size: int,
    workers: int | None = None,
    on_bad_image: OnBadImage = "error",
    fast_decode: bool = False,
    cache: str | Path | None = None,
    group: ProcessGroup = ProcessGroup(),
) -> Loader:
    """Return batches of every image once, in order, each decoded once for all transforms.

    ``batch.index`` says which row of ``manifest`` each image is: with skipped images or several processes,
    results are put in place by it.

    Args:
        manifest: the images of one split.
        transforms: key to transform, see ``eval_transform``; members with the same ``transform.key`` share one.
        batch_size: images of a batch, for each process.
        workers: see ``train_loader``.
        on_bad_image: see ``train_loader``.
        fast_decode: see ``train_loader``; off, so that logits do not depend on it.
        cache: see ``train_loader``; likewise.
        group: the processes that share the rows; each gets its own stretch, none twice and none lost.
    """
    _require_images(manifest)
    dataset = ImageDataset(
        manifest, transforms, on_bad_image=on_bad_image, fast_decode=fast_decode, cache=cache
    )
    return Loader(dataset, EvalPlan(len(manifest), batch_size, group), workers)


def _dead_workers(error: BaseException) -> DataError:
    reason = first_line(error)
    return DataError(f"processes that read images died ({reason})", fix=_FEWER)


def default_workers() -> int:
    """Return one worker for each core that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _require_images(manifest: Manifest) -> None:
    if not len(manifest):
        raise DataError("the split has no image", where=str(manifest.root), fix="give one with images")


def _start_worker(worker: int) -> None:
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata, once an image and a worker
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):  # the main process's to handle
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unchanged(batch: Batch | Sequence[Batch]) -> Batch | Sequence[Batch]:
    return batch
