"""Writes ``data/member_v1``: a backbone, a member trained on it, and its logits, in the first format version.

Run once for each format version, from the repository's root: ``python tests/models/make_member.py``. The directories of
earlier versions stay as they are, and ``test_stored_members.py`` reads them all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from dualtail.models.classifier import FORMAT_VERSION, build_classifier

TEXT = {"context_length": 8, "vocab_size": 32, "width": 8, "heads": 1, "layers": 1}
VISION = {"layers": 2, "width": 16, "patch_size": 8, "image_size": 16, "head_width": 8}


def images() -> torch.Tensor:
    """Return two fixed images ``(2, 3, 16, 16)`` uint8."""
    return (torch.arange(2 * 3 * 16 * 16) * 37 % 256).to(torch.uint8).reshape(2, 3, 16, 16)


def main() -> None:
    folder = Path(__file__).parent / "data" / f"member_v{FORMAT_VERSION}"
    backbone = tiny.write_folder(folder / "backbone", tiny.config(vision=VISION, text_cfg=TEXT, embed_dim=8))
    member = build_classifier(f"open_clip:{backbone}", ["cat", "dog", "van"], tuner_options={"width": 2})
    with torch.no_grad():
        for parameter in member.trainable_parameters().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        # The folder's place differs from machine to machine; the fingerprint says which weights these are.
        member.backbone.name = "open_clip:./backbone"
        member.save(folder)
        save_file({"logits": member(images())}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
