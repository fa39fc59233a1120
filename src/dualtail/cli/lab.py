"""``dualtail lab``: models with a known prior, the task they are tried on, and the studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualtail.errors import printable

PAGE_WORLDS = 5

app = typer.Typer(
    no_args_is_help=True,
    help="Pre-train small models whose label prior and lost factors are known; ask questions.",
)

WorldArgument = Annotated[
    Path, typer.Argument(metavar="WORLD", help="World file (YAML).", show_default=False)
]


@app.command("pretrain")
def pretrain(
    world: WorldArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the models.", show_default=False)
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="NAME", help="A foundation of the file; repeatable.", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, ...")] = "cpu",
) -> None:
    """Pre-train the foundations of a world file, each into its folder, readable as open_clip:DIR.

    A folder that was made from the same settings is kept as it is.
    """
    from dualtail.cli.console import ConsoleObserver
    from dualtail.lab.pretrain import pretrain_world
    from dualtail.lab.world import read_world

    observer = ConsoleObserver()
    try:
        folders = pretrain_world(read_world(world), out, only=only, observer=observer, device=device)
    finally:
        observer.close()
    for folder in folders:
        print(printable(f"open_clip:{folder}"))


@app.command("data")
def data(
    world: WorldArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.", show_default=False)
    ],
) -> None:
    """Write a world's task as PNG files: a long-tailed train, a balanced val and test, a table of the factors."""
    from dualtail.lab.task import write_task
    from dualtail.lab.world import read_world

    content = read_world(world)
    manifest = write_task(content, out)
    for split in ("train", "val", "test"):
        counts = manifest.counts(split)
        print(f"{split:5} {counts.sum():5d} images, {counts.min()} to {counts.max()} a class")
    print(f"a classifier that sees every factor exactly: {100 * content.bayes_accuracy:.1f} % of test")
    print(printable(f"written to {out}"))


@app.command("study")
def study(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A study, or 'all'; 'list' names them.", show_default=False)
    ],
    worlds: Annotated[int, typer.Option(min=2, help="Worlds: new codes, priors, images and seeds each.")] = 5,
    most: Annotated[int, typer.Option(min=3, max=5, help="Members of the largest ensemble.")] = 5,
    work: Annotated[
        Path,
        typer.Option("--work", metavar="DIR", help="Where models and logits are kept for the next study."),
    ] = Path("lab-work"),
    docs: Annotated[
        Path | None,
        typer.Option(
            "--docs", metavar="FILE", help="Page whose section of the study is written.", show_default=False
        ),
    ] = None,
) -> None:
    """Run a study over several worlds; print its findings and tables, or write them and plots into a page."""
    from dualtail.cli.console import ConsoleObserver
    from dualtail.errors import InputError
    from dualtail.lab.plots import require_matplotlib
    from dualtail.lab.studies import STUDIES, find_section, get_study, run_study, write_section

    if name == "list":
        for key, study in STUDIES.items():
            print(f"{key:12} {study.question}")
        return
    chosen = list(STUDIES) if name == "all" else [get_study(name).name]
    if docs is not None:  # what cannot be written is said before the work
        if worlds < PAGE_WORLDS:
            raise InputError(
                f"a page of findings needs at least {PAGE_WORLDS} worlds, not {worlds}",
                where="--worlds",
                fix="leave --docs away to look at fewer",
            )
        require_matplotlib()
        for key in chosen:
            find_section(docs, key)
    observer = ConsoleObserver()
    try:
        for key in chosen:
            section = run_study(key, worlds, work, most=most, observer=observer)
            if docs is None:
                print(section.to_markdown())
            else:
                write_section(docs, section)
                print(printable(f"{key}: written to {docs}"))
    finally:
        observer.close()
