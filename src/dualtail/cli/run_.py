"""``dualtail run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualtail.errors import printable

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable.", show_default=False
    ),
]


def run(
    recipe: RecipeArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Run directory.", show_default=False)
    ],
    set_: SetOption = None,
    update: Annotated[
        bool,
        typer.Option("--update", help="Go on in a directory of another recipe; redo the stages that change."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, only notes and results.")
    ] = False,
) -> None:
    """Run the whole pipeline of a recipe: zero-shot, priors, fine-tuning, adjustment, evaluation, report.

    Stop it with Ctrl-C whenever you like: the same command goes on where it was.
    """
    from dualtail.cli.console import ConsoleObserver
    from dualtail.process_group import ProcessGroup
    from dualtail.report.page import write_page
    from dualtail.report.terminal import print_runs
    from dualtail.runs.pipeline import run_pipeline
    from dualtail.runs.recipe_file import read_recipe

    observer = ConsoleObserver(quiet)
    try:
        finished = run_pipeline(read_recipe(recipe, set_ or []), out, update=update, observer=observer)
    finally:
        observer.close()
    if not ProcessGroup.launched().leads:
        return  # of several processes the first one speaks
    print_runs([finished.root])
    print(printable(f"\nreport: {write_page([finished.root], finished.report)}", keep="\n"))
