"""Fine-tuning of members on the lab's task in memory: the engine's loop, without image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualtail.data.samplers import epoch_order
from dualtail.engine.finetune import finetune
from dualtail.engine.settings import FinetuneSettings
from dualtail.lab.corpus import Sample
from dualtail.lab.probes import TEMPLATES, features_of
from dualtail.lab.world import World
from dualtail.logits.losses import build_loss
from dualtail.logits.prior import LabelPrior
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import build_classifier
from dualtail.models.head_init import text_weight
from dualtail.models.text import class_text_features, zero_shot_logits

# The demo's recipe has the same values; the models are small, so the steps are larger than LIFT's.
EPOCHS, BATCH, LEARNING_RATE, WIDTH = 6, 64, 0.05, 16


@dataclass(frozen=True)
class _Batch:
    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


class MemoryLoader:
    """Batches of a sample in memory, in the order that the data room's loader would give them.

    Args:
        sample: images and labels.
        num_classes: C.
        batch_size: images of a batch.
        sampling: as of ``dualtail.data.samplers``.
        seed: of the order.
        epochs: of the whole training, for progressive sampling.
    """

    def __init__(
        self, sample: Sample, num_classes: int, *, batch_size: int, sampling: str, seed: int, epochs: int
    ) -> None:
        self.images, self.labels = torch.from_numpy(sample.images), sample.labels
        self.num_classes, self.batch_size, self.sampling = num_classes, batch_size, sampling
        self.seed, self.epochs, self.epoch, self.skip = seed, epochs, 0, 0

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self.labels) // self.batch_size)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Choose what the next iteration gives."""
        self.epoch, self.skip = epoch, skip_batches

    def __iter__(self) -> Iterator[_Batch]:
        order = epoch_order(
            self.labels, self.num_classes, self.sampling, seed=self.seed, epoch=self.epoch, epochs=self.epochs
        )
        rows = torch.from_numpy(order)
        for index in list(rows.split(self.batch_size))[self.skip :]:
            yield _Batch(self.images[index], torch.from_numpy(self.labels)[index], index)


@dataclass(frozen=True)
class Outputs:
    """What a model gives for each split, before fine-tuning or after.

    Attributes:
        logits: split to ``(N, C)``.
        features: split to ``(N, D)``.
    """

    logits: dict[str, Tensor]
    features: dict[str, Tensor]


def open_backbone(folder: str | Path) -> Backbone:
    """Load a model of the lab."""
    return load_backbone(f"open_clip:{folder}")


def zero_shot(backbone: Backbone, world: World, splits: dict[str, Sample]) -> Outputs:
    """Return a foundation model's zero-shot logits and its features of every split."""
    text = class_text_features(backbone, world.class_names, TEMPLATES)
    features = {name: features_of(backbone, sample.images) for name, sample in splits.items()}
    return Outputs(
        {name: zero_shot_logits(backbone, value, text) for name, value in features.items()}, features
    )


def tune(
    folder: str | Path,
    world: World,
    splits: dict[str, Sample],
    *,
    loss: str = "la",
    loss_options: dict[str, Any] | None = None,
    sampling: str = "instance",
    pretrain_prior: LabelPrior | None = None,
    seed: int = 0,
    epochs: int = EPOCHS,
    answer: Sequence[str] = ("val", "test"),
) -> Outputs:
    """Fine-tune a model of the lab with LIFT's recipe (AdaptFormer, cosine head from text) and return what it says.

    Args:
        folder: the model.
        world: names the classes.
        splits: as of ``draw_task``.
        loss: see ``build_loss``.
        loss_options: its options.
        sampling: of the training images.
        pretrain_prior: for the losses that take one.
        seed: of tuner and order.
        epochs: passes over the training set.
        answer: the splits to answer for.
    """
    backbone = open_backbone(folder)
    classifier = build_classifier(
        backbone, world.class_names, tuner="adaptformer", tuner_options={"width": WIDTH}, seed=seed
    )
    classifier.head.set_weight(
        text_weight(backbone, class_text_features(backbone, world.class_names, TEMPLATES))
    )
    train = splits["train"]
    counts = torch.bincount(torch.from_numpy(train.labels), minlength=world.classes)
    finetune(
        classifier,
        MemoryLoader(train, world.classes, batch_size=BATCH, sampling=sampling, seed=seed, epochs=epochs),
        build_loss(loss, counts=counts, pretrain_prior=pretrain_prior, **(loss_options or {})),
        FinetuneSettings(epochs=epochs, learning_rate=LEARNING_RATE, seed=seed, precision="fp32"),
        device="cpu",
    )
    classifier.eval()
    features = {name: features_of(classifier, splits[name].images) for name in answer}
    with torch.no_grad():
        return Outputs({name: classifier.head(value) for name, value in features.items()}, features)
