"""Plots of the studies as SVG: means over worlds with their intervals, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualtail.errors import InputError
from dualtail.files import atomic_path
from dualtail.lab.tables import Table
from dualtail.logits.comparison import SeedSummary, summarize_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart; the markers say the same again.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    # Text stays text, and the same figures give the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "dualtail",
}


@dataclass(frozen=True)
class Plot:
    """A picture and what it shows.

    Attributes:
        caption: what it shows, for those who do not see it too.
        draw: makes the figure.
    """

    caption: str
    draw: Callable[[], Figure]

    def save(self, path: Path) -> None:
        """Write it as SVG, atomically; the folder is made.

        Raises:
            InputError: matplotlib is not installed.
        """
        require_matplotlib()
        import matplotlib

        with matplotlib.rc_context(_STYLE), atomic_path(path) as temporary:
            self.draw().savefig(temporary, format="svg", metadata={"Date": None}, facecolor="white")


def require_matplotlib() -> None:
    """Refuse to go on where matplotlib is not installed.

    Raises:
        InputError: it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "matplotlib, which draws the plots, is not installed",
            fix="pip install 'dualtail[lab]', or leave --docs away for the tables alone",
        ) from None


def interval_plot(caption: str, table: Table, columns: Sequence[str], *, base: str | None = None) -> Plot:
    """Return a plot of a table's rows, a panel a column: mean and interval, and each world as a small dot.

    Args:
        caption: what it shows.
        table: fractions; shown in per cent.
        columns: keys of the panels.
        base: a row that the others are compared with, world by world; the plot is then of differences in points.
    """

    def draw() -> Figure:
        rows = [title for title in table.rows if title != base]
        figure, panels = _panels(len(columns), height=0.9 + 0.24 * len(rows), share_y=True)
        heights = range(len(rows))[::-1]
        for axes, column in zip(panels, columns, strict=True):
            if base is not None:
                axes.axvline(0, color="0.6", linewidth=0.8)
            for height, title in zip(heights, rows, strict=True):
                values = table.values(title, column, base)
                summary = summarize_seeds(values)
                axes.plot(
                    [100 * value for value in values],
                    [height - 0.25] * len(values),
                    ".",
                    color="0.6",
                    markersize=3,
                )
                axes.errorbar(
                    [100 * summary.mean], [height], xerr=_halves(summary),
                    fmt="o", color=_COLORS[0], markersize=4, capsize=2,
                )  # fmt: skip
            axes.set_title(table.columns[column])
            axes.set_xlabel("per cent" if base is None else "points")
            axes.set_yticks(list(heights), rows)
            axes.grid(axis="x", color="0.92")
        return figure

    return Plot(caption, draw)


def curve_plot(
    caption: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, SeedSummary]]]],
    x_title: str,
    *,
    log: bool = False,
) -> Plot:
    """Return curves with intervals.

    Args:
        caption: what it shows.
        panels: title to curve to its points; fractions, shown in per cent.
        x_title: of the horizontal axis, which every panel has.
        log: whether that axis is logarithmic.
    """

    def draw() -> Figure:
        figure, axes_of = _panels(len(panels), height=2.6)
        for axes, (title, curves) in zip(axes_of, panels.items(), strict=True):
            for index, (label, points) in enumerate(curves.items()):
                # Side by side, so that intervals of equal x do not hide each other.
                shift = 0.07 * (index - (len(curves) - 1) / 2)
                axes.errorbar(
                    [x * 10 ** (shift / 4) if log else x + shift for x, _ in points],
                    [100 * summary.mean for _, summary in points],
                    yerr=_halves(*(summary for _, summary in points)),
                    fmt=_MARKERS[index] + ("-" if len(points) > 1 else ""),
                    color=_COLORS[index], label=label, markersize=4, linewidth=1.2, capsize=2,
                )  # fmt: skip
            if log:
                axes.set_xscale("log")
            ticks = sorted({x for points in curves.values() for x, _ in points})
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.minorticks_off()
            axes.set_title(title)
            axes.set_xlabel(x_title)
            axes.grid(axis="y", color="0.92")
        if all(list(curves) == list(next(iter(panels.values()))) for curves in panels.values()):
            handles, labels = axes_of[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        else:
            for axes in axes_of:
                axes.legend()
        return figure

    return Plot(caption, draw)


def scatter_plot(
    caption: str,
    panels: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    axis_titles: tuple[str, str],
) -> Plot:
    """Return scatter plots of two quantities on one scale, with the diagonal where they are equal.

    Args:
        caption: what it shows.
        panels: title to the worlds' ``(x, y)``.
        axis_titles: of x and y.
    """

    def draw() -> Figure:
        figure, axes_of = _panels(len(panels), height=2.9, share_y=True)
        everything = [
            value for worlds in panels.values() for pair in worlds for axis in pair for value in axis
        ]
        ends = [min(everything) - 0.2, max(everything) + 0.2]
        for axes, (title, worlds) in zip(axes_of, panels.items(), strict=True):
            axes.plot(ends, ends, color="0.6", linewidth=0.8)
            for index, (x, y) in enumerate(worlds):
                axes.plot(
                    x, y, _MARKERS[index % len(_MARKERS)], color=_COLORS[index % len(_COLORS)], markersize=2.5,
                    alpha=0.6,
                )  # fmt: skip
            axes.set(title=title, xlabel=axis_titles[0], xlim=ends, ylim=ends, aspect="equal")
        axes_of[0].set_ylabel(axis_titles[1])
        return figure

    return Plot(caption, draw)


def _panels(count: int, *, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, height), layout="constrained")
    panels: Any = figure.subplots(1, count, squeeze=False, sharey=share_y)
    return figure, list(panels[0])


def _halves(*summaries: SeedSummary) -> list[list[float]]:
    """Return the intervals' parts below and above their means in per cent, as matplotlib takes them."""
    bounds = [(summary.mean, *(summary.ci or (summary.mean, summary.mean))) for summary in summaries]
    return [
        [100 * (mean - low) for mean, low, _ in bounds],
        [100 * (high - mean) for mean, _, high in bounds],
    ]
