"""The models of a run: what each is called, and how it looks, everywhere the same.

A backbone has a colour, a seed a symbol. The colours are Okabe and Ito's, which the colour-blind tell apart;
vermillion is kept for what suffers (the few), black for the ensemble. Names such as ``var(--m0)`` are looked up in the
style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dualtail.logits.metrics import Evaluation
from dualtail.runs.finished import RunResults

PALETTE_SIZE = 6  # colours that the style sheet has
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon")
GROUP_COLORS = {"many": "var(--many)", "medium": "var(--medium)", "few": "var(--few)"}
GROUP_SYMBOLS = {"many": "circle", "medium": "square", "few": "triangle-up"}
ENSEMBLE_COLOR = "var(--ink)"


Kind = Literal["zero_shot", "member", "ensemble"]


@dataclass(frozen=True)
class RunModel:
    """A model of a run.

    Attributes:
        kind: what it is.
        name: of the backbone or member.
        label: how it is called on the page.
        evaluation: by the groups that all models of the run share.
    """

    kind: Kind
    name: str
    label: str
    evaluation: Evaluation


@dataclass(frozen=True)
class ModelStyle:
    """How a model of a run is drawn.

    Attributes:
        kind: what it is.
        name: of the backbone or member.
        label: how it is called on the page.
        color: a CSS colour.
        symbol: a Plotly symbol.
    """

    kind: Kind
    name: str
    label: str
    color: str
    symbol: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the page."""
        return asdict(self)


def run_models(results: RunResults) -> list[RunModel]:
    """Return the models of a run: zero-shot ones, members and, where there are several, the ensemble."""
    models = [
        RunModel("zero_shot", backbone.name, f"zero-shot {backbone.name}", backbone.common_metrics)
        for backbone in results.backbones
        if backbone.common_metrics is not None
    ]
    models += [
        RunModel("member", member.name, member.name, member.common_metrics) for member in results.members
    ]
    if len(results.members) > 1:
        models.append(RunModel("ensemble", "adjusted", "ensemble", results.metrics))
    return models


def backbone_colors(runs: Sequence[RunResults]) -> dict[str, int]:
    """Return the place in the palette of every backbone of several runs, in order of appearance."""
    names = dict.fromkeys(backbone.name for run in runs for backbone in run.backbones)
    return {name: place for place, name in enumerate(names)}


def color_of(backbone: str, colors: dict[str, int]) -> str:
    """Return the CSS colour of a backbone."""
    return f"var(--m{colors[backbone] % PALETTE_SIZE})"


def model_styles(results: RunResults, colors: dict[str, int]) -> list[ModelStyle]:
    """Return how each of :func:`run_models` looks: zero-shot ones hollow, members filled, the ensemble black."""
    backbone_of = {member.name: member.backbone for member in results.members}
    seen: dict[str, int] = {}
    styles = []
    for model in run_models(results):
        color, symbol = ENSEMBLE_COLOR, "diamond"
        if model.kind != "ensemble":
            backbone = model.name if model.kind == "zero_shot" else backbone_of[model.name]
            place = 0
            if model.kind == "member":
                place = seen[backbone] = seen.get(backbone, -1) + 1
            color = color_of(backbone, colors)
            symbol = SYMBOLS[(colors[backbone] // PALETTE_SIZE + place) % len(SYMBOLS)]
        symbol += "-open" if model.kind == "zero_shot" else ""
        styles.append(ModelStyle(model.kind, model.name, model.label, color, symbol))
    return styles
