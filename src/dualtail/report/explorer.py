"""The data of the class explorer: a column for everything known of each class, its confusions, its worst images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualtail.logits.groups import GROUP_NAMES
from dualtail.logits.prior import LabelPrior
from dualtail.report.looks import Look, model_looks
from dualtail.report.results import Row, RunResults
from dualtail.report.samples import Samples
from dualtail.report.thumbnails import Thumbnails, make_thumbnails, worst_images

_CONFUSED = 5  # classes listed on each side


def class_columns(results: RunResults, samples: Samples | None, colors: dict[str, int]) -> Row:
    """Return what the page knows of the classes, column by column.

    Groups are 0 (many), 1 (medium), 2 (few); a prior is given as ``log(P(y) C)``, so that 0 is uniform.

    Args:
        results: the run.
        samples: the answers of its models, for the confusions.
        colors: place in the palette of each backbone.
    """
    classes = results.classes
    columns: Row = {
        "names": classes.names,
        "train": classes.counts.get("train") or classes.group_counts,
        "test": _test_sizes(results),
        "d": [GROUP_NAMES.index(name) for name in classes.d_groups],
        "p": None if classes.p_groups is None else [GROUP_NAMES.index(name) for name in classes.p_groups],
        "sure": _certainty(results),
        "priors": _priors(results),
        "models": [
            {**look.to_dict(), "correct": correct}
            for look in model_looks(results, colors)
            if (correct := _correct(results, look)) is not None
        ],
        "takenFor": None,
        "mistaken": None,
    }
    if samples is not None:
        columns["takenFor"] = confusions(samples.labels, samples.ensemble.prediction, len(classes))
        columns["mistaken"] = confusions(samples.ensemble.prediction, samples.labels, len(classes))
    return columns


def _test_sizes(results: RunResults) -> list[int]:
    if results.per_class:
        return [row.get("n_test") or 0 for row in results.per_class]
    return results.metrics.get("per_class", {}).get("n") or [0] * len(results.classes)


def _correct(results: RunResults, look: Look) -> list[int | None] | None:
    """Return how many test images of each class a model got right, from the metrics of the run."""
    if look.kind == "zero_shot":
        backbone = results.backbone(look.name)
        metrics = backbone.metrics if backbone else None
    elif look.kind == "member":
        metrics = next((member.metrics for member in results.members if member.name == look.name), None)
    else:
        metrics = results.metrics
    table = (metrics or {}).get("per_class")
    return None if table is None else table["correct"]


def _certainty(results: RunResults) -> list[float] | None:
    """Return the probability of each class's P-group, given the standard errors of the mean prior."""
    if results.membership is None or results.classes.p_groups is None:
        return None
    return [
        round(row[GROUP_NAMES.index(name)], 3)
        for row, name in zip(results.membership, results.classes.p_groups, strict=True)
    ]


def _priors(results: RunResults) -> list[Row]:
    known: list[tuple[str, LabelPrior]] = [
        (b.name, b.prior) for b in results.backbones if b.prior is not None
    ]
    if results.prior is not None and len(known) > 1:
        known.append(("mean of the members", results.prior))
    shift = math.log(max(len(results.classes), 1))
    return [
        {
            "name": name,
            "log": [round(value + shift, 4) for value in prior.log_prob.tolist()],
            "se": None
            if prior.standard_errors is None
            else [round(value, 4) for value in prior.standard_errors.tolist()],
        }
        for name, prior in known
    ]


def confusions(
    own: NDArray[np.int64], other: NDArray[np.int64], num_classes: int, most: int = _CONFUSED
) -> list[list[int]]:
    """Return for each class of ``own`` the classes of ``other`` that it meets most often, itself left out.

    Args:
        own: ``(N,)`` classes.
        other: ``(N,)`` classes.
        num_classes: C.
        most: classes to name.

    Returns:
        ``C`` flat lists ``[class, count, class, count, ...]``, most frequent first.

    Example:
        >>> confusions(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1]), 2)
        [[1, 2], []]
    """
    apart = own != other
    pairs, counts = np.unique(own[apart] * num_classes + other[apart], return_counts=True)
    first, second = pairs // num_classes, pairs % num_classes
    order = np.lexsort((second, -counts, first))
    found: list[list[int]] = [[] for _ in range(num_classes)]
    for place in order.tolist():
        row = found[int(first[place])]
        if len(row) < 2 * most:
            row += [int(second[place]), int(counts[place])]
    return found


def image_data(results: RunResults, samples: Samples | None, budget: int) -> tuple[Row, str]:
    """Return the worst images of every class for the page, and a sentence on what is missing.

    Args:
        results: the run.
        samples: the answers of its models.
        budget: bytes of pictures; 0 for none.

    Returns:
        ``{"models": names, "classes": {class: [[picture, file name, P(truth), confidence, [class, ...]], ...]}}``,
        where the last are the predictions of the ensemble and of each member.
    """
    empty: Row = {"models": [], "classes": {}}
    if samples is None:
        return empty, "The logits of this run are not there, so its images cannot be ranked."
    if not budget:
        return empty, "The page was written without images."
    rows = worst_images(samples, len(results.classes))
    thumbnails = make_thumbnails(rows, samples, image_root(results), budget)
    if not thumbnails.pictures:
        return empty, f"The test images were not found under {image_root(results)}, so none are shown."
    models = list(samples.members)
    content: dict[int, list[Any]] = {}
    for index, found in enumerate(rows):
        shown = [
            _image(row, samples, models, thumbnails) for row in found.tolist() if row in thumbnails.pictures
        ]
        if shown:
            content[index] = shown
    return {"models": models, "classes": content}, _missing(thumbnails)


def _image(row: int, samples: Samples, models: Sequence[str], thumbnails: Thumbnails) -> list[Any]:
    predictions = [samples.ensemble.prediction[row]] + [
        samples.members[name].prediction[row] for name in models
    ]
    return [
        thumbnails.pictures[row],
        samples.sample_ids[row],
        round(float(samples.ensemble.truth[row]), 3),
        round(float(samples.ensemble.confidence[row]), 3),
        [int(value) for value in predictions],
    ]


def _missing(thumbnails: Thumbnails) -> str:
    if thumbnails.left_out > 0:
        return (
            f"{len(thumbnails.pictures):,} of the {thumbnails.wanted:,} worst images have a picture, those of the "
            "weakest classes first; the rest would make the page too large."
        )
    if thumbnails.unreadable:
        return f"{thumbnails.unreadable:,} of the worst images could not be read."
    return ""


def image_root(results: RunResults) -> Path:
    """Return the folder that the names of a run's images start from."""
    data = results.provenance.get("data") or {}
    return Path(data.get("image_root") or data.get("root") or results.recipe.data.root)
