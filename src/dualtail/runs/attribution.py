"""What each model of a run looks at: maps of chosen images before and after tuning, and how much they differ.

Some images are the worst of the weakest classes, to look at; the others are drawn at random, and the figures of how
alike the maps of two models are come from these alone, so that they speak of the whole split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dualtail.data.loader import Batch, eval_loader
from dualtail.data.manifest import Manifest
from dualtail.data.transforms import eval_transform
from dualtail.engine.attribution import AttributionMaps, Differentiable, attribution_maps, map_correlation
from dualtail.logits.backdoor import backdoor_adjust
from dualtail.logits.intervals import normal_quantile
from dualtail.runs.analysis import Logits, read_member_prior
from dualtail.runs.members import MemberPlan
from dualtail.runs.store import RunDirectory, atomic_path, read_logits, write_json

RANDOM_IMAGES = 24
WEAK_CLASSES, WORST_OF_CLASS = 6, 2
_SHOWN_SIDE = 112  # of the stored images, in pixels, at most
_BATCH = 12

LoadModel = Callable[[], Differentiable]
Row = dict[str, Any]


def attribute_run(
    run: RunDirectory,
    manifest: Manifest,
    members: Sequence[MemberPlan],
    split: str,
    models: Mapping[tuple[str, str], LoadModel],
    *,
    images: int = RANDOM_IMAGES,
    steps: int = 16,
    device: str | torch.device = "auto",
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Path]:
    """Write ``attribution/maps.safetensors`` and ``attribution/attribution.json``; return the two files.

    Args:
        run: a run whose logits and P(c) are on disk.
        manifest: its images.
        members: its members.
        split: the split that its results are measured on.
        models: ``("zero_shot", backbone)`` and ``("member", name)`` to a function that loads the model; one at a
            time is held. Backbones without text tower have no score of a class: leave them out.
        images: images drawn at random; those of the weakest classes come on top.
        steps: points of the integral.
        device: where the work is done.
        progress: called with (done, total, text).
    """
    logits = Logits(run, members, split)
    scores = backdoor_adjust(logits.of_members, weights=read_member_prior(run))
    rows, chosen = choose_images(scores, logits.labels, images, run.recipe.seed)
    # Logits leave unreadable images out, so their rows are found by name.
    part = manifest.split(split)
    place = {name: row for row, name in enumerate(part.sample_ids)}
    names = read_logits(run.member_dir(members[0].name) / "logits.safetensors", split).sample_ids
    picked = part.select([place[names[row]] for row in rows.tolist()])

    found: dict[tuple[str, str], AttributionMaps] = {}
    shown: Tensor | None = None
    for key, load in models.items():
        if progress is not None:
            progress(len(found), len(models), key[1])
        model = load()
        # One cut for all, also for models of squashed images: maps are compared place by place.
        spec = replace(run.recipe.data.image_spec(model.backbone.image_spec), squash=False)
        transform = eval_transform(spec)
        loader = eval_loader(picked, {transform.key: transform}, batch_size=_BATCH, workers=0)
        if shown is None:
            shown = torch.cat([_shrink(views_of(batch)[transform.key]) for batch in loader])
        found[key] = attribution_maps({"": model}, loader, steps=steps, device=device)[""]
    folder = run.root / "attribution"
    _write_maps(folder / "maps.safetensors", found, shown)
    write_json(
        folder / "attribution.json",
        {
            "split": split,
            "steps": steps,
            "images": list(picked.sample_ids),
            "labels": picked.labels.tolist(),
            "chosen": chosen,
            "models": [_describe(key, maps) for key, maps in found.items()],
            "similarity": _similarities(found, chosen, run.recipe.evaluate.confidence),
        },
    )
    return [folder / "maps.safetensors", folder / "attribution.json"]


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


def _write_maps(path: Path, found: Mapping[tuple[str, str], AttributionMaps], shown: Tensor | None) -> None:
    tensors = {f"{kind}.{name}": maps.maps.contiguous() for (kind, name), maps in found.items()}
    if shown is not None:
        tensors["images"] = shown.contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "dualtail-attribution-1"})


def _describe(key: tuple[str, str], maps: AttributionMaps) -> Row:
    return {
        "kind": key[0],
        "name": key[1],
        "cells": maps.maps.shape[1],
        "score": [round(value, 5) for value in maps.score.tolist()],
        "gap": round(float(maps.gap.mean()), 5),
    }


def _similarities(
    found: Mapping[tuple[str, str], AttributionMaps], chosen: Sequence[str], confidence: float
) -> list[Row]:
    """Return the mean correlation of every two models' maps over the images drawn at random, with its interval."""
    drawn = torch.tensor([how == "random" for how in chosen])
    rows = []
    for first, second in combinations(found, 2):
        alike = map_correlation(found[first].maps[drawn], found[second].maps[drawn])
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
