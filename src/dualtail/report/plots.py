"""The charts of the page as Plotly figures in plain dictionaries; the page's script colours and draws them.

Colours are names of the style sheet's variables (``var(--m0)``, or ``var(--m0)/0.25`` to let through), so that one
figure serves light, dark and paper. Numbers in ``customdata`` are classes: the script writes their names as the text
of the points, and a click on one opens the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualtail.logits.calibration import ReliabilityCurve
from dualtail.logits.groups import GROUP_NAMES
from dualtail.logits.intervals import normal_quantile, proportion_interval
from dualtail.logits.prior import LabelPrior
from dualtail.report.looks import (
    ENSEMBLE_COLOR,
    GROUP_COLORS,
    GROUP_SYMBOLS,
    Look,
    color_of,
    model_looks,
)
from dualtail.report.results import RunResults
from dualtail.report.samples import Samples, reliability
from dualtail.report.sentences import GROUP_TITLES
from dualtail.report.sheet import Estimate
from dualtail.report.tables import common_groups, metric_columns, subsets_sheet

Figure = dict[str, Any]

# A calibration bin with fewer images says nothing.
_FEWEST_IN_BIN = 5
# With more classes than this a bar each is thinner than a pixel, and points hide their error bars.
_BAR_CLASSES = 80
# So many classes have room for their names.
_NAMED_CLASSES = 24


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


# --- the two imbalances


def counts_chart(results: RunResults) -> Chart:
    """Return training images a class, sorted, coloured by D-group."""
    classes = results.classes
    counts = np.array(classes.counts.get("train") or classes.group_counts)
    order = np.argsort(-counts, kind="stable")
    groups = np.array(classes.d_groups)[order]
    traces = []
    for name in GROUP_NAMES:
        places = np.flatnonzero(groups == name)
        if not len(places):
            continue
        trace: Figure = {
            "x": (places + 1).tolist(),
            "y": counts[order][places].tolist(),
            "name": f"D-{GROUP_TITLES[name]}",
            "customdata": order[places].tolist(),
            "hovertemplate": "%{text}<br>%{y:,} images<extra></extra>",
        }
        if len(classes) <= _BAR_CLASSES:
            bar = {"color": GROUP_COLORS[name], "line": {"width": 0}}
            traces.append({**trace, "type": "bar", "textposition": "none", "marker": bar})
        else:
            # One path draws many times faster than a bar for each class.
            line = {"width": 0, "shape": "hvh", "color": GROUP_COLORS[name]}
            area = {"mode": "lines", "line": line, "fill": "tozeroy", "fillcolor": GROUP_COLORS[name]}
            traces.append({**trace, "type": "scatter", **area, "hoveron": "points"})
    layout = {
        "xaxis": _class_axis(results, order, "class, by its number of training images"),
        "yaxis": {
            "title": {"text": "training images"},
            "type": "log",
            # From just below one image, so that the height of a bar is the logarithm of its images.
            "range": [-0.1, math.log10(max(int(counts.max()), 1)) + 0.1],
        },
        "bargap": 0.15,
        "hovermode": "closest" if len(classes) <= _BAR_CLASSES else "x",
    }
    return Chart(
        "counts", "Training images of each class, on a logarithmic scale.", {"data": traces, "layout": layout}
    )


def prior_charts(results: RunResults, colors: dict[str, int]) -> list[Chart]:
    """Return for each backbone its estimated prior, sorted, with its interval; all on the same scale."""
    known = [(b.name, b.prior) for b in results.backbones if b.prior is not None]
    if not known:
        return []
    z = normal_quantile(results.recipe.evaluate.confidence)
    limits = [_prior_bounds(prior, z) for _, prior in known]
    low = math.log10(min(float(lower.min()) for lower, _ in limits)) - 0.1
    high = math.log10(max(float(upper.max()) for _, upper in limits)) + 0.05
    charts: list[Chart] = []
    for name, prior in known:
        figure = _prior_figure(results, name, prior, color_of(name, colors), z, floor=10**low)
        figure["layout"]["yaxis"]["range"] = [low, high]
        caption = f"{name}: estimated probability of each class, against a uniform prior (1), with intervals."
        charts.append(
            Chart(f"prior-{len(charts)}", caption, figure, 340 if len(prior) <= _NAMED_CLASSES else 300)
        )
    return charts


def _prior_bounds(prior: LabelPrior, z: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    log = prior.log_prob.numpy() + math.log(len(prior))
    errors = np.zeros(len(prior)) if prior.standard_errors is None else prior.standard_errors.numpy()
    return np.exp(log - z * errors), np.exp(log + z * errors)


def _prior_figure(
    results: RunResults, name: str, prior: LabelPrior, color: str, z: float, floor: float
) -> Figure:
    ratio = (prior.log_prob + math.log(len(prior))).exp().numpy()
    lower, upper = _prior_bounds(prior, z)
    order = np.argsort(-ratio, kind="stable")
    place = np.arange(1, len(order) + 1)
    line: Figure = {
        "type": "scatter",
        "x0": 1,
        "y": _round(ratio[order]),
        "customdata": order.tolist(),
        "name": name,
        "hovertemplate": "%{text}<br>%{y:.3g} times uniform<extra></extra>",
        "showlegend": False,
    }
    traces: list[Figure] = []
    tail = np.array([group == "few" for group in results.classes.d_groups])[order]
    if len(order) <= _BAR_CLASSES:
        few = {"color": GROUP_COLORS["few"], "symbol": GROUP_SYMBOLS["few"]}
        usual = {"color": color, "symbol": "circle"}
        line |= {
            "mode": "markers",
            "marker": {
                "size": 9,
                **{key: [few[key] if is_few else usual[key] for is_few in tail.tolist()] for key in usual},
            },
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": _round((upper - ratio)[order]),
                "arrayminus": _round((ratio - lower)[order]),
                "color": color,
                "thickness": 1.5,
                "width": 0,
            },
        }
    else:
        band = {
            "type": "scatter",
            "mode": "lines",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        traces.append({**band, "x0": 1, "y": _round(lower[order])})
        filled = {"fill": "tonexty", "fillcolor": f"{color}/0.25"}
        traces.append({**band, "x0": 1, "y": _round(upper[order]), **filled})
        line |= {"mode": "lines", "line": {"color": color, "width": 2}}
    traces.append(line)
    traces.append(_few_trace(place[tail], floor, points=len(order) <= _BAR_CLASSES))
    layout = {
        "xaxis": {
            **_class_axis(results, order, "class, by its estimated prior"),
            "tickangle": "auto" if len(order) > _NAMED_CLASSES else -90,
        },
        "yaxis": {"title": {"text": "times uniform"}, "type": "log"},
        "shapes": [_level(1.0)],
    }
    return {"data": traces, "layout": layout}


def _few_trace(places: NDArray[np.int64], floor: float, *, points: bool) -> Figure:
    """Return what marks the D-Few classes: a legend for points, or ticks along the axis where there are too many."""
    trace: Figure = {"type": "scatter", "name": "D-Few", "hoverinfo": "skip"}
    if points:
        marker = {"color": GROUP_COLORS["few"], "symbol": GROUP_SYMBOLS["few"], "size": 9}
        return {**trace, "mode": "markers", "x": [None], "y": [None], "marker": marker}
    x = [value for place in places.tolist() for value in (place, place, None)]
    y = [floor, floor * 1.25, None] * len(places)
    return {**trace, "mode": "lines", "x": x, "y": y, "line": {"color": GROUP_COLORS["few"], "width": 1}}


# --- who suffers


def groups_chart(results: RunResults, colors: dict[str, int]) -> Chart:
    """Return accuracy by group with intervals, every model a symbol."""
    looks = {look.label: look for look in model_looks(results, colors)}
    columns = metric_columns(results)
    models = [(label, cells) for label, cells in common_groups(results) if label in looks]
    # One band a group, from the top; within it one line a model.
    step = 0.8 / max(len(models), 1)
    bounds = [cells[column.key].low for _, cells in models for column in columns]
    lowest = 100 * min((bound for bound in bounds if bound is not None), default=0.0)
    traces = []
    for number, (label, cells) in enumerate(models):
        look = looks[label]
        shown = [
            (row, cells[column.key])
            for row, column in enumerate(columns)
            if cells[column.key].value is not None
        ]
        offset = step * (number - (len(models) - 1) / 2)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [_percent(cell.value) for _, cell in shown],
                "y": [round(row + offset, 4) for row, _ in shown],
                "text": [columns[row].title for row, _ in shown],
                "hovertemplate": "%{text}, " + _plain(label) + "<br>%{x:.1f} %<extra></extra>",
                "marker": _marker(look),
                "error_x": _error_bars([cell for _, cell in shown], look.color),
            }
        )
    layout = {
        "xaxis": {
            "title": {"text": f"accuracy on {results.classes.evaluated_on}, %"},
            "range": [lowest - 2, 101],
        },
        "yaxis": {
            "tickvals": list(range(len(columns))),
            "ticktext": [column.title for column in columns],
            "range": [len(columns) - 0.5, -0.5],
            "showgrid": False,
        },
        "shapes": [_divider(row - 0.5) for row in range(1, len(columns))],
        "hovermode": "closest",
    }
    confidence = 100 * results.recipe.evaluate.confidence
    caption = f"Accuracy by group with {confidence:g} % intervals. Hollow: zero-shot; filled: fine-tuned."
    if results.has_groups:
        caption += " P-groups are those of the members' mean prior."
    height = 90 + len(columns) * max(34, min(15 * len(models), 60 + 8 * len(models)))
    return Chart("groups", caption, {"data": traces, "layout": layout}, height)


# --- what helped

_KIND_SYMBOLS = {
    "one model": "circle",
    "seeds of one model": "square-open",
    "different models": "diamond",
    "mixed": "cross",
}


def ablation_charts(results: RunResults) -> list[Chart]:
    """Return accuracy by the number of members, every subset a point: of all images, D-Few and tail-tail."""
    rows = subsets_sheet(results).rows
    charts = []
    shown = [column for column in metric_columns(results) if column.key in ("overall", "d_few", "tail_tail")]
    for column in shown if rows else []:
        kinds = [kind for kind in _KIND_SYMBOLS if any(row["kind"] == kind for row in rows)]
        traces = [
            _subset_points([row for row in rows if row["kind"] == kind], kind, column.key) for kind in kinds
        ]
        layout = {
            "xaxis": {
                "title": {"text": "members, M"},
                "dtick": 1,
                "range": [0.5, len(results.members) + 0.5],
            },
            "yaxis": {"title": {"text": "accuracy, %"}},
        }
        caption = (
            f"{'All classes' if column.key == 'overall' else column.title}: every subset of the members."
        )
        charts.append(
            Chart(
                f"ablation-{column.key}", caption, {"data": traces, "layout": layout}, 280 + 20 * len(kinds)
            )
        )
    return charts


def _subset_points(rows: Sequence[dict[str, Any]], kind: str, key: str) -> Figure:
    values = [row[key].value if isinstance(row[key], Estimate) else row.get(key) for row in rows]
    known = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None]
    # Kinds stand a little apart, so that seeds and models of one size can be told apart.
    shift = {"seeds of one model": -0.2, "mixed": 0.2}.get(kind, 0.0)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "x": [row["m"] + shift for row, _ in known],
        "y": [_percent(value) for _, value in known],
        "text": [_plain(row["label"]) for row, _ in known],
        "hovertemplate": "%{text}<br>%{y:.1f} %<extra></extra>",
        "marker": {
            "symbol": _KIND_SYMBOLS[kind],
            "size": 9 if len(known) < 20 else 6,
            "opacity": 0.8,
            "color": ENSEMBLE_COLOR if kind == "different models" else "var(--medium)",
        },
    }


# --- reliability


def reliability_charts(results: RunResults, samples: Samples, colors: dict[str, int]) -> list[Chart]:
    """Return calibration curves: of every member and the ensemble, and of the ensemble by D- and P-group."""
    answers = {
        **{f"member {name}": a for name, a in samples.members.items()},
        "ensemble adjusted": samples.ensemble,
    }
    curves = []
    for look in model_looks(results, colors):
        found = answers.get(f"{look.kind} {look.name}")
        if found is not None:
            curve = reliability(found, samples.labels)
            curves.append(_curve_trace(look.label, curve, look.color, look.symbol, look.kind == "ensemble"))
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
                traces.append(_curve_trace(f"{kind}-{GROUP_TITLES[name]}", curve, color, symbol, True))
        who = "ensemble" if len(results.members) > 1 else "member"
        caption = f"Calibration of the {who} by {kind}-group of the true class."
        charts.append(Chart(f"reliability-{kind.lower()}", caption, _diagonal(traces), 360))
    return charts


def _curve_trace(label: str, curve: ReliabilityCurve, color: str, symbol: str, bars: bool) -> Figure:
    shown = curve.count >= _FEWEST_IN_BIN
    hits = np.round(np.nan_to_num(curve.accuracy) * curve.count)
    low, high = proportion_interval(hits, curve.count)
    trace: Figure = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "x": _round(100 * curve.confidence[shown]),
        "y": _round(100 * curve.accuracy[shown]),
        "text": [f"{count:,} images" for count in curve.count[shown].tolist()],
        "hovertemplate": _plain(label)
        + "<br>confidence %{x:.1f} %<br>accuracy %{y:.1f} %<br>%{text}<extra></extra>",
        "line": {"color": color, "width": 1.5},
        "marker": {"color": color, "symbol": symbol, "size": 7},
    }
    if bars:
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": _round(100 * (high - curve.accuracy)[shown]),
            "arrayminus": _round(100 * (curve.accuracy - low)[shown]),
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


# --- several runs


def differences_chart(rows: Sequence[dict[str, Any]], against: str) -> Chart:
    """Return paired differences between runs as a forest: ``rows`` have ``run``, ``measure`` and ``difference``."""
    labels = [f"{row['run']}, {row['measure']}" for row in rows]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [_percent(row["difference"].value) for row in rows],
        "y": list(range(len(rows))),
        "text": [_plain(label) for label in labels],
        "hovertemplate": "%{text}<br>%{x:+.1f} points<extra></extra>",
        "marker": {"color": ENSEMBLE_COLOR, "symbol": "diamond", "size": 9},
        "error_x": _error_bars([row["difference"] for row in rows], ENSEMBLE_COLOR),
        "showlegend": False,
    }
    layout = {
        "xaxis": {"title": {"text": f"points against {_plain(against)}"}, "zeroline": True},
        "yaxis": {
            "tickvals": list(range(len(rows))),
            "ticktext": [_plain(label) for label in labels],
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
        },
        "hovermode": "closest",
    }
    caption = (
        f"Paired differences to {against} on the same images; a bar that crosses 0 leaves the order open."
    )
    return Chart("differences", caption, {"data": [trace], "layout": layout}, 110 + 34 * len(rows))


# --- pieces


def _marker(look: Look) -> Figure:
    return {"color": look.color, "symbol": look.symbol, "size": 11 if look.kind == "ensemble" else 9}


def _error_bars(cells: Sequence[Estimate], color: str) -> Figure:
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


def _level(y: float) -> Figure:
    return _across(y, {"color": "var(--rule)", "dash": "dot", "width": 1.5})


def _divider(y: float) -> Figure:
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


def _class_axis(results: RunResults, order: NDArray[np.int64], title: str) -> Figure:
    """Return an axis of classes in ``order``, with their names where there is room."""
    if len(order) > _NAMED_CLASSES:
        return {"title": {"text": title}}
    names = [results.classes.names[index] for index in order.tolist()]
    ticks = [_plain(name if len(name) <= 16 else f"{name[:15]}…") for name in names]
    return {
        "title": {"text": title},
        "tickvals": list(range(1, len(order) + 1)),
        "ticktext": ticks,
        "showgrid": False,
    }


def _plain(text: str) -> str:
    """Return text that Plotly, which knows some HTML, shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "%\u200b{")


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 4)


def _round(values: NDArray[Any]) -> list[float | None]:
    """Return four significant digits, None for what is not a number."""
    return [None if value != value else float(f"{value:.4g}") for value in values.tolist()]
