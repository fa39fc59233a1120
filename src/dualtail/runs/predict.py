"""Answers of a finished run's adjusted ensemble for images it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualtail.data.images import IMAGE_SUFFIXES
from dualtail.data.loader import OnBadImage, eval_loader
from dualtail.data.manifest import Manifest
from dualtail.data.transforms import eval_transform
from dualtail.engine.inference import infer
from dualtail.engine.precision import resolve_device
from dualtail.errors import DataError, InputError
from dualtail.logits.backdoor import backdoor_adjust
from dualtail.models.classifier import load_classifier
from dualtail.runs.analysis import read_member_prior
from dualtail.runs.members import plan_members
from dualtail.runs.observer import Observer
from dualtail.runs.store import RunDirectory


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image.

    Attributes:
        path: the image, as it was given.
        classes: (class name, probability) of the ensemble, likeliest first.
    """

    path: str
    classes: tuple[tuple[str, float], ...]


def find_images(places: Sequence[str | Path]) -> list[str]:
    """Return the image files among ``places`` and in their folders, in order, each once.

    Raises:
        DataError: a place does not exist, or a folder holds no image.
    """
    found: dict[str, None] = {}
    for place in map(Path, places):
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise DataError("holds no image", where=str(place), fix="give image files or folders of them")
            found |= dict.fromkeys(map(str, files))
        elif place.exists():
            found[str(place)] = None
        else:
            raise DataError("there is no such file or folder", where=str(place))
    return list(found)


def predict_images(
    run: str | Path,
    images: Sequence[str],
    *,
    top: int = 1,
    device: str = "auto",
    on_bad_image: OnBadImage = "error",
    observer: Observer | None = None,
) -> list[Prediction]:
    """Classify image files with a run's adjusted ensemble, each image read once for all members.

    Args:
        run: the run directory.
        images: paths of image files.
        top: how many classes to give for each.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        on_bad_image: ``"error"``, or ``"skip"`` to leave out an image that cannot be read, with a note.
        observer: hears how far it is.

    Raises:
        RunError: the run is not finished.
        DataError: an image cannot be read.
    """
    if top < 1:
        raise InputError(f"top is {top}", fix="give at least 1")
    observer = observer or Observer()
    directory = RunDirectory.read(run)
    prior, recipe = read_member_prior(directory), directory.recipe
    plans = plan_members(recipe)
    where = resolve_device(device)
    members = {plan.name: load_classifier(directory.member_dir(plan.name), device=where) for plan in plans}
    names = members[plans[0].name].class_names
    files = Manifest(
        Path.cwd(), tuple(images), np.zeros(len(images), np.int64), np.full(len(images), "test"), names
    )
    transforms = {
        name: eval_transform(recipe.data.image_spec(member.backbone.image_spec), crops=recipe.evaluate.crops)
        for name, member in members.items()
    }
    loader = eval_loader(
        files,
        {transform.key: transform for transform in transforms.values()},
        batch_size=recipe.runtime.eval_batch_size,
        workers=0 if len(images) < 32 else None,
        on_bad_image=on_bad_image,
    )
    outputs = infer(
        members,
        loader,
        crops={name: transform.key for name, transform in transforms.items()},
        device=where,
        precision=recipe.finetune.precision,
        progress=lambda now: observer.progress(now.done, now.total),
    )
    for path in loader.skipped:
        observer.note(f"{path} could not be read and was left out")
    first = outputs[plans[0].name]
    scores = backdoor_adjust([outputs[plan.name].logits for plan in plans], weights=prior)
    best = scores.softmax(-1).topk(min(top, len(names)))
    return [
        Prediction(images[row], tuple((names[c], p) for c, p in zip(classes, probabilities, strict=True)))
        for row, classes, probabilities in zip(
            first.index.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
