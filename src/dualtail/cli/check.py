"""``dualtail check``."""

from __future__ import annotations

from typing import Annotated

import typer

from dualtail.cli.run_ import RecipeArgument, SetOption


def check(
    recipe: RecipeArgument,
    set_: SetOption = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Decode every image, as slow as one epoch."),
    ] = False,
) -> None:
    """List every fault of a recipe and its data at once, and say what the run would train, store and cost.

    Exits with 2 if the recipe cannot run.
    """
    from rich.console import Console

    from dualtail.cli.console import ConsoleObserver
    from dualtail.report.words import shown
    from dualtail.runs.check import check_recipe

    observer = ConsoleObserver()
    try:
        result = check_recipe(recipe, set_ or [], deep=deep, observer=observer)
    finally:
        observer.close()
    console = Console(highlight=False, soft_wrap=True)
    for name, fact in result.facts:
        console.print(f"[bold]{shown(name)}[/bold]: {shown(fact)}")
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/yellow] {shown(warning)}")
    for fault in result.faults:
        console.print(f"[red]fault:[/red] {shown(fault)}")
    faults, warnings = len(result.faults), len(result.warnings)
    verdict = "cannot run" if faults else "can run"
    console.print(
        f"{shown(recipe)} {verdict}: {faults} fault{'s' * (faults != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    )
    if faults:
        raise typer.Exit(2)
