"""``dualtail demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualtail.errors import printable


def demo(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Folder for data, runs and report.")
    ] = Path("dualtail-demo"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the story.")] = False,
) -> None:
    """Show the whole product offline in about two minutes, on embedded models whose true priors are known."""
    from rich.console import Console

    from dualtail.cli.console import ConsoleObserver
    from dualtail.lab.demo import CONTROLS, RUN, tell_demo
    from dualtail.report.page import write_page

    observer = ConsoleObserver(quiet)
    out = Console(highlight=False, soft_wrap=False)
    try:
        for chapter in tell_demo(directory, observer):
            observer.close()
            _show(out, chapter.title, chapter.text, chapter.rows)
    finally:
        observer.close()
    page = write_page([directory / RUN, directory / CONTROLS], directory / "report.html")
    print(printable(f"report: {page}"))


def _show(console, title: str, text: str, rows: tuple[tuple[str, ...], ...]) -> None:  # type: ignore[no-untyped-def]
    from rich.table import Table

    from dualtail.report.words import shown

    console.print(f"\n[bold]{shown(title)}[/bold]")
    console.print(shown(text, keep="\n"), width=min(console.width, 100))
    if rows:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for number, head in enumerate(rows[0]):
            table.add_column(head, justify="left" if number == 0 else "right")
        for row in rows[1:]:
            table.add_row(*map(shown, row))
        console.print(table)
    console.print()
