"""Tables as Rich, Markdown, LaTeX, CSV and JSON; names of classes and files are escaped in each."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape as escape_markup
from rich.table import Table

from dualtail.report.sheet import Column, Estimate, Sheet, format_interval, format_value, number

TEXT_WIDTH = 28


def to_rich(sheet: Sheet, text_width: int = TEXT_WIDTH) -> Table:
    """Return a sheet as a table for the terminal; words may wrap once they have had ``text_width`` letters."""
    table = Table(
        box=None, pad_edge=False, title=escape_markup(sheet.title), title_justify="left", title_style="bold"
    )
    for column in sheet.columns:
        table.add_column(
            escape_markup(column.title),
            justify="left" if column.is_text else "right",
            overflow="fold",
            min_width=column_width(sheet, column, text_width),
        )
    previous: Any = None
    for row in sheet.rows:
        mark = row.get("mark")
        if mark and mark != previous:
            table.add_row(f"[dim]{escape_markup(sheet.marks.get(mark, mark))}[/dim]")
        previous = mark
        cells = (_rich_cell(column, row.get(column.key)) for column in sheet.columns)
        table.add_row(*cells, style="dim" if mark else "")
    return table


def column_width(sheet: Sheet, column: Column, text_width: int = TEXT_WIDTH) -> int:
    """Return the letters that a column needs in a terminal: numbers are never cut, words may wrap."""
    longest = max([len(column.title), *(len(_plain_cell(column, row.get(column.key))) for row in sheet.rows)])
    return min(longest, text_width) if column.is_text else longest


def _plain_cell(column: Column, value: Any) -> str:
    interval = format_interval(column.kind, value) if column.intervals else ""
    return format_value(column.kind, value) + (f" ({interval})" if interval else "")


def _rich_cell(column: Column, value: Any) -> str:
    interval = format_interval(column.kind, value) if column.intervals else ""
    text = escape_markup(format_value(column.kind, value)) or "[dim]-[/dim]"
    return f"{text} [dim]({interval})[/dim]" if interval else text


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Return sheets as GitHub-flavoured Markdown, the best of a column in bold.

    Example:
        >>> columns = [Column("a", "method"), Column("b", "all", "percent")]
        >>> sheet = Sheet("m", "Methods", columns, [{"a": "x|y", "b": 0.5}])
        >>> print(to_markdown([sheet]))
        **Methods**
        <BLANKLINE>
        | method | all |
        |:--|--:|
        | x\\|y | 50.0 |
    """
    return "\n\n".join(_markdown(sheet) for sheet in sheets)


def _markdown(sheet: Sheet) -> str:
    lines = [f"**{_escape_markdown(sheet.title)}**", ""]
    lines.append("| " + " | ".join(_escape_markdown(column.title) for column in sheet.columns) + " |")
    lines.append("|" + "|".join(":--" if column.is_text else "--:" for column in sheet.columns) + "|")
    for cells in _grid(
        sheet, _escape_markdown, bold=lambda text: f"**{text}**", small=lambda text: f" ({text})"
    ):
        lines.append("| " + " | ".join(cells) + " |")
    if sheet.note:
        lines += ["", _escape_markdown(sheet.note)]
    return "\n".join(lines)


def _escape_markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)
    return " ".join(escaped.split())


def to_latex(sheets: Sequence[Sheet]) -> str:
    r"""Return sheets as LaTeX tables (needs ``\usepackage{booktabs}``), the best of a column in bold.

    Example:
        >>> sheet = Sheet("m", "50 % & more", [Column("a", "method")], [{"a": "x_y"}])
        >>> print(to_latex([sheet]))
        \begin{table}
          \centering
          \caption{50 \% \& more}
          \label{tab:m}
          \begin{tabular}{l}
            \toprule
            method \\
            \midrule
            x\_y \\
            \bottomrule
          \end{tabular}
        \end{table}
    """
    return "\n\n".join(_latex(sheet) for sheet in sheets)


