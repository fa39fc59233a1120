"""Where weights come from, and that they arrived whole.

A checkpoint is either loaded completely, name by name and shape by shape, or refused with the names that differ.
Nothing is unpickled except through ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dualtail.errors import BackboneError, first_line

# Containers that training scripts put around a state dict, outermost first.
_CONTAINERS = ("state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_LISTED = 4


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file (``.safetensors``, or a torch file read with ``weights_only=True``).

    Args:
        path: the file.

    Returns:
        Name to tensor, on the CPU, without the ``module.`` prefix that data-parallel training adds.

    Raises:
        BackboneError: the file is missing, is damaged, or holds something else than tensors.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise BackboneError(
            "no such weights file", where=str(path), fix="give the path of a .safetensors, .bin or .pt file"
        )
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _unwrap(loaded)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise BackboneError(
            "this file holds no plain state dict",
            where=str(path),
            fix="save model.state_dict() as safetensors",
        )
    return state


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(
            f"not a whole safetensors file ({error})", where=str(path), fix="download or export it again"
        ) from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise BackboneError(
            "cannot be read as plain tensors (it is damaged, a TorchScript archive, or pickles other objects)",
            where=str(path),
            fix="save its state dict as a .safetensors file",
        ) from error


def _unwrap(loaded: object) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        return {}
    state = {str(name): value for name, value in loaded.items()}
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state


def load_strict(model: nn.Module, state: Mapping[str, Tensor], *, where: str, fix: str) -> None:
    """Copy ``state`` into ``model``, refusing it if any name or shape differs.

    Args:
        model: receives the weights; left untouched on error.
        state: name to tensor.
        where: the file or name the weights came from, for the message.
        fix: what the user can do, for the message.

    Raises:
        BackboneError: tensors are missing, left over or of another shape; the first few are named.
    """
    expected = model.state_dict()
    faults = []
    if missing := [name for name in expected if name not in state]:
        faults.append(f"{len(missing)} of {len(expected)} tensors are missing ({_listed(missing)})")
    if unexpected := [name for name in state if name not in expected]:
        faults.append(f"{len(unexpected)} are unknown to the architecture ({_listed(unexpected)})")
    if reshaped := [
        f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]:
        faults.append(f"{len(reshaped)} have another shape ({_listed(reshaped)})")
    if faults:
        raise BackboneError("the weights do not fit: " + "; ".join(faults), where=where, fix=fix)
    model.load_state_dict(state)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's state dict: its names, dtypes, shapes and bytes.

    It does not depend on the file format the weights came in, and random weights have one too.

    Example:
        >>> same = [fingerprint(nn.Linear(2, 2)) for _ in range(2) if torch.manual_seed(0)]
        >>> same[0] == same[1], len(same[0])
        (True, 64)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def hub_file(repository: str, filenames: Iterable[str], *, where: str, revision: str | None = None) -> Path:
    """Return the first of ``filenames`` in a Hugging Face repository: from the local cache, else downloaded.

    A machine without a network answers at once instead of going through the hub client's retries.

    Args:
        repository: ``owner/name`` on the hub.
        filenames: names to try, the preferred one first.
        where: the backbone's name, for the message.
        revision: a commit, tag or branch; None is what the main branch has now, or had when it was cached.

    Raises:
        BackboneError: none of the files is cached and the hub cannot be reached or does not have them.
    """
    import huggingface_hub

    names = list(filenames)
    pinned: dict[str, Any] = {} if revision is None else {"revision": revision}
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, **pinned)
        if isinstance(cached, str):
            return Path(cached)
    reason = _hub_unreachable()
    if reason is None:
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(repository, name, **pinned))
            except huggingface_hub.errors.EntryNotFoundError:
                reason = f"the hub has no {' or '.join(names)}"
            except Exception as error:  # the client's own errors and those of either HTTP library beneath it
                reason = first_line(error)
    raise unreachable(where, f"{names[0]} of {repository}", reason or "nothing to download")


def unreachable(where: str, wanted: str, reason: str) -> BackboneError:
    """Return the error for weights that could not be fetched, with the ways to do without a network."""
    return BackboneError(
        f"the weights are not here and could not be fetched ({reason})",
        where=where,
        fix=f"offline, copy {wanted} to this machine and say `weights: FILE`, or fill the Hugging Face cache "
        "(HF_HOME) on another machine and set HF_HUB_OFFLINE=1",
    )


def _hub_unreachable() -> str | None:
    """Return why the hub cannot be reached, or None if one quick request was answered."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and the cache does not hold them"
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # httpx or requests, whichever this version of the client is built on
        return f"no connection: {error}"
    return None
