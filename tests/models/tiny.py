"""Small models of the real architectures, written as local folders in open_clip's hub format."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 3, "width": 32, "patch_size": 8, "image_size": 32, "head_width": 16},
    "text_cfg": TEXT,
}
RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 32},
    "text_cfg": TEXT,
}


def config(base: dict[str, Any] = VIT, *, vision: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """Return a model configuration: ``base`` with vision and top-level entries replaced."""
    made = deepcopy(base) | top
    made["vision_cfg"] |= vision or {}
    return made


def model_of(model_cfg: dict[str, Any], seed: int = 0) -> Any:
    """Return open_clip's own model with random weights that are not at their symmetric start."""
    made = deepcopy(model_cfg)
    custom = made.pop("custom_text", False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**made)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def write_folder(
    folder: Path,
    model_cfg: dict[str, Any] = VIT,
    *,
    state: dict[str, torch.Tensor] | None = None,
    **preprocess: Any,
) -> Path:
    """Write ``open_clip_config.json`` and weights; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    )
    state = model_of(model_cfg).state_dict() if state is None else state
    save_file(
        {name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors"
    )
    return folder
