"""Tables as Markdown, LaTeX, CSV and JSON; names of classes and files are escaped in each."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from dualtail.files import csv_cell
from dualtail.report.report_table import Estimate, ReportTable, format_interval, format_value, number


def to_markdown(tables: Sequence[ReportTable]) -> str:
    """Return tables as GitHub-flavoured Markdown, the best of a column in bold.

    Example:
        >>> from dualtail.report.report_table import Column
        >>> columns = [Column("a", "method"), Column("b", "all", "percent")]
        >>> table = ReportTable("m", "Methods", columns, [{"a": "x|y", "b": 0.5}])
        >>> print(to_markdown([table]))
        **Methods**
        <BLANKLINE>
        | method | all |
        |:--|--:|
        | x\\|y | 50.0 |
    """
    return "\n\n".join(_markdown(table) for table in tables)


def _markdown(table: ReportTable) -> str:
    lines = [f"**{_escape_markdown(table.title)}**", ""]
    lines.append("| " + " | ".join(_escape_markdown(column.title) for column in table.columns) + " |")
    lines.append("|" + "|".join(":--" if column.is_text else "--:" for column in table.columns) + "|")
    for cells in _grid(
        table, _escape_markdown, bold=lambda text: f"**{text}**", small=lambda text: f" ({text})"
    ):
        lines.append("| " + " | ".join(cells) + " |")
    if table.note:
        lines += ["", _escape_markdown(table.note)]
    return "\n".join(lines)


def _escape_markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)
    return " ".join(escaped.split())


def to_latex(tables: Sequence[ReportTable]) -> str:
    r"""Return tables as LaTeX tables (needs ``\usepackage{booktabs}``), the best of a column in bold.

    Example:
        >>> from dualtail.report.report_table import Column
        >>> table = ReportTable("m", "50 % & more", [Column("a", "method")], [{"a": "x_y"}])
        >>> print(to_latex([table]))
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
    return "\n\n".join(_latex(table) for table in tables)


def _latex(table: ReportTable) -> str:
    caption = _escape_latex(table.title + (f". {table.note}" if table.note else ""))
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \label{{tab:{table.key}}}",
        rf"  \begin{{tabular}}{{{''.join('l' if column.is_text else 'r' for column in table.columns)}}}",
        r"    \toprule",
        "    " + " & ".join(_escape_latex(column.title) for column in table.columns) + r" \\",
        r"    \midrule",
    ]
    previous: Any = None
    grid = _grid(
        table,
        _escape_latex,
        bold=lambda text: rf"\textbf{{{text}}}",
        small=lambda text: rf" {{\scriptsize ({text})}}",
    )
    for row, cells in zip(table.rows, grid, strict=True):
        mark = row.get("mark")
        if mark and mark != previous:
            lines.append(r"    \midrule")
            heading = rf"\emph{{{_escape_latex(table.marks.get(mark, mark))}}}"
            lines.append(rf"    \multicolumn{{{len(table.columns)}}}{{l}}{{{heading}}} \\")
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
    table: ReportTable,
    escape: Callable[[str], str],
    *,
    bold: Callable[[str], str],
    small: Callable[[str], str],
) -> list[list[str]]:
    """Return every cell as escaped text, best values bold, intervals small behind them."""
    best = {column.key: table.best_rows(column) for column in table.columns}
    grid = []
    for index, row in enumerate(table.rows):
        cells = []
        for column in table.columns:
            value = row.get(column.key)
            text = escape(format_value(column.kind, value))
            if index in best[column.key]:
                text = bold(text)
            interval = format_interval(column.kind, value) if column.intervals else ""
            cells.append(text + (small(escape(interval)) if interval else ""))
        grid.append(cells)
    return grid


def to_csv(tables: Sequence[ReportTable]) -> str:
    """Return tables as CSV with fractions, one after another, each under a ``# title`` line if there are several.

    No cell is a formula.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for place, table in enumerate(tables):
        if len(tables) > 1:
            text.write(f"{'' if place == 0 else chr(10)}# {' '.join(table.title.split())}\n")
        records = to_records(table)
        columns = list(dict.fromkeys(key for record in records for key in record))
        writer.writerow(columns)
        writer.writerows([csv_cell(record.get(key)) for key in columns] for record in records)
    return text.getvalue().rstrip("\n")


def to_json(tables: Sequence[ReportTable]) -> str:
    """Return tables as one JSON object ``{key: {"title": ..., "rows": [...]}}`` with fractions."""
    content = {
        table.key: {"title": table.title, "note": table.note, "rows": to_records(table)} for table in tables
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def to_records(table: ReportTable) -> list[dict[str, Any]]:
    """Return the rows with plain values: an estimate becomes ``key``, ``key_low`` and ``key_high``."""
    bounded = {
        column.key
        for column in table.columns
        for row in table.rows
        if isinstance(cell := row.get(column.key), Estimate) and cell.low is not None
    }
    records = []
    for row in table.rows:
        record: dict[str, Any] = {}
        for column in table.columns:
            cell = row.get(column.key)
            record[column.key] = (None if cell is None else str(cell)) if column.is_text else number(cell)
            if column.kind == "count" and record[column.key] is not None:
                record[column.key] = round(record[column.key])
            if column.key in bounded:
                low, high = (cell.low, cell.high) if isinstance(cell, Estimate) else (None, None)
                record |= {f"{column.key}_low": low, f"{column.key}_high": high}
        if table.marks:
            record["source"] = row.get("mark") or "this run"
        records.append(record)
    return records
