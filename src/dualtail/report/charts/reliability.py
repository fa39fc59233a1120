"""Reliability: how often a confidence comes true."""

from __future__ import annotations

import numpy as np

from dualtail.logits.calibration import ReliabilityCurve
from dualtail.logits.groups import GROUP_NAMES
from dualtail.logits.intervals import proportion_interval
from dualtail.report.charts.base import Chart, Figure, plain, rounded
from dualtail.report.model_styles import GROUP_COLORS, GROUP_SYMBOLS, model_styles
from dualtail.report.samples import Samples, reliability
from dualtail.report.words import GROUP_TITLES
from dualtail.runs.finished import RunResults

# A calibration bin with fewer images says nothing.
_FEWEST_IN_BIN = 5


def reliability_charts(results: RunResults, samples: Samples, colors: dict[str, int]) -> list[Chart]:
    """Return calibration curves: of every member and the ensemble, and of the ensemble by D- and P-group."""
    confidence = results.recipe.evaluate.confidence
    curves = []
    for style in model_styles(results, colors):
        if style.kind != "zero_shot":
            ensemble = style.kind == "ensemble"
            curve = reliability(samples.ensemble if ensemble else samples.members[style.name], samples.labels)
            bars = confidence if ensemble else None
            curves.append(_curve_trace(style.label, curve, style.color, style.symbol, bars))
    charts = [
        Chart(
            "reliability",
            "Calibration of each model; on the diagonal, confidence comes true.",
            _diagonal(curves),
            360,
        )
    ]
    for kind, groups in (("D", results.classes.d_groups), ("P", results.classes.p_groups)):
        if groups is None:
            continue
        of_class = np.array(groups)
        traces = []
        for name in GROUP_NAMES:
            where = (of_class == name)[samples.labels]
            if where.any():
                curve = reliability(samples.ensemble, samples.labels, where)
                color, symbol = GROUP_COLORS[name], GROUP_SYMBOLS[name]
                traces.append(_curve_trace(f"{kind}-{GROUP_TITLES[name]}", curve, color, symbol, confidence))
        who = "ensemble" if len(results.members) > 1 else "member"
        caption = f"Calibration of the {who} by {kind}-group of the true class."
        charts.append(Chart(f"reliability-{kind.lower()}", caption, _diagonal(traces), 360))
    return charts


def _curve_trace(
    label: str, curve: ReliabilityCurve, color: str, symbol: str, confidence: float | None
) -> Figure:
    """Return a curve, with intervals of its accuracies where a ``confidence`` is given."""
    shown = curve.count >= _FEWEST_IN_BIN
    trace: Figure = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "x": rounded(100 * curve.confidence[shown]),
        "y": rounded(100 * curve.accuracy[shown]),
        "text": [f"{count:,} images" for count in curve.count[shown].tolist()],
        "hovertemplate": plain(label)
        + "<br>confidence %{x:.1f} %<br>accuracy %{y:.1f} %<br>%{text}<extra></extra>",
        "line": {"color": color, "width": 1.5},
        "marker": {"color": color, "symbol": symbol, "size": 7},
    }
    if confidence is not None:
        low, high = proportion_interval(np.nan_to_num(curve.accuracy) * curve.count, curve.count, confidence)
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": rounded(100 * (high - curve.accuracy)[shown]),
            "arrayminus": rounded(100 * (curve.accuracy - low)[shown]),
            "color": color,
            "thickness": 1,
            "width": 0,
        }
    return trace


def _diagonal(traces: list[Figure]) -> Figure:
    line = {
        "type": "line",
        "x0": 0,
        "x1": 100,
        "y0": 0,
        "y1": 100,
        "line": {"color": "var(--rule)", "dash": "dot", "width": 1.5},
    }
    axis = {"range": [0, 101], "dtick": 20}
    layout = {
        "xaxis": {**axis, "title": {"text": "confidence, %"}},
        "yaxis": {**axis, "title": {"text": "accuracy, %"}},
        "shapes": [{**line, "layer": "below"}],
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout}
