"""Runs in a terminal: their overview and their tables, with as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dualtail.errors import printable
from dualtail.report.comparison import compare_runs
from dualtail.report.report_table import Column, ReportTable, format_interval, format_value
from dualtail.report.samples import read_samples
from dualtail.report.sentences import describe_run
from dualtail.report.tables.methods import comparisons_table, methods_table, subsets_table
from dualtail.report.words import shown
from dualtail.runs.finished import RunResults, read_results

# So many subsets are shown; the page and the files have them all.
_SUBSETS = 15
# What is printed where the width is not known, such as into a file.
_PLAIN_WIDTH = 120
_TEXT_WIDTH, _NARROWEST_TEXT = 28, 8  # letters of a column of words before it wraps


def print_runs(roots: Sequence[Path | str], console: Console | None = None) -> None:
    """Print what runs found on stdout: each of them, then, of several, how they compare.

    Args:
        roots: run directories.
        console: where to print.

    Raises:
        RunError: a directory is no run or has not finished.
    """
    console = console or _plain_console()
    runs = [read_results(root) for root in roots]
    for place, run in enumerate(runs):
        if place:
            console.print()
        _print_run(run, console)
    if len(runs) > 1:
        comparison = compare_runs(runs, [read_samples(run) for run in runs])
        console.print(f"\n[bold]{len(runs)} runs compared[/bold]")
        console.print(shown(comparison.sentence), soft_wrap=True)
        _print_tables(comparison.tables, console)


def _plain_console() -> Console:
    """Return a console on stdout that is wide enough where stdout is a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def _print_run(results: RunResults, console: Console) -> None:
    """Print a run's overview, methods and subsets."""
    console.print(f"[bold]{shown(results.name)}[/bold]")
    if results.stale:
        console.print(f"[bold red]{shown(results.stale)}[/bold red]", soft_wrap=True)
    for line in describe_run(results):
        console.print(f"[dim]{line.topic}:[/dim] {shown(line)}", soft_wrap=True)
    subsets = subsets_table(results)
    left_out = len(subsets.rows) - _SUBSETS
    if left_out > 0:
        file = results.run.adjusted.export("subsets").relative_to(results.root)
        note = f"{left_out} smaller subsets are in {file}"
        subsets = replace(subsets, rows=subsets.rows[-_SUBSETS:], note=note)
    _print_tables([methods_table(results), comparisons_table(results), subsets], console)


def _print_tables(tables: Sequence[ReportTable], console: Console) -> None:
    for table in filter(None, tables):
        console.print()
        console.print(_fitting(table, console.width))
        if table.note:
            console.print(f"[dim]{shown(table.note)}[/dim]", soft_wrap=True)


def _fitting(table: ReportTable, width: int) -> Table:
    """Return the table with the columns that the terminal has room for."""
    columns, text_width = list(table.columns), _TEXT_WIDTH
    while sum(_column_width(table, column, text_width) + 2 for column in columns) - 2 > width:
        spared = max(columns, key=lambda column: (column.spare, columns.index(column)))
        if spared.spare:
            columns.remove(spared)
        elif text_width > _NARROWEST_TEXT:
            text_width -= 1
        else:
            break
    return _to_rich(replace(table, columns=columns), text_width)


def _to_rich(table: ReportTable, text_width: int) -> Table:
    """Return a table as Rich has them; words may wrap once they have had ``text_width`` letters."""
    printed = Table(
        box=None, pad_edge=False, title=shown(table.title), title_justify="left", title_style="bold"
    )
    for column in table.columns:
        printed.add_column(
            shown(column.title),
            justify="left" if column.is_text else "right",
            overflow="fold",
            min_width=_column_width(table, column, text_width),
        )
    previous: Any = None
    for row in table.rows:
        mark = row.get("mark")
        if mark and mark != previous:
            printed.add_row(f"[dim]{shown(table.marks.get(mark, mark))}[/dim]")
        previous = mark
        cells = (_cell(column, row.get(column.key)) for column in table.columns)
        printed.add_row(*cells, style="dim" if mark else "")
    return printed


def _column_width(table: ReportTable, column: Column, text_width: int) -> int:
    """Return the letters that a column needs: numbers are never cut, words may wrap."""
    longest = max([len(column.title), *(_cell_width(column, row.get(column.key)) for row in table.rows)])
    return min(longest, text_width) if column.is_text else longest


def _cell_width(column: Column, value: Any) -> int:
    interval = format_interval(column.kind, value) if column.intervals else ""
    return len(printable(format_value(column.kind, value))) + (len(f" ({interval})") if interval else 0)


def _cell(column: Column, value: Any) -> str:
    interval = format_interval(column.kind, value) if column.intervals else ""
    text = shown(format_value(column.kind, value)) or "[dim]-[/dim]"
    return f"{text} [dim]({interval})[/dim]" if interval else text
