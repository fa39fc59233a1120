"""One HTML file that shows a run, or compares several, without the network.

Tables and sentences are in the HTML itself; charts, class explorer and pictures are drawn by the page's own script
from data in the file. The file's content security policy allows that script, the charts' library and nothing else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dualtail import __version__
from dualtail.errors import RunError
from dualtail.logits.groups import GROUP_NAMES
from dualtail.logits.intervals import normal_quantile
from dualtail.report.attribution import Attribution, read_attribution
from dualtail.report.comparison import Comparison, compare_runs, distinct_names
from dualtail.report.explorer import class_columns, image_data
from dualtail.report.looks import Look, backbone_colors, model_looks
from dualtail.report.plots import (
    Chart,
    ablation_charts,
    counts_chart,
    differences_chart,
    groups_chart,
    prior_charts,
    reliability_charts,
)
from dualtail.report.provenance import Provenance, describe_provenance
from dualtail.report.results import RunResults, read_results
from dualtail.report.samples import Samples, read_samples
from dualtail.report.sentences import (
    GROUP_TITLES,
    Line,
    describe_groups,
    describe_imbalances,
    describe_run,
    explain_groups,
    group_cells,
)
from dualtail.report.sheet import Estimate, Sheet, format_interval, format_value, number
from dualtail.report.tables import common_groups, run_sheets
from dualtail.runs.store import write_text

# A page stays below 15 MB: what its runs' numbers and the charts' library leave of this is for pictures, and no more
# than that, so that the page of a small run does not grow without need.
PAGE_BYTES = 14_000_000
IMAGE_BYTES = 9_000_000
_LIBRARY_BYTES = 2_200_000


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
        looks: how a model is drawn, by its label and its name.
        sheets: its tables by key.
        cross: accuracy by cell of each model.
        charts: its charts by key.
        images_note: what pictures are missing, or nothing.
        provenance: where it comes from.
        attribution: what its models look at, if it has maps.
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
    looks: dict[str, Look]
    sheets: dict[str, Sheet]
    cross: list[CrossTable]
    charts: dict[str, Chart]
    images_note: str
    provenance: Provenance
    attribution: Attribution | None
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
    def has_reliability(self) -> bool:
        """Whether there is anything in the section on reliability."""
        return "reliability" in self.charts or bool({"neighbors", "disagreement"} & self.sheets.keys())

    @property
    def largest_cell(self) -> int:
        """How many classes the largest cell of the cross table has."""
        return max(max(row) for row in self.results.classes.cross())

    def charts_of(self, prefix: str) -> list[Chart]:
        """Return the charts whose keys start with ``prefix``."""
        return [chart for key, chart in self.charts.items() if key.startswith(prefix)]


def write_page(runs: Sequence[Path | str], out: Path | str, *, images: bool = True) -> Path:
    """Write one self-contained HTML file with the results of finished runs.

    Args:
        runs: run directories; several are compared with the first.
        out: the file.
        images: put thumbnails of the worst test images into the page.

    Returns:
        the path of the file.

    Raises:
        RunError: a directory is no run or has not finished, or the file cannot be written.
    """
    out = Path(out)
    page = render_page([read_results(run) for run in runs], images=images)
    try:
        write_text(out, page)
    except OSError as error:
        raise RunError(
            f"cannot be written ({error.strerror})", where=str(out), fix="choose another --out"
        ) from None
    return out


def render_page(results: Sequence[RunResults], *, images: bool = True) -> str:
    """Return the page of finished runs as HTML."""
    samples = [read_samples(run) for run in results]
    colors = backbone_colors(results)
    names = distinct_names(results)
    parts = [_numbers(run, found, colors) for run, found in zip(results, samples, strict=True)]
    used = _LIBRARY_BYTES + sum(len(embed_json(part.data)) for part in parts)
    budget = max(0, min(IMAGE_BYTES, PAGE_BYTES - used)) // len(results) if images else 0
    views = [
        _view(f"r{place}", name, run, found, part, colors, budget)
        for place, (name, run, found, part) in enumerate(zip(names, results, samples, parts, strict=True))
    ]
    comparison = compare_runs(results, samples) if len(results) > 1 else None
    difference_chart = _difference_chart(comparison)
    environment = _environment()
    script = _asset("app.js")
    library, library_hash = _chart_library()
    return environment.get_template("page.html.j2").render(
        version=__version__,
        title=" and ".join(names) if len(names) < 3 else f"{len(names)} runs",
        style=Markup(_asset("style.css")),
        script=Markup(script),
        script_hash=_csp_hash(script),
        library=Markup(library),
        library_hash=library_hash,
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
        "z": round(normal_quantile(results.recipe.evaluate.confidence), 4),
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
    attribution = read_attribution(results, colors) if budget else None
    return RunView(
        key=key,
        name=name,
        results=results,
        lines=describe_run(results),
        highlights=_highlights(results),
        imbalances=describe_imbalances(results),
        explanation=explain_groups(results),
        groups=describe_groups(results),
        looks=_looks(results, colors),
        sheets={sheet.key: sheet for sheet in run_sheets(results)},
        cross=_cross_tables(results),
        charts=numbers.charts,
        images_note=images_note,
        provenance=describe_provenance(results),
        attribution=attribution,
        data={**numbers.data, "attribution": attribution.data if attribution else None},
        images=pictures,
    )


def _looks(results: RunResults, colors: dict[str, int]) -> dict[str, Look]:
    """Return how a model is drawn by its label; the bare name of a backbone looks like its zero-shot model."""
    found = {look.label: look for look in model_looks(results, colors)}
    return {look.name: look for look in found.values() if look.kind == "zero_shot"} | found


def _figures(charts: Sequence[Chart | None]) -> dict[str, Any]:
    return {chart.key: chart.figure for chart in charts if chart is not None}


def _difference_chart(comparison: Comparison | None) -> Chart | None:
    if comparison is None or not comparison.differences:
        return None
    return differences_chart(comparison.differences.rows, comparison.names[0])


def _highlights(results: RunResults) -> list[tuple[str, Estimate]]:
    metrics = results.metrics
    low, high = metrics.get("overall_ci") or (None, None)
    found = [
        ("All images", Estimate(metrics["overall"], low, high, metrics.get("n"), metrics.get("classes")))
    ]
    cells = {title: cell for title, cell, _ in group_cells(metrics)}
    for title in ("D-Few", "P-Few"):
        if title in cells:
            found.append((title, cells[title]))
    tail = next((cell for title, cell in cells.items() if title.startswith("Tail-tail")), None)
    return [*found, ("Tail-tail", tail)] if tail is not None else found


def _cross_tables(results: RunResults) -> list[CrossTable]:
    if results.classes.p_groups is None:
        return []
    empty = Estimate(None)
    return [
        CrossTable(label, [[cells.get(f"{d}.{p}", empty) for p in GROUP_NAMES] for d in GROUP_NAMES])
        for label, cells in common_groups(results)
    ]


# --- the file


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dualtail.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "value": format_value,
        "interval": format_interval,
        "number": number,
        "group_titles": list(GROUP_TITLES.values()),
    }
    return environment


def _asset(name: str) -> str:
    return (files("dualtail.report") / "templates" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _chart_library() -> tuple[str, str]:
    """Return Plotly's script, packed (gzip, base64), and its hash for the content security policy."""
    script = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    packed = base64.b64encode(gzip.compress(script, 6, mtime=0)).decode("ascii")
    return packed, _csp_hash(script.decode("utf-8"))


def _csp_hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"


def embed_json(content: Any) -> Markup:
    """Return JSON that cannot end the script element that it is put into.

    Example:
        >>> print(embed_json({"name": "</script><b>&"}))
        {"name":"\\u003c/script\\u003e\\u003cb\\u003e\\u0026"}
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
