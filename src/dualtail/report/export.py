"""The tables of runs as Markdown, LaTeX, CSV or JSON, into a file or to stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dualtail.errors import RunError, check_choice, printable
from dualtail.files import write_text
from dualtail.report.comparison import compare_runs
from dualtail.report.formats import to_csv, to_json, to_latex, to_markdown
from dualtail.report.report_table import ReportTable
from dualtail.report.samples import read_samples
from dualtail.report.tables import run_tables
from dualtail.runs.directory import RunDirectory
from dualtail.runs.finished import read_results

FORMATS: dict[str, Callable[[Sequence[ReportTable]], str]] = {
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
    text = FORMATS[format_](choose_tables(collect_tables(runs), names))
    for run in map(RunDirectory.read, runs):
        if stale := run.standing():
            print(f"{run.root}: {stale}", file=sys.stderr)
    if out is None:
        print(printable(text, keep="\n"))
    else:
        write_out(out, text + "\n")


def write_out(path: Path, text: str) -> None:
    """Write a file that the user named.

    Raises:
        RunError: it cannot be written.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise RunError(
            f"cannot be written ({error.strerror})", where=str(path), fix="choose another --out"
        ) from None


def collect_tables(runs: Sequence[Path | str]) -> list[ReportTable]:
    """Return the tables of one run, or those that compare several."""
    results = [read_results(run) for run in runs]
    if len(results) == 1:
        return run_tables(results[0])
    return compare_runs(results, [read_samples(run) for run in results]).tables


def choose_tables(tables: Sequence[ReportTable], names: Sequence[str]) -> list[ReportTable]:
    """Return the tables of the given keys, in that order; all if none are given.

    Raises:
        RunError: there is no such table.
    """
    known = {table.key: table for table in tables}
    for name in names:
        check_choice("table", name, known, error=RunError)
    return [known[name] for name in names] or list(tables)
