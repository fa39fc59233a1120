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
from dualtail.errors import DataError, InputError
from dualtail.logits.backdoor import backdoor_adjust
from dualtail.models.classifier import load_classifier
from dualtail.process_group import resolve_device
from dualtail.runs.directory import RunDirectory
from dualtail.runs.evaluation import read_member_prior
from dualtail.runs.observer import Observer


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image.

    Attributes:
        path: the image, as it was given.
        classes: (class name, probability) of the ensemble, likeliest first.
    """

    path: str
    classes: tuple[tuple[str, float], ...]


def find_images(paths: Sequence[str | Path]) -> list[str]:
    """Return the image files among ``paths`` and in their folders, in order, each once.

    Raises:
        DataError: a path does not exist, or a folder holds no image.
    """
    images: dict[str, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            files = sorted(file for file in found if not file.is_dir())
            if not files:
                raise DataError("holds no image", where=str(path), fix="give image files or folders of them")
            images |= dict.fromkeys(map(str, files))
        elif path.exists():
            images[str(path)] = None
        else:
            raise DataError("there is no such file or folder", where=str(path))
    return list(images)


def predict_images(
    run: str | Path,
    images: Sequence[str],
    *,
    top: int = 1,
    device: str = "auto",
    on_bad_image: OnBadImage = "error",
    max_pixels: int | None = None,
    observer: Observer | None = None,
) -> list[Prediction]:
    """Classify image files with a run's adjusted ensemble, each image read once for all members.

    Args:
        run: the run directory.
        images: paths of image files.
        top: how many classes to give for each.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        on_bad_image: ``"error"``, or ``"skip"`` to leave out an image that cannot be read, with a note.
        max_pixels: of an image, at most; None takes the recipe's limit.
        observer: hears how far it is.

    Raises:
        RunError: the run is not finished, or a file of it is not as it was written.
        DataError: an image cannot be read.
    """
    if top < 1:
        raise InputError(f"top is {top}", fix="give at least 1")
    observer = observer or Observer()
    directory = RunDirectory.read(run)
    stale = directory.standing()
    if stale:
        observer.note(stale)
    prior, recipe = read_member_prior(directory), directory.recipe
    plans = directory.members
    where = resolve_device(device)
    members = {plan.name: load_classifier(directory.classifier(plan.name), device=where) for plan in plans}
    names = members[plans[0].name].class_names
    files = Manifest(
        Path.cwd(),
        tuple(images),
        np.zeros(len(images), np.int64),
        np.full(len(images), "test"),
        names,
        max_pixels=max_pixels or recipe.data.max_pixels,
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
    try:
        outputs = infer(
            members,
            loader,
            crops={name: transform.key for name, transform in transforms.items()},
            device=where,
            precision=recipe.runtime.precision,
            progress=lambda now: observer.progress(now.done, now.total),
        )
    except InputError:
        if len(loader.skipped) < len(images):
            raise
        raise DataError(f"none of {len(images)} images can be read", where=loader.skipped[0]) from None
    if loader.skipped:
        one, count = len(loader.skipped) == 1, len(loader.skipped)
        observer.note(
            f"{count} image{'' if one else 's'} could not be read and {'was' if one else 'were'} left out, the first "
            f"{loader.skipped[0]}"
        )
    first = outputs[plans[0].name]
    scores = backdoor_adjust([outputs[plan.name].logits for plan in plans], weights=prior)
    best = scores.softmax(-1).topk(min(top, len(names)))
    return [
        Prediction(images[row], tuple((names[c], p) for c, p in zip(classes, probabilities, strict=True)))
        for row, classes, probabilities in zip(
            first.index.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
