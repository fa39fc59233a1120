"""The engine with the real data and models: image files to a trained, saved and reloaded classifier."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_standins import same_bits
from PIL import Image

from dualtail.data.loader import eval_loader, train_loader
from dualtail.data.manifest import Manifest
from dualtail.data.readers import read_manifest
from dualtail.data.transforms import build_augmentation, eval_transform
from dualtail.engine.finetune import finetune
from dualtail.engine.inference import infer, member_evaluation
from dualtail.engine.settings import FinetuneSettings
from dualtail.errors import DataError, Interrupted
from dualtail.logits.losses import build_loss
from dualtail.models.classifier import Classifier, build_classifier, load_classifier
from dualtail.models.zero_shot import ZeroShotClassifier

NAMES = ["red", "green", "blue"]
SETTINGS = FinetuneSettings(epochs=3, learning_rate=0.02, mixup=0.2, ema_decay=0.9, precision="fp32")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Noisy images of three colours, long-tailed for training."""
    root = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for split, counts in (("train", (24, 12, 6)), ("val", (5, 5, 5))):
        for label, count in enumerate(counts):
            folder = root / split / NAMES[label]
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (40, 48, 3))
                pixels[..., label] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return read_manifest("folder", root)


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    spec = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": spec}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"open_clip:{folder}"


def classifier_for(manifest: Manifest, architecture: str) -> Classifier:
    return build_classifier(architecture, manifest.class_names, weights="random", tuner="adaptformer")


def train(manifest: Manifest, classifier: Classifier, **options: object):
    spec = classifier.backbone.image_spec
    training = manifest.split("train")
    loader = train_loader(training, build_augmentation(spec), batch_size=8, epochs=3, workers=0)
    loss = build_loss("la", counts=torch.from_numpy(manifest.counts("train")))
    evaluate = member_evaluation(validation(manifest, classifier), device="cpu", precision="fp32")
    return finetune(classifier, loader, loss, SETTINGS, evaluate=evaluate, device="cpu", **options)


def validation(manifest: Manifest, classifier: Classifier):
    transforms = {"val": eval_transform(classifier.backbone.image_spec)}
    return eval_loader(manifest.split("val"), transforms, batch_size=4, workers=0)


def test_resumed_on_real_images_to_the_bit(tmp_path: Path, manifest: Manifest, architecture: str) -> None:
    def press(told) -> None:
        if told.step == 8:
            signal.raise_signal(signal.SIGINT)

    whole, fresh = (classifier_for(manifest, architecture) for _ in range(2))
    expected = train(manifest, whole)
    with pytest.raises(Interrupted):
        train(manifest, classifier_for(manifest, architecture), checkpoint_dir=tmp_path, progress=press)
    result = train(manifest, fresh, checkpoint_dir=tmp_path)
    assert result.resumed_from == 8
    assert same_bits(whole.trainable_state(), fresh.trainable_state())
    assert [epoch["val"] for epoch in result.history] == [epoch["val"] for epoch in expected.history]
    assert result.num_parameters == sum(value.numel() for value in fresh.trainable_parameters().values())


def test_saved_classifier_and_zero_shot_in_one_pass(
    tmp_path: Path, manifest: Manifest, architecture: str
) -> None:
    classifier = classifier_for(manifest, architecture)
    train(manifest, classifier)
    classifier.save(tmp_path)
    backbone = classifier_for(manifest, architecture).backbone
    members = {
        "trained": classifier,
        "reloaded": load_classifier(tmp_path),
        "zero_shot": ZeroShotClassifier(backbone, torch.eye(3, 16)),
    }
    loader = validation(manifest, classifier)
    outputs = infer(members, loader, device="cpu", precision="fp32", features="float16")
    assert torch.equal(outputs["trained"].logits, outputs["reloaded"].logits)
    assert {name: tuple(output.logits.shape) for name, output in outputs.items()} == dict.fromkeys(
        members, (15, 3)
    )
    assert outputs["zero_shot"].features.shape == (15, 32)
    assert outputs["trained"].labels.tolist() == manifest.split("val").labels.tolist()


def test_an_unreadable_image_stops_training_by_its_name(tmp_path: Path, architecture: str) -> None:
    for label in NAMES:
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40), label).save(tmp_path / "train" / label / "good.png")
    (tmp_path / "train" / "red" / "bad.png").write_bytes(b"no image")
    manifest = read_manifest("folder", tmp_path)
    classifier = classifier_for(manifest, architecture)
    transform = build_augmentation(classifier.backbone.image_spec)
    loader = train_loader(manifest.split("train"), transform, batch_size=2, workers=0)
    with pytest.raises(DataError, match=r"bad\.png"):
        finetune(classifier, loader, torch.nn.CrossEntropyLoss(), SETTINGS, device="cpu")
