"""The two imbalances: training images and estimated priors of the classes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dualtail.logits.groups import GROUP_NAMES
from dualtail.logits.intervals import normal_quantile
from dualtail.logits.prior import LabelPrior
from dualtail.report.charts.base import NAMED_CLASSES, Chart, Figure, class_axis, level, rounded
from dualtail.report.model_styles import GROUP_COLORS, GROUP_SYMBOLS, color_of
from dualtail.report.tables.members import known_priors
from dualtail.report.words import GROUP_TITLES
from dualtail.runs.finished import RunResults

# With more classes than this a bar each is thinner than a pixel, and points hide their error bars.
_BAR_CLASSES = 80


def counts_chart(results: RunResults) -> Chart:
    """Return training images a class, sorted, coloured by D-group."""
    classes = results.classes
    counts = np.array(classes.train_counts)
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
        "xaxis": class_axis(results, order, "class, by its number of training images"),
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
    known = known_priors(results)
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
            Chart(f"prior-{len(charts)}", caption, figure, 340 if len(prior) <= NAMED_CLASSES else 300)
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
        "y": rounded(ratio[order]),
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
                "array": rounded((upper - ratio)[order]),
                "arrayminus": rounded((ratio - lower)[order]),
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
        traces.append({**band, "x0": 1, "y": rounded(lower[order])})
        filled = {"fill": "tonexty", "fillcolor": f"{color}/0.25"}
        traces.append({**band, "x0": 1, "y": rounded(upper[order]), **filled})
        line |= {"mode": "lines", "line": {"color": color, "width": 2}}
    traces.append(line)
    traces.append(_few_trace(place[tail], floor, points=len(order) <= _BAR_CLASSES))
    layout = {
        "xaxis": {
            **class_axis(results, order, "class, by its estimated prior"),
            "tickangle": "auto" if len(order) > NAMED_CLASSES else -90,
        },
        "yaxis": {"title": {"text": "times uniform"}, "type": "log"},
        "shapes": [level(1.0)],
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
