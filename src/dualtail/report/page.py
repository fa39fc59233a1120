"""One HTML file that shows a run, or compares several, without the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dualtail import __version__
from dualtail.errors import RunError
from dualtail.report.results import RunResults, read_results
from dualtail.report.sentences import describe_run
from dualtail.report.sheet import Estimate, format_interval, format_value, number
from dualtail.report.tables import run_sheets
from dualtail.runs.store import write_text


def write_page(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Write one self-contained HTML file with the results of finished runs.

    Args:
        runs: run directories; several are compared.
        out: the file.

    Returns:
        the path of the file.

    Raises:
        RunError: a directory is no run or has not finished, or the file cannot be written.
    """
    results = [read_results(run) for run in runs]
    out = Path(out)
    try:
        write_text(out, render_page(results))
    except OSError as error:
        raise RunError(
            f"cannot be written ({error.strerror})", where=str(out), fix="choose another --out"
        ) from None
    return out


def render_page(results: Sequence[RunResults]) -> str:
    """Return the page of finished runs as HTML."""
    environment = Environment(
        loader=PackageLoader("dualtail.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"value": format_value, "interval": format_interval, "number": number}
    environment.tests["estimate"] = lambda cell: isinstance(cell, Estimate)
    template = environment.get_template("page.html.j2")
    return template.render(
        version=__version__,
        title=", ".join(run.name for run in results),
        style=_resource(environment, "style.css"),
        runs=[{"results": run, "lines": describe_run(run), "sheets": run_sheets(run)} for run in results],
    )


def _resource(environment: Environment, name: str) -> Markup:
    """Return a file of our own that goes into the page as it is."""
    assert environment.loader is not None
    source: Any = environment.loader.get_source(environment, name)[0]
    return Markup(source)
