"""What each member looks at: maps of images before and after tuning, side by side, and how alike they are."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from dualtail.files import read_json, reading
from dualtail.report.model_styles import color_of
from dualtail.report.report_table import Column, Estimate, ReportTable
from dualtail.report.words import count
from dualtail.runs.finished import RunResults
from dualtail.runs.results import Row

_QUALITY = 75
# How a table calls a pair of models, by what they are.
_PAIRS = {
    ("zero_shot", "zero_shot"): "two backbones before tuning",
    ("member", "member"): "two members after tuning",
    ("zero_shot", "member"): "a member before and after tuning",
}


@dataclass(frozen=True)
class ModelMaps:
    """Maps of a run's models.

    Attributes:
        sentence: what the figures say.
        similarity: correlation of the maps of every two models that it makes sense to compare.
        data: for the page's script.
    """

    sentence: str
    similarity: ReportTable
    data: dict[str, Any]


def read_maps(results: RunResults, colors: dict[str, int]) -> ModelMaps | None:
    """Return the maps of a run, or None if its recipe wants none or it has none of its models.

    Raises:
        RunError: a file of them cannot be read.
    """
    files = results.run.attribution
    wanted = results.recipe.evaluate.attribution is not None
    records = results.run.records
    if not wanted or not records.has(files.about) or not records.has(files.maps):
        return None
    about = read_json(results.run.verified(files.about), dict)
    maps = results.run.verified(files.maps)
    with reading(files.folder):
        # Those of an earlier recipe may still lie there.
        if {(item["kind"], item["name"]) for item in about["models"]} != _models(results):
            return None
        return _shown(results, about, load_file(maps), colors)


def _models(results: RunResults) -> set[tuple[str, str]]:
    untuned = {
        ("zero_shot", backbone.name) for backbone in results.backbones if backbone.info.get("has_text")
    }
    return untuned | {("member", member.name) for member in results.members}


def _shown(
    results: RunResults, about: Row, tensors: dict[str, NDArray[Any]], colors: dict[str, int]
) -> ModelMaps:
    similarity = similarity_table(results, about)
    return ModelMaps(
        sentence=_sentence(similarity, about),
        similarity=similarity,
        data={
            "models": [_model(results, item, tensors, colors) for item in about["models"]],
            "images": [_jpeg(image) for image in tensors["images"]],
            "files": about["images"],
            "labels": about["labels"],
            "worst": [how == "worst" for how in about["chosen"]],
        },
    )


def similarity_table(results: RunResults, about: Row) -> ReportTable:
    """Return how alike the maps of two models are: of two backbones, two members, a member before and after."""
    backbone_of = {member.name: member.backbone for member in results.members}
    rows: list[Row] = []
    for item in about["similarity"]:
        (kind, name), (other_kind, other) = item["a"], item["b"]
        what = _PAIRS.get((kind, other_kind))
        if what is None or (kind != other_kind and backbone_of.get(other) != name):
            continue
        low, high = item["ci"] or (None, None)
        correlation = Estimate(item["correlation"], low, high, item["n"])
        rows.append({"what": what, "a": name, "b": other, "correlation": correlation})
    rows.sort(key=lambda row: list(_PAIRS.values()).index(row["what"]))
    columns = [
        Column("what", "maps of"),
        Column("a", ""),
        Column("b", "and"),
        Column("correlation", "correlation", "correlation"),
    ]
    confidence = 100 * results.recipe.evaluate.confidence
    note = (
        f"Mean correlation of the maps' cells over the images drawn at random, with {confidence:g} % intervals: 1 for "
        "models that look at the same parts, 0 for parts that have nothing to do with each other."
    )
    return ReportTable("similarity", "How alike the maps are", columns, rows, note)


def _sentence(similarity: ReportTable, about: Row) -> str:
    drawn = about["chosen"].count("random")
    parts = []
    for what in _PAIRS.values():
        values = [row["correlation"].value for row in similarity.rows if row["what"] == what]
        if values:
            low, high = (f"{value:.2f}".replace("-0.00", "0.00") for value in (min(values), max(values)))
            parts.append(f"the maps of {what} correlate by {low if low == high else f'{low} to {high}'}")
    gaps = [item["gap"] for item in about["models"]]
    exact = f"The cells of a map add up to the score within {max(gaps):.2g} nats on average." if gaps else ""
    if not parts:
        return exact
    return f"Over {count(drawn, 'image')} drawn at random, {'; '.join(parts)}. {exact}"


def _model(
    results: RunResults, item: Row, tensors: dict[str, NDArray[Any]], colors: dict[str, int]
) -> dict[str, Any]:
    """Return one model's maps, each as bytes from -127 to 127 of its own largest cell, in base64."""
    name, kind = item["name"], item["kind"]
    backbone = (
        {member.name: member.backbone for member in results.members}[name] if kind == "member" else name
    )
    maps = tensors[f"{kind}.{name}"].astype(np.float64)
    largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
    scaled = np.round(127 * np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0))
    return {
        "name": name,
        "kind": kind,
        "backbone": backbone,
        "color": color_of(backbone, colors),
        "symbol": "circle-open" if kind == "zero_shot" else "circle",
        "label": f"{name}, {'before' if kind == 'zero_shot' else 'after'}",
        "cells": item["cells"],
        "truth": [round(float(np.exp(score)), 4) for score in item["score"]],
        "maps": [base64.b64encode(cells.astype(np.int8).tobytes()).decode("ascii") for cells in scaled],
    }


def _jpeg(image: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(
        file, "JPEG", quality=_QUALITY, optimize=True
    )
    return base64.b64encode(file.getvalue()).decode("ascii")
