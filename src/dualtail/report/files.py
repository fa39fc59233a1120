"""The tables of runs as Markdown, LaTeX, CSV or JSON, into a file or to stdout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dualtail.errors import RunError, nearest
from dualtail.report.comparison import compare_runs
from dualtail.report.formats import to_csv, to_json, to_latex, to_markdown
from dualtail.report.results import read_results
from dualtail.report.samples import read_samples
from dualtail.report.sheet import Sheet
from dualtail.report.tables import run_sheets
from dualtail.runs.store import write_text

FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "json": to_json,
}


def write_tables(
    runs: Sequence[Path | str], format_: str, out: Path | None = None, names: Sequence[str] = ()
) -> None:
    """Write tables to a file, or print them.

    Args:
        runs: run directories; of several, it is the tables of their comparison.
        format_: one of ``FORMATS``.
        out: the file; stdout by default.
        names: keys of the tables wanted; all by default.

    Raises:
        RunError: a directory is no finished run, there is no such table, or the file cannot be written.
    """
    text = FORMATS[format_](choose_sheets(collect_sheets(runs), names))
    if out is None:
        print(text)
        return
    try:
        write_text(out, text + "\n")
    except OSError as error:
        raise RunError(
            f"cannot be written ({error.strerror})", where=str(out), fix="choose another --out"
        ) from None


def collect_sheets(runs: Sequence[Path | str]) -> list[Sheet]:
    """Return the tables of one run, or those that compare several."""
    results = [read_results(run) for run in runs]
    if len(results) == 1:
        return run_sheets(results[0])
    return compare_runs(results, [read_samples(run) for run in results]).sheets


def choose_sheets(sheets: Sequence[Sheet], names: Sequence[str]) -> list[Sheet]:
    """Return the tables of the given keys, in that order; all if none are given."""
    known = {sheet.key: sheet for sheet in sheets}
    for name in names:
        if name not in known:
            guess = nearest(name, list(known))
            fix = f"did you mean {guess!r}?" if guess else f"choose from {', '.join(known)}"
            raise RunError(f"there is no table {name!r}", fix=fix)
    return [known[name] for name in names] or list(sheets)
