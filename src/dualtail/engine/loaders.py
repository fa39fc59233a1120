"""What the engine asks of loaders and their batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from dualtail.errors import InputError
from dualtail.process_group import ProcessGroup


class Batch(Protocol):
    """What a loader yields.

    Attributes:
        images: uint8 (B, 3, S, S) in training. For evaluation, key of a crop to such a tensor, or to
            (B, K, 3, S, S) for K crops of an image.
        labels: int64 (B,).
        index: int64 (B,), each image's row in its manifest.
    """

    images: Any
    labels: Tensor
    index: Tensor


class TrainLoader(Protocol):
    """What :func:`~dualtail.engine.finetune.finetune` needs: ``len`` is the number of batches of a whole epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Make the next iteration that of ``epoch``, without its first ``skip_batches`` batches."""


class EvalLoader(Protocol):
    """What :func:`~dualtail.engine.inference.infer` and attribution maps need."""

    @property
    def num_samples(self) -> int:
        """Number of images, over all processes."""

    def __iter__(self) -> Iterator[Any]: ...


def check_share(loader: object, group: ProcessGroup) -> None:
    """Refuse a loader that was cut for another number of processes: they would all work on the same images.

    Raises:
        InputError: it has a ``plan.group`` of another size than ``group``.
    """
    cut = getattr(getattr(loader, "plan", None), "group", group)
    if cut.size != group.size:
        raise InputError(
            f"the loader is cut for {cut.size} processes, but {group.size} run",
            where="loader",
            fix="make it with the same group",
        )


def crop_for(name: str, batch: Batch, crops: Mapping[str, str] | None) -> Tensor:
    """Return the images of a batch that a member is shown.

    Args:
        name: of the member.
        batch: its images by the key of their crop.
        crops: member name to the key of its crop. Without it: the member's own name if there is such a key, else the
            only key there is.

    Raises:
        InputError: there is no such crop.
    """
    views = batch.images if isinstance(batch.images, dict) else {"": batch.images}
    key = (crops or {}).get(name, name)
    if key in views:
        return views[key]
    if len(views) == 1 and name not in (crops or {}):
        return next(iter(views.values()))
    raise InputError(
        f"there is no crop {key!r} for the member {name!r}",
        where="crops",
        fix=f"the loader has {', '.join(views)}",
    )
