"""``dualtail report``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dualtail.errors import printable


class Format(str, Enum):
    """What the tables are written as."""

    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File to write: the page (RUN/report.html if left out), or with --format the tables (stdout if left "
            "out).",
        ),
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option("--format", help="Write the tables in this format, and no page.", show_default=False),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table", metavar="NAME", help="With --format: only this table; repeatable.", show_default=False
        ),
    ] = None,
    images: Annotated[
        bool,
        typer.Option("--images/--no-images", help="Put thumbnails of the worst test images on the page."),
    ] = True,
) -> None:
    """Print the tables of finished runs and write them as one HTML page that needs no network.

    Several runs are compared with the first.
    """
    if format_ is not None:
        from dualtail.report.export import write_tables

        write_tables(runs, format_.value, out, table or [])
        return
    if table:
        raise typer.BadParameter("chooses among the tables that --format writes", param_hint="--table")
    from dualtail.report.page import write_page
    from dualtail.report.terminal import print_runs

    print_runs(runs)
    print(printable(f"\nreport: {write_page(runs, out, images=images)}", keep="\n"))
