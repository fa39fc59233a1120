"""Write a finished run directory in seconds: synthetic logits, and what the run's own code makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from dualtail.data.manifest import Manifest
from dualtail.engine.finetune import FinetuneResult
from dualtail.files import write_json
from dualtail.imagespec import ImageSpec
from dualtail.logits.prior import LabelPrior
from dualtail.runs.directory import RunDirectory
from dualtail.runs.evaluation import choose_member_prior
from dualtail.runs.logits_file import SplitLogits, write_logits
from dualtail.runs.provenance import write_provenance
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import parse_recipe
from dualtail.runs.stages.attribution import write_attribution
from dualtail.runs.stages.evaluate import write_evaluation

NAMES = ("clip", "openclip", "metaclip")
FEATURES = 16


def make_run(
    root: Path,
    *,
    classes: int = 12,
    test_per_class: int = 10,
    val_per_class: int = 8,
    backbones: Sequence[str] = NAMES,
    seeds: Sequence[int] = (0,),
    names: Sequence[str] | None = None,
    images: Path | None = None,
    file_name: str = "{label:04d}/{number:03d}.png",
    seed: int = 0,
    text: bool = True,
    changes: dict[str, Any] | None = None,
    attribution: bool = False,
) -> Path:
    """Write a finished run of ``len(backbones) * len(seeds)`` members and return its directory.

    Members see the classes' truth through noise, rare classes less well; a backbone's zero-shot logits carry its own
    prior. Runs that differ in ``seed`` alone have the same images and backbones.

    Args:
        root: the run directory.
        classes: how many, where ``names`` does not say.
        test_per_class: test images a class.
        val_per_class: val images a class.
        backbones: their names.
        seeds: one member each for every backbone.
        names: of the classes.
        images: folder to draw the images in; nothing is drawn by default.
        file_name: of an image below its split's folder.
        seed: of what members see, and of the recipe.
        text: whether the backbones have a text tower.
        changes: sections of the recipe.
        attribution: also write maps of what (stand-ins for) the models look at; needs ``images``.
    """
    names = list(names or [f"class {index:04d}" for index in range(classes)])
    recipe = make_recipe(root, backbones, seeds, seed, changes or {}, images or root / "images")
    run = RunDirectory.open(root, recipe, update=True)
    run.close()
    manifest = make_manifest(Path(recipe.data.root), names, val_per_class, test_per_class, file_name)
    if images is not None:
        for split in ("val", "test"):
            part = manifest.split(split)
            for row, label in enumerate(part.labels.tolist()):
                draw_image(Path(part.file(row)), label)

    world = torch.Generator().manual_seed(99)
    for number, plan in enumerate(run.backbones):
        write_backbone(run, plan.name, manifest, text, world)
        for member in run.members:
            if member.backbone == plan:
                write_member(
                    run, member.name, plan.name, member.seed, manifest, 1000 * (number + 1) + member.seed
                )
    conclude(run, manifest, attribution=attribution)
    for number, member in enumerate(run.members):
        run.records.add(f"finetune/{member.name}", "inputs", [run.member(member.name).training], 3.0 + number)
    run.finish()
    return root


def conclude(run: RunDirectory, manifest: Manifest, *, attribution: bool = False) -> None:
    """Write what a run concludes from its logits, as its stages do."""
    names = [member.name for member in run.members]
    write_json(
        run.adjusted.weights, {"members": names, **choose_member_prior(run, manifest.class_names).to_dict()}
    )
    run.records.add("adjust", "inputs", [run.adjusted.weights], 1.5)
    if attribution:
        keys = [("zero_shot", plan.name) for plan in run.backbones if run.has_text(plan)]
        keys += [("member", name) for name in names]
        models = {key: partial(StandIn, number, manifest.num_classes) for number, key in enumerate(keys)}
        write_attribution(run, manifest.split("test"), "test", models, images=10, steps=4, device="cpu")
    write_provenance(
        run.provenance,
        data={"fingerprint": "f" * 20, "root": str(manifest.root), "splits": manifest.split_sizes},
        seeds=[member.seed for member in run.members],
    )
    run.records.add("evaluate", "inputs", write_evaluation(run, manifest, "test"), 1.5)


class StandIn(nn.Module):
    """A small convolutional network in place of a foundation model."""

    def __init__(self, seed: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 5, 4), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, classes)
        )
        self.backbone = SimpleNamespace(
            image_spec=ImageSpec(size=28), normalize=lambda images: images / 127.5 - 1
        )

    def forward(self, images: Tensor) -> Tensor:
        return 5 * self.layers(images)


def make_recipe(
    root: Path,
    backbones: Sequence[str],
    seeds: Sequence[int],
    seed: int,
    changes: dict[str, Any],
    images: Path,
) -> Recipe:
    members = [
        {
            "backbone": f"open_clip:tiny/{name}",
            "weights": "random",
            "name": name,
            "seeds": [seed + s for s in seeds],
        }
        for name in backbones
    ]
    return parse_recipe(
        {"name": root.name, "seed": seed, "data": {"root": str(images)}, "members": members, **changes}
    )


def make_manifest(
    root: Path, names: Sequence[str], val_per_class: int, test_per_class: int, file_name: str
) -> Manifest:
    classes = len(names)
    train = np.maximum(np.round(200 * (1 / 50) ** (np.arange(classes) / max(classes - 1, 1))), 2).astype(int)
    paths, labels, splits = [], [], []
    for split, sizes in (
        ("train", train),
        ("val", [val_per_class] * classes),
        ("test", [test_per_class] * classes),
    ):
        for label, size in enumerate(sizes):
            for number in range(size):
                paths.append(f"{split}/{file_name.format(label=label, number=number)}")
                labels.append(label)
                splits.append(split)
    notes = (f"{val_per_class} images a class were held out of train for val",)
    return Manifest(root, tuple(paths), np.array(labels), np.array(splits), tuple(names), notes)


def write_backbone(
    run: RunDirectory, name: str, manifest: Manifest, text: bool, world: torch.Generator
) -> None:
    files = run.backbone(name)
    classes = manifest.num_classes
    info = {"name": name, "backbone": f"open_clip:tiny/{name}", "weights": None, "family": "open_clip_vit",
            "has_text": text, "feature_dim": FEATURES, "image_size": 32, "parameters": 123456,
            "weights_fingerprint": "0123456789ab"}  # fmt: skip
    write_json(files.info, info)
    bias = 0.9 * torch.randn(classes, generator=world)
    splits = {}
    for split in ("val", "test"):
        part = manifest.split(split)
        labels = torch.from_numpy(part.labels)
        logits = noisy_logits(labels, classes, 2.2, world) + bias
        splits[split] = SplitLogits(
            logits, labels, part.sample_ids, make_features(labels, classes, 1.0, world)
        )
    if not text:
        return
    write_logits(files.zero_shot, splits)
    # The truth and a plausible error stand in for an estimate, which is tested elsewhere.
    errors = 0.1 + 0.2 * torch.rand(classes, generator=world, dtype=torch.float64)
    prior = LabelPrior(bias.double().log_softmax(0), errors, source="zero_shot", num_samples=8 * classes)
    write_json(files.prior, prior.to_dict())


def write_member(
    run: RunDirectory, name: str, backbone: str, seed: int, manifest: Manifest, noise: int
) -> None:
    generator = torch.Generator().manual_seed(noise)
    classes = manifest.num_classes
    train = torch.from_numpy(manifest.counts("train")).double()
    skill = (train.log() / train.log().max()).float()
    splits = {}
    for split in ("val", "test"):
        part = manifest.split(split)
        labels = torch.from_numpy(part.labels)
        logits = noisy_logits(labels, classes, 1.6 + 1.8 * skill[labels], generator)
        splits[split] = SplitLogits(
            logits, labels, part.sample_ids, make_features(labels, classes, 2.0, generator)
        )
    write_logits(run.member(name).logits, splits)
    history = tuple(
        {"epoch": epoch, "loss": 2.0 / epoch, "accuracy": 0.3 * epoch, "seconds": 1.5} for epoch in (1, 2)
    )
    training = FinetuneResult(history, 20, None, "last", 3.0, 2400, "fp32", "cpu", 1, 4567)
    write_json(run.member(name).training, {**training.to_dict(), "backbone": backbone, "seed": seed})


def noisy_logits(
    labels: Tensor, classes: int, strength: float | Tensor, generator: torch.Generator
) -> Tensor:
    logits = torch.randn(len(labels), classes, generator=generator)
    # A class is mostly taken for its neighbour, so that confusions have a structure.
    rows = torch.arange(len(labels))
    logits[rows, (labels + 1) % classes] += 1.0
    logits[rows, labels] += strength
    return 1.5 * logits


def make_features(labels: Tensor, classes: int, strength: float, generator: torch.Generator) -> Tensor:
    centres = torch.randn(classes, FEATURES, generator=torch.Generator().manual_seed(5))
    return (strength * centres[labels] + torch.randn(len(labels), FEATURES, generator=generator)).half()


def draw_image(path: Path, label: int) -> None:
    """Draw something that a person tells apart: the class's number on its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red, green, blue = (60 + (37 * (label + 1) * step) % 160 for step in (1, 2, 3))
    image = Image.new("RGB", (48, 40), (red, green, blue))
    ImageDraw.Draw(image).text((14, 12), str(label), fill="white")
    image.save(path)
