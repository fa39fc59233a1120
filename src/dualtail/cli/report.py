"""``dualtail report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Page to write; RUN/report.html if left out."),
    ] = None,
) -> None:
    """Print the tables of runs and write them as one HTML page that needs no network."""
    from dualtail.report.page import write_page
    from dualtail.report.tables import print_run

    for run in runs:
        print_run(run)
    print(f"\nreport: {write_page(runs, out or runs[0] / 'report.html')}")
