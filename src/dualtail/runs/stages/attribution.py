"""What each model of a run looks at: maps of chosen images before and after tuning, and how much they differ.

Some images are the worst of the weakest classes, to look at; the others are drawn at random, and the figures of how
alike the maps of two models are come from these alone, so that they speak of the whole split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dualtail.data.loader import Batch, eval_loader
from dualtail.data.manifest import Manifest
from dualtail.data.transforms import eval_transform
from dualtail.engine.integrated_gradients import (
    AttributionMaps,
    Differentiable,
    attribution_maps,
    map_correlation,
)
from dualtail.files import write_json, write_tensors
from dualtail.logits.backdoor import backdoor_adjust
from dualtail.logits.intervals import normal_quantile
from dualtail.runs.directory import RunDirectory
from dualtail.runs.evaluation import read_member_prior
from dualtail.runs.logits_file import ModelKey, RunLogits
from dualtail.runs.stages.adjust import AdjustStage, adjust_inputs
from dualtail.runs.stages.base import MODEL_PACKAGES, ONCE, Stage
from dualtail.runs.stages.finetune import FinetuneStage
from dualtail.runs.stages.logits import LogitsStage
from dualtail.runs.stages.zero_shot import ZeroShotStage

RANDOM_IMAGES = 24
WEAK_CLASSES, WORST_OF_CLASS = 6, 2
_SHOWN_SIDE = 112  # of the stored images, in pixels, at most
_BATCH = 12

LoadModel = Callable[[], Differentiable]
Row = dict[str, Any]


class AttributionStage(Stage):
    """Maps of what each model looks at, before and after tuning, for the report."""

    name, title = "attribution", "attribution"
    packages = MODEL_PACKAGES

    def units(self) -> Sequence[str]:
        """Return the one unit, or none where the recipe wants no maps."""
        return ONCE if self.context.recipe.evaluate.attribution is not None else ()

    def inputs(self, unit: str) -> str:
        """Return the fingerprint of the models and of which maps are wanted."""
        recipe, wanted = self.context.recipe, self.context.recipe.evaluate.attribution
        assert wanted is not None  # else there is no unit
        drawn = [wanted.model_dump(mode="json"), recipe.seed, recipe.evaluate.confidence]
        return self.stamp(adjust_inputs(self.context), drawn)

    def sources(self, unit: str) -> Sequence[str]:
        """Return the trained members, their logits and P(c)."""
        records, stages = self.context.run.records, (ZeroShotStage, FinetuneStage, LogitsStage, AdjustStage)
        return [key for stage in stages for key in records.of_stage(stage.name)]

    def outputs(self, unit: str) -> Sequence[Path]:
        """Return the maps and what they are of."""
        return [self.context.run.attribution.maps, self.context.run.attribution.about]

    def write(self, unit: str, computed: Any) -> Sequence[Path]:
        """Work out and write the maps."""
        context, wanted = self.context, self.context.recipe.evaluate.attribution
        assert wanted is not None
        write_attribution(
            context.run,
            context.evaluated[context.split],
            context.split,
            self._models(),
            images=wanted.images,
            steps=wanted.steps,
            device=context.device,
            progress=context.observer.progress,
        )
        return self.outputs(unit)

    def _models(self) -> dict[ModelKey, LoadModel]:
        """Return how to load each model that has scores of the classes."""
        context = self.context
        untuned = {
            ("zero_shot", plan.name): partial(self._zero_shot, plan.name)
            for plan in context.run.backbones
            if context.run.has_text(plan)
        }
        tuned = {("member", m.name): partial(context.load_member, m.name) for m in context.run.members}
        return {**untuned, **tuned}

    def _zero_shot(self, name: str) -> Differentiable:
        context = self.context
        return context.zero_shot_classifier(context.load_backbone(context.backbone_plan(name)))


def write_attribution(
    run: RunDirectory,
    evaluated: Manifest,
    split: str,
    models: Mapping[ModelKey, LoadModel],
    *,
    images: int = RANDOM_IMAGES,
    steps: int = 16,
    device: str | torch.device = "auto",
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write the maps of a run's models, and what they are of.

    Args:
        run: a run whose logits and P(c) are on disk.
        evaluated: the images that its results are measured on.
        split: what they are called.
        models: how to load each model; one at a time is held. Backbones without text tower have no score of a class:
            leave them out.
        images: images drawn at random; those of the weakest classes come on top.
        steps: points of the integral.
        device: where the work is done.
        progress: called with (done, total, text).
    """
    logits = RunLogits(run, split, evaluated.class_names)
    scores = backdoor_adjust(logits.of_members, weights=read_member_prior(run))
    rows, chosen = choose_images(scores, logits.labels, images, run.recipe.seed)
    # Logits leave unreadable images out, so their rows are found by name.
    row_of = {name: row for row, name in enumerate(evaluated.sample_ids)}
    picked = evaluated.select([row_of[logits.sample_ids[row]] for row in rows.tolist()])

    maps: dict[ModelKey, AttributionMaps] = {}
    shown: Tensor | None = None
    for key, load in models.items():
        if progress is not None:
            progress(len(maps), len(models), key[1])
        model = load()
        # One cut for all, also for models of squashed images: maps are compared place by place.
        spec = replace(run.recipe.data.image_spec(model.backbone.image_spec), squash=False)
        transform = eval_transform(spec)
        loader = eval_loader(picked, {transform.key: transform}, batch_size=_BATCH, workers=0)
        if shown is None:
            shown = torch.cat([_shrink(views_of(batch)[transform.key]) for batch in loader])
        maps[key] = attribution_maps({"": model}, loader, steps=steps, device=device)[""]
    tensors = {f"{kind}.{name}": own.maps for (kind, name), own in maps.items()}
    tensors |= {} if shown is None else {"images": shown}
    write_tensors(run.attribution.maps, tensors, {"format": "dualtail-attribution-1"})
    about = {
        "split": split,
        "steps": steps,
        "images": list(picked.sample_ids),
        "labels": picked.labels.tolist(),
        "chosen": chosen,
        "models": [_describe(key, own) for key, own in maps.items()],
        "similarity": _similarities(maps, chosen, run.recipe.evaluate.confidence),
    }
    write_json(run.attribution.about, about)


