"""The state of an unfinished run in one file: safetensors, its JSON in the header, replaced atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dualtail.errors import TrainingError

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
    directory.mkdir(parents=True, exist_ok=True)
    final, temporary = directory / CHECKPOINT_NAME, directory / f"{CHECKPOINT_NAME}.tmp"
    # Floats survive JSON to the bit: Python writes the shortest text that reads back the same.
    text = json.dumps({"format_version": FORMAT_VERSION, **header})
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(ready, temporary, metadata={_HEADER_KEY: text})
    _flush(temporary)
    os.replace(temporary, final)
    _flush(directory)
    return final


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


def restore_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor], prefix: str, where: str) -> None:
    """Copy ``source[prefix + name]`` into each tensor of ``target`` in place.

    Raises:
        TrainingError: a tensor is absent or has another shape.
    """
    with torch.no_grad():
        for name, tensor in target.items():
            found = source.get(prefix + name)
            if found is None or found.shape != tensor.shape:
                shape = "absent" if found is None else f"of shape {tuple(found.shape)}"
                raise TrainingError(
                    f"{prefix}{name} is {shape} but the model's is {tuple(tensor.shape)}",
                    where=where,
                    fix="the checkpoint belongs to another model: use another directory or delete it",
                )
            tensor.copy_(found)


def _flush(path: Path) -> None:
    """Ask the operating system to put a file or a directory's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
