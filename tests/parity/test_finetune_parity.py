"""The training loop itself against three steps of the reference's SGD, with AdaptFormer and the LA loss.

Tolerance: 1e-4 of the tensor's largest entry, as for the models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualtail.engine.finetune import finetune
from dualtail.engine.settings import FinetuneSettings
from dualtail.logits.losses import build_loss
from dualtail.models.classifier import Classifier, build_classifier

DATA = Path(__file__).parent / "data"


class OneBatch:
    """The reference's batch, again in every epoch."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.batch = SimpleNamespace(images=images, labels=labels, index=torch.arange(len(labels)))

    def __len__(self) -> int:
        return 1

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        pass

    def __iter__(self) -> Iterator[SimpleNamespace]:
        yield self.batch


def our_name(theirs: str) -> str:
    """``tuner.adaptformer_list.0.down_proj.weight`` is ``tuner.blocks.0.down.weight`` here."""
    renamed = theirs.replace("adaptformer_list.", "blocks.").replace(".ln.", ".norm.")
    return renamed.replace("down_proj", "down").replace("up_proj", "up")


def reference_classifier(folder: Path, reference: dict[str, Tensor]) -> Classifier:
    config = json.loads((DATA / "adaptformer.json").read_text())["config"] | {"quick_gelu": True}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    weights = {
        name.removeprefix("clip."): value.float() for name, value in reference.items() if "clip." in name
    }
    save_file(weights, folder / "open_clip_model.safetensors")
    classifier = build_classifier(f"open_clip:{folder}", [f"class {number}" for number in range(20)])
    start = {name: value for name, value in reference.items() if name.startswith(("tuner.", "head."))}
    classifier.load_trainable_state({our_name(name): value for name, value in start.items()})
    return classifier


def test_three_steps_of_sgd(tmp_path: Path) -> None:
    reference = load_file(DATA / "base.safetensors") | load_file(DATA / "adaptformer.safetensors")
    classifier = reference_classifier(tmp_path, reference)
    loader = OneBatch(reference["in.image"], reference["in.label"])
    loss = build_loss("la", counts=reference["in.cls_num_list"])
    settings = FinetuneSettings(epochs=3, schedule="constant", precision="fp32")
    result = finetune(classifier, loader, loss, settings, device="cpu")
    assert abs(result.history[0]["loss"] - float(reference["loss.LA"])) < 1e-4
    for name, expected in reference.items():
        if name.startswith("sgd3."):
            found = classifier.trainable_parameters()[our_name(name.removeprefix("sgd3."))]
            tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(found.detach(), expected, rtol=0, atol=tolerance)
