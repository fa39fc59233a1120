"""Logits and features of any number of models in one pass: each image is read and decoded once for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dualtail.engine.gather import Tables, gather_tables
from dualtail.engine.loaders import Batch, EvalLoader, check_share, crop_for
from dualtail.engine.precision import autocast, resolve_precision
from dualtail.engine.progress import InferenceCallback, PassMeter
from dualtail.errors import InputError, check_choice
from dualtail.logits.metrics import evaluate
from dualtail.process_group import ProcessGroup, own_device

Model = Callable[[Tensor], Any]
KeepFeatures = Literal["none", "float16", "float32"]
FEATURE_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_KEYS = "\0keys"  # beside the members' names


@dataclass(frozen=True)
class MemberOutputs:
    """What a model says of a split, on the CPU, in the order of the manifest; unreadable images are left out.

    Attributes:
        logits: float32 (N, C).
        features: (N, D), before the projection; None where they were not asked for.
        labels: int64 (N,).
        index: int64 (N,), each row's row in the manifest, ascending.
    """

    logits: Tensor
    features: Tensor | None
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


@torch.no_grad()  # not inference_mode: what a model caches on its first call must still serve a later training
def infer(
    members: Mapping[str, Model],
    loader: EvalLoader,
    *,
    crops: Mapping[str, str] | None = None,
    features: KeepFeatures = "none",
    device: str | torch.device = "auto",
    precision: str = "auto",
    scratch: str | Path | None = None,
    progress: InferenceCallback | None = None,
    group: ProcessGroup | None = None,
) -> dict[str, MemberOutputs]:
    """Send every image of a loader through every member, and put the rows in the manifest's order.

    A member with ``features`` and ``head`` (a classifier, a zero-shot classifier) is asked for both once; any other
    callable gives logits, or the pair (logits, features). Of K crops of an image the logits are averaged
    (test-time ensembling), and so are the features.

    Of several processes each passes a loader of its own share; every process receives everything.

    Args:
        members: name to model. Modules are moved to ``device`` and put into eval mode.
        loader: yields batches with ``images`` (a dict of crops by key), ``labels`` and ``index``.
        crops: member name to the key of its crop. Without it: the member's own name if there is such a key, else
            the only key there is.
        features: whether to keep features too, and how precisely.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        precision: of the forward passes; the results are float32 whatever it is.
        scratch: a directory for memory-mapped results, for when N x C is more than memory holds; the files are as
            large as the results and may be deleted once these are written elsewhere.
        progress: called after each batch with an :class:`~dualtail.engine.progress.InferenceProgress`.
        group: the processes that share the work: all that were started together by default; ``ProcessGroup()`` is
            this one by itself, with a loader that yields everything.

    Raises:
        InputError: no member, no crop for a member, no image, or no features where they were asked for.

    Example:
        >>> from types import SimpleNamespace
        >>> class Loader:
        ...     num_samples = 2
        ...     def __iter__(self):
        ...         yield SimpleNamespace(images={"a": torch.ones(2, 3, 4, 4, dtype=torch.uint8)},
        ...                               labels=torch.tensor([1, 0]), index=torch.tensor([0, 1]))
        >>> outputs = infer({"mean": lambda images: images.float().mean((2, 3))}, Loader(), device="cpu")
        >>> outputs["mean"].logits.tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if not members:
        raise InputError("there is no member to ask", where="members")
    check_choice("kind", features, ("none", *FEATURE_DTYPES), where="features")
    group = group or ProcessGroup.join(device)
    check_share(loader, group)
    chosen = own_device(device)
    arithmetic = resolve_precision(precision, chosen)
    for model in members.values():
        if isinstance(model, nn.Module):
            model.to(chosen).eval()
    rows = _Rows(loader.num_samples, FEATURE_DTYPES.get(features), scratch)
    meter = PassMeter(loader.num_samples, progress)
    waiting: tuple[Any, dict[str, tuple[Tensor, Tensor | None]]] | None = None
    for batch in loader:
        with autocast(chosen, arithmetic):
            answers = {
                name: _ask(
                    name,
                    model,
                    crop_for(name, batch, crops).to(chosen, non_blocking=True),
                    features != "none",
                )
                for name, model in members.items()
            }
        # The copy to the CPU waits for the device, so it is made once the next batch is under way.
        if waiting is not None:
            rows.add(*waiting)
        waiting = (batch, answers)
        # The other processes are about as far with their shares.
        meter.add(len(batch.index) * group.size)
    if waiting is not None:
        rows.add(*waiting)
    return rows.outputs(group, chosen)


