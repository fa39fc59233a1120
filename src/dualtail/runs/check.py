"""Everything that is wrong with a recipe and its data, and what the run would take, before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dualtail.data.manifest import Manifest
from dualtail.data.problems import DataFaults
from dualtail.engine.precision import autocast, resolve_precision
from dualtail.errors import BackboneError, DualtailError, RecipeError
from dualtail.logits.losses import LOSSES
from dualtail.models.backbone import load_backbone
from dualtail.models.classifier import Classifier, build_classifier
from dualtail.process_group import resolve_device
from dualtail.runs.choices import find_choice_faults, reader_stands
from dualtail.runs.dataset import build_manifest, evaluation_split, find_missing_val, find_problems
from dualtail.runs.members import BackbonePlan, plan_backbones, plan_members
from dualtail.runs.observer import Observer, PatientProgress
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import read_recipe

TRIAL_IMAGES = 16
TRIAL_SECONDS = 2.0


@dataclass
class RecipeCheck:
    """What :func:`check_recipe` found.

    Attributes:
        facts: (name, sentence) of what the run will do and take.
        warnings: what may mislead.
        faults: what keeps the run from starting.
    """

    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, deep: bool = False, observer: Observer | None = None
) -> RecipeCheck:
    """Look at a recipe, its data and its backbones, and collect every fault.

    The cost is measured: a few batches go through each backbone on the device that the run would use. Weights are
    loaded, as the run would; nothing is written.

    Args:
        path: the recipe file.
        overrides: as for :func:`~dualtail.runs.recipe_file.read_recipe`.
        deep: decode every image rather than read its header alone.
        observer: hears how far it is.
    """
    observer = observer or Observer()
    result = RecipeCheck()
    try:
        recipe = read_recipe(path, overrides)
    except RecipeError as error:
        result.faults += error.faults or [str(error)]
        return result
    choice_faults = find_choice_faults(recipe)
    result.faults += choice_faults
    manifest = _check_data(recipe, result, deep, observer)
    usable = _check_backbones(recipe, manifest, result, observer, choices_stand=not choice_faults)
    if manifest is not None:
        result.faults += find_missing_val(recipe, manifest)
    if manifest is not None and not result.faults:
        try:
            _estimate(recipe, manifest, usable, result)
        except DualtailError as error:
            result.faults.append(str(error))
    return result


def _check_data(recipe: Recipe, result: RecipeCheck, deep: bool, observer: Observer) -> Manifest | None:
    if not reader_stands(recipe.data):
        return None  # said among the choices already
    observer.stage("data: reading every image" if deep else "data")
    try:
        manifest = build_manifest(
            recipe.data, recipe.seed, PatientProgress(observer, "decoding every image once")
        )
    except DataFaults as error:
        result.faults += map(str, error.problems)
        return None
    except DualtailError as error:
        result.faults.append(str(error))
        return None
    for problem in find_problems(manifest, recipe.data, deep=deep, headers=True, progress=observer.progress):
        (result.faults if problem.severity == "error" else result.warnings).append(str(problem))
    sizes = ", ".join(f"{size:,} {name}" for name, size in manifest.split_sizes.items())
    counts = manifest.counts("train")
    result.facts.append(("data", f"{manifest.num_classes:,} classes; images: {sizes}"))
    result.facts.append(("train", f"{counts.max():,} to {counts.min():,} images a class"))
    result.facts += [("note", note) for note in manifest.notes]
    return manifest


def _check_backbones(
    recipe: Recipe, manifest: Manifest | None, result: RecipeCheck, observer: Observer, *, choices_stand: bool
) -> dict[BackbonePlan, Classifier]:
    """Build each backbone's classifier as fine-tuning would; where other choices are wrong, the backbone alone."""
    usable = {}
    names = manifest.class_names if manifest is not None else ("a", "b")
    try:
        members = plan_members(recipe)
    except RecipeError:
        return {}  # said among the choices already
    for plan in plan_backbones(members):
        observer.stage(f"backbone: {plan.name}")
        try:
            backbone = load_backbone(plan.backbone, weights=plan.weights, image_size=plan.image_size)
            if not backbone.has_text:
                _refuse_what_needs_text(recipe, plan)
            if choices_stand:
                usable[plan] = build_classifier(backbone, names, **recipe.finetune.classifier_options)
        except DualtailError as error:
            if str(error) not in result.faults:  # a tuner's fault is every backbone's
                result.faults.append(str(error))
    return usable


