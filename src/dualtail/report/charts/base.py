"""What a chart is: a Plotly figure in plain dictionaries, which the page's script colours and draws; and its pieces.

Colours are names of the style sheet's variables (``var(--m0)``, or ``var(--m0)/0.25`` to let through), so that one
figure serves light, dark and paper. Numbers in ``customdata`` are classes: the script writes their names as the text
of the points, and a click on one opens the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualtail.report.model_styles import ModelStyle
from dualtail.report.report_table import Estimate
from dualtail.runs.finished import RunResults

Figure = dict[str, Any]

# So many classes have room for their names.
NAMED_CLASSES = 24


@dataclass(frozen=True)
class Chart:
    """A figure with its place on the page.

    Attributes:
        key: its name.
        caption: how to read it.
        figure: ``{"data": [...], "layout": {...}}``.
        height: in pixels.
    """

    key: str
    caption: str
    figure: Figure
    height: int = 340


def marker_of(style: ModelStyle) -> Figure:
    """Return the point of a model, that of the ensemble larger."""
    return {"color": style.color, "symbol": style.symbol, "size": 11 if style.kind == "ensemble" else 9}


def error_bars(cells: Sequence[Estimate], color: str) -> Figure:
    """Return the intervals of accuracies in per cent, as distances from them."""

    def distance(cell: Estimate, bound: float | None) -> float:
        return 0.0 if bound is None or cell.value is None else round(100 * abs(bound - cell.value), 3)

    return {
        "type": "data",
        "symmetric": False,
        "array": [distance(cell, cell.high) for cell in cells],
        "arrayminus": [distance(cell, cell.low) for cell in cells],
        "color": color,
        "thickness": 1.5,
        "width": 0,
    }


def level(y: float) -> Figure:
    """Return a dotted line to compare with."""
    return _across(y, {"color": "var(--rule)", "dash": "dot", "width": 1.5})


def divider(y: float) -> Figure:
    """Return a line between two rows."""
    return _across(y, {"color": "var(--grid)", "width": 1})


def _across(y: float, line: Figure) -> Figure:
    """Return a line at ``y`` over the whole width, behind the points."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": line,
        "layer": "below",
    }


def class_axis(results: RunResults, order: NDArray[np.int64], title: str) -> Figure:
    """Return an axis of classes in ``order``, with their names where there is room."""
    if len(order) > NAMED_CLASSES:
        return {"title": {"text": title}}
    names = [results.classes.names[index] for index in order.tolist()]
    ticks = [plain(name if len(name) <= 16 else f"{name[:15]}…") for name in names]
    return {
        "title": {"text": title},
        "tickvals": list(range(1, len(order) + 1)),
        "ticktext": ticks,
        "showgrid": False,
    }


def plain(text: str) -> str:
    """Return text that Plotly, which knows some HTML, shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "%\u200b{")


def percent(value: float | None) -> float | None:
    """Return a fraction in per cent."""
    return None if value is None else round(100 * value, 4)


def rounded(values: NDArray[Any]) -> list[float | None]:
    """Return four significant digits, None for what is not a number."""
    return [None if value != value else float(f"{value:.4g}") for value in values.tolist()]
