"""One HTML file that shows a run, or compares several, without the network.

Tables and sentences are in the HTML itself; charts, class explorer and pictures are drawn by the page's own script
from data in the file. The file's content security policy allows that script, the charts' library and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualtail.logits.groups import GROUP_NAMES
from dualtail.report.charts import (
    Chart,
    ablation_charts,
    counts_chart,
    differences_chart,
    groups_chart,
    prior_charts,
    reliability_charts,
)
from dualtail.report.comparison import Comparison, compare_runs, distinct_names
from dualtail.report.explorer import class_columns, image_data
from dualtail.report.export import write_out
from dualtail.report.group_sentences import describe_groups, describe_imbalances, explain_groups, group_cells
from dualtail.report.maps import ModelMaps, read_maps
from dualtail.report.model_styles import ModelStyle, backbone_colors, model_styles, run_models
from dualtail.report.provenance import Provenance, describe_provenance
from dualtail.report.rendering import LIBRARY_BYTES, embed_json, render
from dualtail.report.report_table import Estimate, ReportTable, group_estimates
from dualtail.report.samples import Samples, read_samples
from dualtail.report.sentences import Line, describe_run
from dualtail.report.tables import run_tables
from dualtail.runs.finished import RunResults, read_results

# A page stays below 15 MB: what its runs' numbers and the charts' library leave of this is for pictures, and no more
# than that, so that the page of a small run does not grow without need.
PAGE_BYTES = 14_000_000
IMAGE_BYTES = 9_000_000


@dataclass(frozen=True)
class CrossTable:
    """Accuracy by D-group and P-group of one model.

    Attributes:
        label: the model.
        rows: ``rows[D][P]``, many first.
    """

    label: str
    rows: list[list[Estimate]]


@dataclass(frozen=True)
class RunView:
    """A run as the page's template takes it.

    Attributes:
        key: prefix of its links, such as "r0".
        name: of the run.
        results: what was read.
        lines: the overview.
        highlights: (title, estimate) of the ensemble's main figures.
        imbalances: a sentence on the two imbalances.
        explanation: what the groups are.
        groups: a sentence on who suffers.
        styles: how a model is drawn, by its label and its name.
        tables: its tables by key.
        cross: accuracy by cell of each model.
        charts: its charts by key.
        images_note: what pictures are missing, or nothing.
        provenance: where it comes from.
        maps: what its models look at, if it has maps.
        data: for the page's script.
        images: pictures for the page's script.
    """

    key: str
    name: str
    results: RunResults
    lines: list[Line]
    highlights: list[tuple[str, Estimate]]
    imbalances: str
    explanation: str
    groups: str
    styles: dict[str, ModelStyle]
    tables: dict[str, ReportTable]
    cross: list[CrossTable]
    charts: dict[str, Chart]
    images_note: str
    provenance: Provenance
    maps: ModelMaps | None
    data: dict[str, Any]
    images: dict[str, Any] = field(repr=False)

    @property
    def subtitle(self) -> str:
        """The recipe's name, and when and by what the run was made."""
        record = self.results.provenance
        version = (record.get("versions") or {}).get("dualtail")
        parts = [f"recipe {self.results.recipe.name}", str(record.get("updated", ""))[:10]]
        parts.append(f"dualtail {version}" if version else "")
        return " · ".join(part for part in parts if part)

    @property
    def class_export(self) -> str:
        """The file of all classes in the run directory."""
        return str(self.results.run.adjusted.export("per_class").relative_to(self.results.root))

    @property
    def has_reliability(self) -> bool:
        """Whether there is anything in the section on reliability."""
        return "reliability" in self.charts or bool({"neighbors", "disagreement"} & self.tables.keys())

    @property
    def largest_cell(self) -> int:
        """How many classes the largest cell of the cross table has."""
        return max(max(row) for row in self.results.classes.cross())

    def charts_of(self, prefix: str) -> list[Chart]:
        """Return the charts whose keys start with ``prefix``."""
        return [chart for key, chart in self.charts.items() if key.startswith(prefix)]


def write_page(runs: Sequence[Path | str], out: Path | str | None = None, *, images: bool = True) -> Path:
    """Write one self-contained HTML file with the results of finished runs.

    Args:
        runs: run directories; several are compared with the first.
        out: the file; by default that of the first run.
        images: put thumbnails of the worst test images into the page.

    Returns:
        the path of the file.

    Raises:
        RunError: a directory is no run or has not finished, or the file cannot be written.
    """
    results = [read_results(run) for run in runs]
    path = results[0].run.report if out is None else Path(out)
    write_out(path, render_page(results, images=images))
    return path


