"""The state of an unfinished run: safetensors, its JSON in the header, with a checksum; and the state before it.

The newest is ``state.safetensors``. The one before stands beside it, for the case that the newest is damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dualtail.errors import TrainingError
from dualtail.files import DAMAGE, write_tensors

CHECKPOINT_NAME = "state.safetensors"
BEFORE_NAME = "before.safetensors"
FORMAT_VERSION = 2
_UNCHECKED = 1  # the version that had no checksum
_HEADER_KEY, _CHECKSUM_KEY = "dualtail", "sha256"


class Checkpoint(NamedTuple):
    """What was read.

    Attributes:
        tensors: by name, on the CPU.
        header: epoch, step, history, ...
        note: what was wrong with the newest checkpoint, where this is the one before it; else empty.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]
    note: str = ""


def write_checkpoint(directory: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write the tensors and their JSON header; the previous checkpoint is kept as the one before.

    A process killed at any moment, or a machine that loses power, leaves at least one whole checkpoint.

    Args:
        directory: made when absent.
        tensors: by name; copied to the CPU.
        header: values for JSON; ``format_version`` is added.

    Returns:
        The file's path.
    """
    path = directory / CHECKPOINT_NAME
    # Floats survive JSON to the bit: Python writes the shortest text that reads back the same.
    text = json.dumps({"format_version": FORMAT_VERSION, **header})
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    metadata = {_HEADER_KEY: text, _CHECKSUM_KEY: _checksum(ready, text)}
    write_tensors(path, ready, metadata, before=directory / BEFORE_NAME)
    return path


def read_checkpoint(directory: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None where there is none.

    Raises:
        TrainingError: all are damaged, or the newest is of another format version.
    """
    paths = [path for path in (directory / CHECKPOINT_NAME, directory / BEFORE_NAME) if path.exists()]
    faults: list[str] = []
    for path in paths:
        try:
            tensors, header = _read(path)
        except (SafetensorError, *DAMAGE) as error:
            if isinstance(error, TrainingError):
                raise
            faults.append(str(error) or type(error).__name__)
            continue
        note = f"{paths[0]} is damaged ({faults[0]}); training goes on from the one before" if faults else ""
        return Checkpoint(tensors, header, note)
    if not paths:
        return None
    raise TrainingError(
        f"the checkpoint cannot be read ({faults[0]})",
        where=str(paths[0]),
        fix=f"delete {directory} to start over",
    )


def read_header(directory: Path) -> dict[str, Any]:
    """Return the header (epoch, step, history, ...) of the newest checkpoint that is whole.

    Raises:
        TrainingError: there is none, or none of this format version.
    """
    kept = read_checkpoint(directory)
    if kept is None:
        raise TrainingError("there is no checkpoint", where=str(directory))
    return kept.header


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a checkpoint whose checksum is right; what is raised otherwise says what is wrong."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = metadata[_HEADER_KEY]
    header = json.loads(text)
    known = metadata.get(_CHECKSUM_KEY)
    if known is not None and known != _checksum(tensors, text):
        raise ValueError("its content does not have its checksum")
    version = header["format_version"]
    if version not in (FORMAT_VERSION, _UNCHECKED):
        raise TrainingError(
            f"the checkpoint has format version {version}, not {FORMAT_VERSION}",
            where=str(path),
            fix=f"delete {path} to start over",
        )
    if known is None and version != _UNCHECKED:
        raise ValueError("it has no checksum")
    return tensors, header


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def restore_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensor of the same name into each tensor of ``target`` in place.

    Args:
        target: live tensors by name.
        source: has them all; more are ignored.
        where: the source comes from, for messages.

    Raises:
        TrainingError: a tensor is absent or has another shape.
    """
    with torch.no_grad():
        for name, tensor in target.items():
            value = source.get(name)
            if value is None or value.shape != tensor.shape:
                shape = "absent" if value is None else f"of shape {tuple(value.shape)}"
                raise TrainingError(
                    f"{name} is {shape} but the model's is {tuple(tensor.shape)}",
                    where=where,
                    fix="the checkpoint belongs to another model: use another directory or delete it",
                )
            tensor.copy_(value)