def _latex(sheet: Sheet) -> str:
    caption = _escape_latex(sheet.title + (f". {sheet.note}" if sheet.note else ""))
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \label{{tab:{sheet.key}}}",
        rf"  \begin{{tabular}}{{{''.join('l' if column.is_text else 'r' for column in sheet.columns)}}}",
        r"    \toprule",
        "    " + " & ".join(_escape_latex(column.title) for column in sheet.columns) + r" \\",
        r"    \midrule",
    ]
    previous: Any = None
    grid = _grid(
        sheet,
        _escape_latex,
        bold=lambda text: rf"\textbf{{{text}}}",
        small=lambda text: rf" {{\scriptsize ({text})}}",
    )
    for row, cells in zip(sheet.rows, grid, strict=True):
        mark = row.get("mark")
        if mark and mark != previous:
            lines.append(r"    \midrule")
            heading = rf"\emph{{{_escape_latex(sheet.marks.get(mark, mark))}}}"
            lines.append(rf"    \multicolumn{{{len(sheet.columns)}}}{{l}}{{{heading}}} \\")
        previous = mark
        lines.append("    " + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"])


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return " ".join("".join(_LATEX.get(letter, letter) for letter in text).split())


def _grid(
    sheet: Sheet, escape: Callable[[str], str], *, bold: Callable[[str], str], small: Callable[[str], str]
) -> list[list[str]]:
    """Return every cell as escaped text, best values bold, intervals small behind them."""
    best = {column.key: sheet.best_rows(column) for column in sheet.columns}
    grid = []
    for index, row in enumerate(sheet.rows):
        cells = []
        for column in sheet.columns:
            value = row.get(column.key)
            text = escape(format_value(column.kind, value))
            if index in best[column.key]:
                text = bold(text)
            interval = format_interval(column.kind, value) if column.intervals else ""
            cells.append(text + (small(escape(interval)) if interval else ""))
        grid.append(cells)
    return grid


def to_csv(sheets: Sequence[Sheet]) -> str:
    """Return sheets as CSV with fractions, one after another, each under a ``# title`` line if there are several."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for place, sheet in enumerate(sheets):
        if len(sheets) > 1:
            text.write(f"{'' if place == 0 else chr(10)}# {' '.join(sheet.title.split())}\n")
        records = to_records(sheet)
        columns = list(dict.fromkeys(key for record in records for key in record))
        writer.writerow(columns)
        writer.writerows([record.get(key) for key in columns] for record in records)
    return text.getvalue().rstrip("\n")


def to_json(sheets: Sequence[Sheet]) -> str:
    """Return sheets as one JSON object ``{key: {"title": ..., "rows": [...]}}`` with fractions."""
    content = {
        sheet.key: {"title": sheet.title, "note": sheet.note, "rows": to_records(sheet)} for sheet in sheets
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def to_records(sheet: Sheet) -> list[dict[str, Any]]:
    """Return the rows with plain values: an estimate becomes ``key``, ``key_low`` and ``key_high``."""
    bounded = {
        column.key
        for column in sheet.columns
        for row in sheet.rows
        if isinstance(cell := row.get(column.key), Estimate) and cell.low is not None
    }
    records = []
    for row in sheet.rows:
        record: dict[str, Any] = {}
        for column in sheet.columns:
            cell = row.get(column.key)
            record[column.key] = (None if cell is None else str(cell)) if column.is_text else number(cell)
            if column.kind == "count" and record[column.key] is not None:
                record[column.key] = round(record[column.key])
            if column.key in bounded:
                low, high = (cell.low, cell.high) if isinstance(cell, Estimate) else (None, None)
                record |= {f"{column.key}_low": low, f"{column.key}_high": high}
        if sheet.marks:
            record["source"] = row.get("mark") or "this run"
        records.append(record)
    return records