def render_page(results: Sequence[RunResults], *, images: bool = True) -> str:
    """Return the page of finished runs as HTML."""
    samples = [read_samples(run) for run in results]
    colors = backbone_colors(results)
    names = distinct_names(results)
    parts = [_numbers(run, answers, colors) for run, answers in zip(results, samples, strict=True)]
    used = LIBRARY_BYTES + sum(len(embed_json(part.data)) for part in parts)
    budget = max(0, min(IMAGE_BYTES, PAGE_BYTES - used)) // len(results) if images else 0
    views = [
        _view(f"r{place}", name, run, answers, part, colors, budget)
        for place, (name, run, answers, part) in enumerate(zip(names, results, samples, parts, strict=True))
    ]
    comparison = compare_runs(results, samples) if len(results) > 1 else None
    difference_chart = _difference_chart(comparison)
    return render(
        title=" and ".join(names) if len(names) < 3 else f"{len(names)} runs",
        views=views,
        comparison=comparison,
        difference_chart=difference_chart,
        data=embed_json(
            {"runs": {view.key: view.data for view in views}, "shared": _figures([difference_chart])}
        ),
        images={view.key: embed_json(view.images) for view in views},
    )


@dataclass(frozen=True)
class _Numbers:
    """What the page's script gets of a run, pictures aside."""

    charts: dict[str, Chart]
    data: dict[str, Any]


def _numbers(results: RunResults, samples: Samples | None, colors: dict[str, int]) -> _Numbers:
    charts = [counts_chart(results), *prior_charts(results, colors), groups_chart(results, colors)]
    charts += ablation_charts(results)
    if samples is not None:
        charts += reliability_charts(results, samples, colors)
    data = {
        "name": results.name,
        "split": results.classes.evaluated_on,
        "charts": _figures(charts),
        "classes": class_columns(results, samples, colors),
    }
    return _Numbers({chart.key: chart for chart in charts}, data)


def _view(
    key: str,
    name: str,
    results: RunResults,
    samples: Samples | None,
    numbers: _Numbers,
    colors: dict[str, int],
    budget: int,
) -> RunView:
    pictures, images_note = image_data(results, samples, budget)
    maps = read_maps(results, colors) if budget else None
    return RunView(
        key=key,
        name=name,
        results=results,
        lines=describe_run(results),
        highlights=_highlights(results),
        imbalances=describe_imbalances(results),
        explanation=explain_groups(results),
        groups=describe_groups(results),
        styles=_styles(results, colors),
        tables={table.key: table for table in run_tables(results)},
        cross=_cross_tables(results),
        charts=numbers.charts,
        images_note=images_note,
        provenance=describe_provenance(results),
        maps=maps,
        data={**numbers.data, "attribution": maps.data if maps else None},
        images=pictures,
    )


def _styles(results: RunResults, colors: dict[str, int]) -> dict[str, ModelStyle]:
    """Return how a model is drawn by its label; the bare name of a backbone looks like its zero-shot model."""
    styles = model_styles(results, colors)
    bare = {style.name: style for style in styles if style.kind == "zero_shot"}
    return bare | {style.label: style for style in styles}


def _figures(charts: Sequence[Chart | None]) -> dict[str, Any]:
    return {chart.key: chart.figure for chart in charts if chart is not None}


def _difference_chart(comparison: Comparison | None) -> Chart | None:
    if comparison is None or not comparison.differences:
        return None
    return differences_chart(comparison.differences.rows, comparison.names[0])


def _highlights(results: RunResults) -> list[tuple[str, Estimate]]:
    cells = {title: cell for title, cell, _ in group_cells(results.metrics)}
    figures = [("All images", Estimate.of(results.metrics.by_group()["overall"]))]
    figures += [(title, cells[title]) for title in ("D-Few", "P-Few") if title in cells]
    return figures + [("Tail-tail", cell) for title, cell in cells.items() if title.startswith("Tail-tail")]


def _cross_tables(results: RunResults) -> list[CrossTable]:
    if not results.has_groups:
        return []
    grouped = [(model.label, group_estimates(model.evaluation)) for model in run_models(results)]
    return [
        CrossTable(label, [[cells[f"{d}.{p}"] for p in GROUP_NAMES] for d in GROUP_NAMES])
        for label, cells in grouped
    ]