def _refuse_what_needs_text(recipe: Recipe, plan: BackbonePlan) -> None:
    tuned = recipe.finetune
    for loss in tuned.losses:
        if loss.name in LOSSES and "pretrain_prior" in LOSSES[loss.name].needs:
            raise BackboneError(
                f"has no text tower, hence no prior for the loss {loss.name}",
                where=plan.name,
                fix="choose the loss la",
            )
    if tuned.head.init == "text":
        raise BackboneError(
            "has no text tower to start the head from", where=plan.name, fix="set finetune.head.init to auto"
        )


def _estimate(
    recipe: Recipe, manifest: Manifest, usable: dict[BackbonePlan, Classifier], result: RecipeCheck
) -> None:
    device = resolve_device(recipe.runtime.device)
    precision = resolve_precision(recipe.runtime.precision, device)
    members = plan_members(recipe)
    second = recipe.finetune.second_stage
    epochs, train = recipe.finetune.epochs + (second.epochs if second else 0), manifest.split_sizes["train"]
    evaluated = sum(size for name, size in manifest.split_sizes.items() if name != "train")
    seconds, stored = 0.0, 0
    for plan, classifier in usable.items():
        runs = sum(member.backbone == plan for member in members)
        trained = sum(weight.numel() for weight in classifier.trainable_parameters().values())
        total = sum(weight.numel() for weight in classifier.parameters())
        forward, step = _trial(classifier.to(device), device, precision)
        passes = (runs + classifier.backbone.has_text) * recipe.evaluate.crops
        seconds += runs * epochs * train * step + passes * evaluated * forward
        features = classifier.backbone.feature_dim
        stored += runs * (4 * trained + evaluated * (4 * manifest.num_classes + 2 * features))
        stored += evaluated * (4 * manifest.num_classes + 2 * features) * classifier.backbone.has_text
        result.facts.append(
            (plan.name, f"{total:,} parameters, {trained:,} trained ({recipe.finetune.tuner.name} and head)"
             + (f", {runs} seeds" if runs > 1 else "")
             + ("" if classifier.backbone.has_text else "; no text tower: no zero-shot logits, no prior of its own"))
        )  # fmt: skip
        classifier.cpu()
    split = evaluation_split(manifest)
    result.facts += [
        ("run", f"{len(members)} members x {epochs} epochs of {train:,} images; measured on {split}"),
        ("stores", f"about {stored / 2**20:,.0f} MiB"),
        (
            "takes",
            f"about {_rough(seconds)} of computing on {device} in {precision}, if reading images keeps up",
        ),
    ]


def _trial(classifier: Classifier, device: torch.device, precision: str) -> tuple[float, float]:
    """Return seconds an image of a forward pass and of a training step, measured on random images."""
    size = classifier.backbone.image_spec.size
    images = torch.randint(0, 256, (TRIAL_IMAGES, 3, size, size), dtype=torch.uint8, device=device)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, precision):
            classifier(images)

    def step() -> None:
        with autocast(device, precision):
            classifier(images).square().mean().backward()

    timings = []
    for work in (forward, step):
        work()  # the first call allocates
        start, rounds = time.perf_counter(), 0
        while rounds < 3 and time.perf_counter() - start < TRIAL_SECONDS:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rounds += 1
        timings.append((time.perf_counter() - start) / rounds / TRIAL_IMAGES)
    classifier.zero_grad(set_to_none=True)
    return timings[0], timings[1]


def _rough(seconds: float) -> str:
    """Return a duration to about one digit, which is all that an estimate is worth."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 2):.0f} seconds"
