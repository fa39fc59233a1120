"""A small foundation model to check on: an open_clip model of two towers with random weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 3, "width": 32, "patch_size": 8, "image_size": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@contextmanager
def backbone_name(chosen: str | None) -> Iterator[str]:
    """Yield the name of the backbone to check on: the one chosen, or that of a small CLIP of three blocks."""
    if chosen is not None:
        yield chosen
        return
    with tempfile.TemporaryDirectory() as folder:
        config = json.dumps({"model_cfg": _MODEL, "preprocess_cfg": {}})
        (Path(folder) / "open_clip_config.json").write_text(config, encoding="utf-8")
        yield f"open_clip:{folder}"
