"""How a model looks, everywhere the same: a colour for its backbone, a symbol for its seed.

The colours are Okabe and Ito's, which the colour-blind tell apart; vermillion is kept for what suffers (the few),
black for the ensemble. Names such as ``var(--m0)`` are looked up in the style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dualtail.report.results import RunResults

# As many as the style sheet has.
PALETTE_SIZE = 6
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon")
GROUP_COLORS = {"many": "var(--many)", "medium": "var(--medium)", "few": "var(--few)"}
GROUP_SYMBOLS = {"many": "circle", "medium": "square", "few": "triangle-up"}
ENSEMBLE_COLOR = "var(--ink)"


@dataclass(frozen=True)
class Look:
    """A model of a run and how it is drawn.

    Attributes:
        kind: what it is.
        name: of the backbone or member.
        label: how it is called on the page.
        color: a CSS colour.
        symbol: a Plotly symbol.
    """

    kind: Literal["zero_shot", "member", "ensemble"]
    name: str
    label: str
    color: str
    symbol: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the page."""
        return asdict(self)


def backbone_colors(runs: Sequence[RunResults]) -> dict[str, int]:
    """Return the place in the palette of every backbone of several runs, in order of appearance."""
    names = dict.fromkeys(name for run in runs for name in _backbone_names(run))
    return {name: place for place, name in enumerate(names)}


def _backbone_names(results: RunResults) -> list[str]:
    return [backbone.name for backbone in results.backbones] + [member.backbone for member in results.members]


def color_of(backbone: str, colors: dict[str, int]) -> str:
    """Return the CSS colour of a backbone."""
    return f"var(--m{colors[backbone] % PALETTE_SIZE})"


def model_looks(results: RunResults, colors: dict[str, int]) -> list[Look]:
    """Return the models of a run: zero-shot ones (hollow), members (filled) and the ensemble (black)."""
    looks = [
        Look(
            "zero_shot",
            backbone.name,
            f"zero-shot {backbone.name}",
            color_of(backbone.name, colors),
            _symbol(colors[backbone.name] // PALETTE_SIZE) + "-open",
        )
        for backbone in results.backbones
        if backbone.metrics
    ]
    seen: dict[str, int] = {}
    for member in results.members:
        place = seen[member.backbone] = seen.get(member.backbone, -1) + 1
        symbol = _symbol(colors[member.backbone] // PALETTE_SIZE + place)
        looks.append(Look("member", member.name, member.name, color_of(member.backbone, colors), symbol))
    if len(results.members) > 1:
        looks.append(Look("ensemble", "adjusted", "ensemble", ENSEMBLE_COLOR, "diamond"))
    return looks


def _symbol(place: int) -> str:
    return SYMBOLS[place % len(SYMBOLS)]
