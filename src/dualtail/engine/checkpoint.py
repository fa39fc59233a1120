"""The state of an unfinished run in one file: safetensors, its JSON in the header, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dualtail.errors import TrainingError
from dualtail.files import write_tensors

CHECKPOINT_NAME = "state.safetensors"
FORMAT_VERSION = 1
_HEADER_KEY = "dualtail"


def write_checkpoint(directory: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write the tensors and their JSON header; the previous checkpoint stands until the new one is complete.

    A process killed at any moment, or a machine that loses power, leaves the old or the new file, never half of one.

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
    write_tensors(path, tensors, {_HEADER_KEY: text}, flush=True)
    return path


def read_checkpoint(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors (on the CPU) and the header of a checkpoint, or None where there is none.

    Raises:
        TrainingError: the file is damaged or of another format version.
    """
    path = directory / CHECKPOINT_NAME
    if not path.exists():
        return None
    header = read_header(directory)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def read_header(directory: Path) -> dict[str, Any]:
    """Return the header alone (epoch, step, history, ...), which takes no time whatever the tensors weigh.

    Raises:
        TrainingError: the file is absent, damaged or of another format version.
    """
    path = directory / CHECKPOINT_NAME
    start_over = f"delete {path} to start over"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER_KEY])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise TrainingError(
            f"the checkpoint cannot be read ({error})", where=str(path), fix=start_over
        ) from None
    if header.get("format_version") != FORMAT_VERSION:
        raise TrainingError(
            f"the checkpoint has format version {header.get('format_version')}, not {FORMAT_VERSION}",
            where=str(path),
            fix=start_over,
        )
    return header


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
