"""Logits on disk: one file a model with all its splits, read piece by piece; and those of a whole run, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from dualtail.errors import RunError
from dualtail.files import fingerprint, reading, refuse_irregular, write_tensors
from dualtail.logits._arrays import row_chunks
from dualtail.runs.directory import RunDirectory

_FORMAT, _HEADER_KEY = "dualtail-logits-1", "dualtail"
_CHUNK = 1 << 21  # entries of the rows that are read at a time
ModelKey = tuple[str, str]
"""``("zero_shot", backbone)`` or ``("member", name)``."""


@dataclass(frozen=True)
class SplitLogits:
    """Logits of one split, as they are written.

    Attributes:
        logits: ``(N, C)`` float32.
        labels: ``(N,)`` int64.
        sample_ids: ``N`` names of the samples (the manifest's paths), in the order of the rows.
        features: ``(N, D)`` float16 features before the projection, where they were kept.
    """

    logits: Tensor
    labels: Tensor
    sample_ids: tuple[str, ...]
    features: Tensor | None = None


def write_logits(path: Path, splits: Mapping[str, SplitLogits], class_names: Sequence[str] = ()) -> None:
    """Write the logits of several splits to one safetensors file.

    Sample ids travel as UTF-8 JSON bytes, and a fingerprint of the classes, in the order of the columns, in the header.

    Args:
        path: the file.
        splits: by name.
        class_names: ``C`` names; none where they are not known.
    """
    tensors: dict[str, Tensor] = {}
    for name, split in splits.items():
        ids = json.dumps(split.sample_ids, ensure_ascii=False).encode()
        tensors[f"{name}.logits"] = split.logits.float()
        tensors[f"{name}.labels"] = split.labels.long()
        tensors[f"{name}.sample_ids"] = torch.from_numpy(np.frombuffer(ids, dtype=np.uint8).copy())
        if split.features is not None:
            tensors[f"{name}.features"] = split.features.half()
    about = {"format": _FORMAT, "classes": fingerprint(list(class_names)) if class_names else None}
    # One entry: several would stand in another order each time, and equal logits be unequal files.
    write_tensors(path, tensors, {_HEADER_KEY: json.dumps(about)})


class LogitsFile:
    """One split of a logits file. The file is opened once; each part is read when it is asked for, and no other.

    Args:
        path: the file.
        split: the split.
        class_names: ``C`` names, which the columns must be of; of older files that is not known.

    Raises:
        RunError: the file is missing, cannot be read, has no such split, or is of other classes.
    """

    def __init__(self, path: Path, split: str, class_names: Sequence[str] | None = None) -> None:
        self.path, self.split = path, split
        with reading(path):
            refuse_irregular(path)
            self._file: Any = safe_open(path, framework="pt")
            of_classes = json.loads((self._file.metadata() or {}).get(_HEADER_KEY, "{}")).get("classes")
        self._parts = {name for name in self._file.keys() if name.startswith(f"{split}.")}  # noqa: SIM118
        if f"{split}.logits" not in self._parts:
            raise RunError(f"has no split {split!r}", where=str(path))
        if class_names is not None and of_classes not in (None, fingerprint(list(class_names))):
            raise RunError(
                "is of other classes than the run, or of these in another order",
                where=str(path),
                fix="delete the file and run again",
            )
        with reading(path):
            self._check_parts()

    def _check_parts(self) -> None:
        """Refuse parts that do not fit each other, of which no more than the headers are read."""
        rows = len(self.sample_ids)
        for part, dtype, dimensions in (("logits", "F32", 2), ("labels", "I64", 1), ("features", "F16", 2)):
            name = f"{self.split}.{part}"
            if name not in self._parts and part == "features":
                continue
            kept = self._file.get_slice(name)
            shape = kept.get_shape()
            if kept.get_dtype() != dtype or len(shape) != dimensions or shape[0] != rows:
                raise ValueError(f"{name} is {kept.get_dtype()} {tuple(shape)} for {rows} samples")
        if not all(isinstance(name, str) for name in self.sample_ids):
            raise ValueError("a name of a sample is no text")
        if rows and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise ValueError(f"a label is none of the {self.num_classes} classes")

    @cached_property
    def labels(self) -> Tensor:
        """``(N,)`` int64."""
        return self._file.get_tensor(f"{self.split}.labels")

    @cached_property
    def sample_ids(self) -> tuple[str, ...]:
        """``N`` names of the samples."""
        return tuple(json.loads(bytes(self._file.get_tensor(f"{self.split}.sample_ids").numpy()).decode()))

    @property
    def num_classes(self) -> int:
        """C, without reading a logit."""
        return int(self._rows.get_shape()[1])

    @property
    def logits(self) -> Tensor:
        """``(N, C)`` float32, read now."""
        return self._file.get_tensor(f"{self.split}.logits")

    @property
    def features(self) -> Tensor | None:
        """``(N, D)`` float16, read now; None where they were not kept."""
        name = f"{self.split}.features"
        return self._file.get_tensor(name) if name in self._parts else None

    def rows(self, rows: slice) -> Tensor:
        """Return some rows of the logits, without reading the others."""
        return self._rows[rows]

    @cached_property
    def _rows(self) -> Any:
        return self._file.get_slice(f"{self.split}.logits")


def has_logits(run: RunDirectory) -> bool:
    """Whether every file that :class:`RunLogits` reads is there, or should be."""
    if not all(run.records.has(run.backbone(plan.name).info) for plan in run.backbones):
        return False
    files = [run.member(member.name).logits for member in run.members]
    files += [run.backbone(plan.name).zero_shot for plan in run.backbones if run.has_text(plan)]
    return all(run.records.has(file) for file in files)


class RunLogits:
    """The logits of one split of a run, aligned: every backbone's zero-shot ones and every member's.

    Args:
        run: the run directory.
        split: ``"val"`` or ``"test"``.
        class_names: ``C`` names, which the logits must be of.

    Raises:
        RunError: a file is missing, cannot be read, is not as it was written, is of other classes, or holds other
            samples than the others.
    """

    def __init__(self, run: RunDirectory, split: str, class_names: Sequence[str] | None = None) -> None:
        def opened(path: Path) -> LogitsFile:
            return LogitsFile(run.verified(path), split, class_names)

        self.split = split
        self.members = {member.name: opened(run.member(member.name).logits) for member in run.members}
        self.backbones = {
            plan.name: opened(run.backbone(plan.name).zero_shot)
            for plan in run.backbones
            if run.has_text(plan)
        }
        first = next(iter(self.members.values()))
        self.labels, self.sample_ids = first.labels, first.sample_ids
        for file in (*self.members.values(), *self.backbones.values()):
            # By name, not by number: other images may be as many.
            if file.sample_ids != self.sample_ids:
                raise RunError(
                    f"its {split} images are not those of the other members",
                    where=str(file.path),
                    fix="delete the file and run again",
                )

    @cached_property
    def of_members(self) -> list[Tensor]:
        """``M`` tensors ``(N, C)``."""
        return [file.logits for file in self.members.values()]

    @cached_property
    def zero_shot(self) -> dict[str, Tensor]:
        """Backbone name to zero-shot logits ``(N, C)``, of the backbones that have a text tower."""
        return {name: file.logits for name, file in self.backbones.items()}

    def chunks(self) -> Iterator[tuple[slice, dict[ModelKey, Tensor]]]:
        """Yield the same rows of every model at a time, so that memory does not grow with the number of samples."""
        files: dict[ModelKey, LogitsFile] = {("member", name): file for name, file in self.members.items()}
        files |= {("zero_shot", name): file for name, file in self.backbones.items()}
        classes = next(iter(self.members.values())).num_classes
        for rows in row_chunks(len(self.labels), classes, _CHUNK):
            yield rows, {key: file.rows(rows) for key, file in files.items()}
