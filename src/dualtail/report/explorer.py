"""The data of the class explorer: a column for everything known of each class, its confusions, its worst images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualtail.logits.groups import GROUP_NAMES
from dualtail.logits.intervals import normal_quantile
from dualtail.logits.metrics import ClassTable
from dualtail.report.model_styles import model_styles, run_models
from dualtail.report.samples import Samples
from dualtail.report.tables.members import known_priors
from dualtail.report.thumbnails import Thumbnails, make_thumbnails, worst_images
from dualtail.runs.finished import RunResults
from dualtail.runs.results import Row

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
    tables = [model.evaluation.per_class for model in run_models(results)]
    measured = results.metrics.per_class
    columns: Row = {
        "names": classes.names,
        "train": classes.train_counts,
        "test": [0] * len(classes) if measured is None else measured.n.tolist(),
        "d": [GROUP_NAMES.index(name) for name in classes.d_groups],
        "p": None if classes.p_groups is None else [GROUP_NAMES.index(name) for name in classes.p_groups],
        "sure": _certainty(results),
        "priors": _priors(results),
        "models": [
            {**style.to_dict(), "correct": table.correct.tolist()}
            for style, table in zip(model_styles(results, colors), tables, strict=True)
            if table is not None
        ],
        "intervals": _intervals([table for table in tables if table is not None]),
        "takenFor": None,
        "mistaken": None,
    }
    if samples is not None:
        columns["takenFor"] = confusions(samples.labels, samples.ensemble.prediction, len(classes))
        columns["mistaken"] = confusions(samples.ensemble.prediction, samples.labels, len(classes))
    return columns


def _intervals(tables: Sequence[ClassTable]) -> dict[str, list[float]]:
    """Return the interval of every accuracy that occurs, by "right/all": thousands of classes share a few."""
    return {
        f"{right}/{n}": [round(low, 5), round(high, 5)]
        for table in tables
        for right, n, low, high in zip(
            table.correct.tolist(),
            table.n.tolist(),
            table.ci_low.tolist(),
            table.ci_high.tolist(),
            strict=True,
        )
        if n
    }


def _certainty(results: RunResults) -> list[float] | None:
    """Return the probability of each class's P-group, given the standard errors of the mean prior."""
    groups = results.groups
    if groups is None or groups.membership is None or results.classes.p_groups is None:
        return None
    return [
        round(row[GROUP_NAMES.index(name)], 3)
        for row, name in zip(groups.membership, results.classes.p_groups, strict=True)
    ]


def _priors(results: RunResults) -> list[Row]:
    """Return every prior as ``log(P(y) C)``, with the half width of its interval."""
    shift, z = math.log(len(results.classes)), normal_quantile(results.recipe.evaluate.confidence)
    return [
        {
            "name": name,
            "log": [round(value + shift, 4) for value in prior.log_prob.tolist()],
            "margin": None
            if prior.standard_errors is None
            else [round(z * value, 4) for value in prior.standard_errors.tolist()],
        }
        for name, prior in known_priors(results, mean=True)
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
    met: list[list[int]] = [[] for _ in range(num_classes)]
    for place in order.tolist():
        row = met[int(first[place])]
        if len(row) < 2 * most:
            row += [int(second[place]), int(counts[place])]
    return met


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
    data = results.recipe.data
    thumbnails = make_thumbnails(
        rows,
        samples,
        image_root(results),
        budget,
        allow_outside=data.allow_outside,
        max_pixels=data.max_pixels,
    )
    if not thumbnails.pictures:
        return empty, f"The test images were not found under {image_root(results)}, so none are shown."
    models = list(samples.members)
    content: dict[int, list[Any]] = {}
    for index, worst in enumerate(rows):
        shown = [
            _image(row, samples, models, thumbnails) for row in worst.tolist() if row in thumbnails.pictures
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
