"""Extract ``data/losses.safetensors`` from the reference files of the authors' training code.

    python tests/parity/make_losses.py DIRECTORY

DIRECTORY holds ``base.safetensors`` and one ``NAME.safetensors`` for each way of tuning a tiny CLIP with fixed
random weights, as the reference code computed them. Kept of each: the logits of its 6 images (20 classes), the
value of every loss and its gradient with respect to the logits; and from ``base`` the labels, class counts and
pre-training prior (a file's own prior where it has one).
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

TUNERS = ("adapter", "adaptformer", "bias", "lora", "none", "ssf", "vpt_deep", "vpt_shallow")
INPUTS = ("in.label", "in.cls_num_list", "in.pretrain_prior")


def extract(directory: Path) -> dict:
    base = load_file(directory / "base.safetensors")
    kept = {}
    for tuner in TUNERS:
        tensors = load_file(directory / f"{tuner}.safetensors")
        for name in INPUTS:
            kept[f"{tuner}/{name}"] = tensors.get(name, base[name]).clone()
        for name, tensor in tensors.items():
            if name == "out.logits" or name.startswith(("loss.", "dlogits.")):
                kept[f"{tuner}/{name}"] = tensor
    return kept


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    save_file(extract(Path(sys.argv[1])), Path(__file__).parent / "data" / "losses.safetensors")
