"""Who suffers and what helped: accuracy by group, and by the number of members."""

from __future__ import annotations

from collections.abc import Sequence

from dualtail.report.charts.base import Chart, Figure, divider, error_bars, marker_of, percent, plain
from dualtail.report.model_styles import ENSEMBLE_COLOR, model_styles, run_models
from dualtail.report.report_table import group_estimates, number
from dualtail.report.tables.groups import metric_columns
from dualtail.report.tables.methods import subsets_table
from dualtail.runs.finished import RunResults
from dualtail.runs.results import Row

_KIND_SYMBOLS = {
    "one model": "circle",
    "seeds of one model": "square-open",
    "different models": "diamond",
    "mixed": "cross",
}


def groups_chart(results: RunResults, colors: dict[str, int]) -> Chart:
    """Return accuracy by group with intervals, every model a symbol."""
    columns = metric_columns(results)
    models = [
        (style, group_estimates(model.evaluation))
        for style, model in zip(model_styles(results, colors), run_models(results), strict=True)
    ]
    # One band a group, from the top; within it one line a model.
    step = 0.8 / len(models)
    bounds = [cells[column.key].low for _, cells in models for column in columns]
    lowest = 100 * min((bound for bound in bounds if bound is not None), default=0.0)
    traces = []
    for place, (style, cells) in enumerate(models):
        shown = [
            (row, cells[column.key])
            for row, column in enumerate(columns)
            if cells[column.key].value is not None
        ]
        offset = step * (place - (len(models) - 1) / 2)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": style.label,
                "x": [percent(cell.value) for _, cell in shown],
                "y": [round(row + offset, 4) for row, _ in shown],
                "text": [columns[row].title for row, _ in shown],
                "hovertemplate": "%{text}, " + plain(style.label) + "<br>%{x:.1f} %<extra></extra>",
                "marker": marker_of(style),
                "error_x": error_bars([cell for _, cell in shown], style.color),
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
        "shapes": [divider(row - 0.5) for row in range(1, len(columns))],
        "hovermode": "closest",
    }
    confidence = 100 * results.recipe.evaluate.confidence
    caption = f"Accuracy by group with {confidence:g} % intervals. Hollow: zero-shot; filled: fine-tuned."
    if results.has_groups:
        caption += " P-groups are those of the members' mean prior."
    height = 90 + len(columns) * max(34, min(15 * len(models), 60 + 8 * len(models)))
    return Chart("groups", caption, {"data": traces, "layout": layout}, height)


def ablation_charts(results: RunResults) -> list[Chart]:
    """Return accuracy by the number of members, every subset a point: of all images, D-Few and tail-tail."""
    rows = subsets_table(results).rows
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


def _subset_points(rows: Sequence[Row], kind: str, key: str) -> Figure:
    known = [(row, value) for row in rows if (value := number(row.get(key))) is not None]
    # Kinds stand a little apart, so that seeds and models of one size can be told apart.
    shift = {"seeds of one model": -0.2, "mixed": 0.2}.get(kind, 0.0)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "x": [row["m"] + shift for row, _ in known],
        "y": [percent(value) for _, value in known],
        "text": [plain(row["label"]) for row, _ in known],
        "hovertemplate": "%{text}<br>%{y:.1f} %<extra></extra>",
        "marker": {
            "symbol": _KIND_SYMBOLS[kind],
            "size": 9 if len(known) < 20 else 6,
            "opacity": 0.8,
            "color": ENSEMBLE_COLOR if kind == "different models" else "var(--medium)",
        },
    }


def differences_chart(rows: Sequence[Row], against: str) -> Chart:
    """Return paired differences between runs as a forest: ``rows`` have ``run``, ``measure`` and ``difference``."""
    labels = [f"{row['run']}, {row['measure']}" for row in rows]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [percent(row["difference"].value) for row in rows],
        "y": list(range(len(rows))),
        "text": [plain(label) for label in labels],
        "hovertemplate": "%{text}<br>%{x:+.1f} points<extra></extra>",
        "marker": {"color": ENSEMBLE_COLOR, "symbol": "diamond", "size": 9},
        "error_x": error_bars([row["difference"] for row in rows], ENSEMBLE_COLOR),
        "showlegend": False,
    }
    layout = {
        "xaxis": {"title": {"text": f"points against {plain(against)}"}, "zeroline": True},
        "yaxis": {
            "tickvals": list(range(len(rows))),
            "ticktext": [plain(label) for label in labels],
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
        },
        "hovermode": "closest",
    }
    caption = (
        f"Paired differences to {against} on the same images; a bar that crosses 0 leaves the order open."
    )
    return Chart("differences", caption, {"data": [trace], "layout": layout}, 110 + 34 * len(rows))