def choose_images(
    scores: Tensor, labels: Tensor, images: int, seed: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Return rows to look at, and for each whether it is one of the ``worst`` or drawn at ``random``.

    Args:
        scores: ``(N, C)`` of the ensemble.
        labels: ``(N,)``.
        images: how many to draw at random.
        seed: of the draw.

    Example:
        >>> scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
        >>> rows, chosen = choose_images(scores, torch.tensor([0, 0, 1, 1]), images=0, seed=0)
        >>> rows.tolist(), chosen[0]   # both classes are half right; the second is more surely wrong
        ([2, 3, 1, 0], 'worst')
    """
    truth = scores.log_softmax(1).gather(1, labels[:, None])[:, 0].numpy()
    right = (scores.argmax(1) == labels).numpy()
    label = labels.numpy()
    present = np.unique(label)
    weakness = [
        (right[label == index].mean(), truth[label == index].mean(), index) for index in present.tolist()
    ]
    worst = [
        int(row)
        for _, _, index in sorted(weakness)[:WEAK_CLASSES]
        for row in sorted(np.flatnonzero(label == index), key=lambda row: truth[row])[:WORST_OF_CLASS]
    ]
    rest = np.setdiff1d(np.arange(len(label)), worst)
    drawn = np.random.default_rng([seed, 6]).permutation(rest)[:images]
    return np.array([*worst, *drawn.tolist()], dtype=np.int64), ["worst"] * len(worst) + ["random"] * len(
        drawn
    )


def views_of(batch: Batch) -> dict[str, Tensor]:
    """Return a batch's images by the key of their transform."""
    assert isinstance(batch.images, dict)  # as those of an eval loader are
    return batch.images


def _shrink(images: Tensor) -> Tensor:
    """Return uint8 ``(B, 3, S, S)`` no larger than what is shown."""
    side = images.shape[-1]
    if side <= _SHOWN_SIDE:
        return images
    small = F.interpolate(images.float(), size=(_SHOWN_SIDE, _SHOWN_SIDE), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def _describe(key: ModelKey, maps: AttributionMaps) -> Row:
    return {
        "kind": key[0],
        "name": key[1],
        "cells": maps.maps.shape[1],
        "score": [round(value, 5) for value in maps.score.tolist()],
        "gap": round(float(maps.gap.mean()), 5),
    }


def _similarities(
    maps: Mapping[ModelKey, AttributionMaps], chosen: Sequence[str], confidence: float
) -> list[Row]:
    """Return the mean correlation of every two models' maps over the images drawn at random, with its interval."""
    drawn = torch.tensor([how == "random" for how in chosen])
    rows = []
    for first, second in combinations(maps, 2):
        alike = map_correlation(maps[first].maps[drawn], maps[second].maps[drawn])
        known = alike[~alike.isnan()].double()
        if not len(known):
            continue
        mean = float(known.mean())
        row: Row = {"a": list(first), "b": list(second), "correlation": mean, "n": len(known), "ci": None}
        if len(known) > 1:
            half = normal_quantile(confidence) * float(known.std()) / len(known) ** 0.5
            row["ci"] = [max(mean - half, -1.0), min(mean + half, 1.0)]
        rows.append(row)
    return rows