def member_evaluation(
    loader: EvalLoader,
    *,
    crop: str | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    group: ProcessGroup | None = None,
) -> Callable[[nn.Module], dict[str, float]]:
    """Return an ``evaluate`` for :func:`~dualtail.engine.finetune.finetune`: accuracy and loss on a split.

    It gives ``overall``, ``macro``, ``worst`` and ``nll`` of the unadjusted logits, as fractions and nats.

    Args:
        loader: of the validation split.
        crop: key of the member's crop; the only one by default.
        device: as of the training.
        precision: as of the training.
        group: as of the training.
    """

    def run(model: nn.Module) -> dict[str, float]:
        keys = None if crop is None else {"": crop}
        outputs = infer({"": model}, loader, crops=keys, device=device, precision=precision, group=group)
        evaluation = evaluate(outputs[""].logits, outputs[""].labels)
        values = {name: getattr(evaluation, name) for name in ("overall", "macro", "worst", "nll")}
        return {name: float(value) for name, value in values.items() if value is not None}

    return run


def _ask(name: str, model: Model, images: Tensor, with_features: bool) -> tuple[Tensor, Tensor | None]:
    """Return logits and features of images (B, 3, S, S), or the mean of both over crops (B, K, 3, S, S)."""
    if images.ndim == 5:
        # One crop of all images at a time: as much memory as without crops.
        answers = [_ask(name, model, images[:, k], with_features) for k in range(images.shape[1])]
        logits = torch.stack([answer[0] for answer in answers]).mean(0)
        parts = [answer[1] for answer in answers if answer[1] is not None]
        return logits, torch.stack(parts).mean(0) if parts else None
    if with_features and hasattr(model, "features") and hasattr(model, "head"):
        kept = model.features(images)
        return model.head(kept).float(), kept.float()
    answer = model(images)
    logits, kept = answer if isinstance(answer, tuple) else (answer, None)
    if with_features and kept is None:
        raise InputError(
            f"the member {name!r} gives no features", where="features", fix="let it return (logits, features)"
        )
    return logits.float(), None if kept is None else kept.float()


class _Rows:
    """The results, one preallocated table a member; rows are appended as they come."""

    def __init__(self, capacity: int, feature_dtype: torch.dtype | None, scratch: str | Path | None) -> None:
        self.capacity, self.feature_dtype = capacity, feature_dtype
        self.scratch = None if scratch is None else Path(scratch)
        self.tables: Tables = {}
        self.keys = {kind: torch.empty(capacity, 1, dtype=torch.int64) for kind in ("index", "labels")}
        self.count = 0

    def add(self, batch: Batch, answers: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
        """Append the rows of one batch."""
        rows = slice(self.count, self.count + len(batch.index))
        if rows.stop > self.capacity:
            raise InputError(
                f"the loader gave more than the {self.capacity} images it announced", where="loader"
            )
        self.keys["index"][rows, 0], self.keys["labels"][rows, 0] = batch.index, batch.labels
        for name, (logits, features) in answers.items():
            self._put(name, "logits", logits, torch.float32, rows)
            if self.feature_dtype is not None and features is not None:
                self._put(name, "features", features, self.feature_dtype, rows)
        self.count = rows.stop

    def _put(self, name: str, kind: str, value: Tensor, dtype: torch.dtype, rows: slice) -> None:
        table = self.tables.setdefault(name, {})
        if kind not in table:
            table[kind] = self._allocate(f"{len(self.tables)}.{kind}", self.capacity, value.shape[1], dtype)
        table[kind][rows].copy_(value)

    def _allocate(self, stem: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        if self.scratch is None or not rows * columns:
            return torch.empty(rows, columns, dtype=dtype)
        self.scratch.mkdir(parents=True, exist_ok=True)
        path = self.scratch / f"{stem}.{ProcessGroup.launched().rank}.rows"
        flat = torch.from_file(str(path), shared=True, size=rows * columns, dtype=dtype)
        return flat.view(rows, columns)

    def outputs(self, group: ProcessGroup, device: torch.device) -> dict[str, MemberOutputs]:
        """Return the rows of all processes in the manifest's order."""
        filled = {
            name: {kind: value[: self.count] for kind, value in table.items()}
            for name, table in ((_KEYS, self.keys), *self.tables.items())
        }
        if group.size > 1:
            filled = gather_tables(filled, self.count, group, device, self._allocate)
        keys = filled.pop(_KEYS)
        index = keys["index"][:, 0]
        if not len(index):
            raise InputError("the loader gave no image", where="loader")
        if bool((index[1:] <= index[:-1]).any()):
            order = torch.argsort(index)
            keys, *tables = (_reordered(table, order) for table in (keys, *filled.values()))
            filled = dict(zip(filled, tables, strict=True))
        index, labels = keys["index"][:, 0], keys["labels"][:, 0]
        return {
            name: MemberOutputs(table["logits"], table.get("features"), labels, index)
            for name, table in filled.items()
        }


def _reordered(table: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    return {kind: value[order] for kind, value in table.items()}
