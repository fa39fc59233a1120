"""``dualtail data``: data sets that come with dualtail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualtail.errors import printable

app = typer.Typer(no_args_is_help=True, help="Write data sets that need no download.")


@app.callback()
def _group() -> None:
    """Keep ``data`` a group while it has a single command."""


@app.command("digits")
def digits(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.", show_default=False)],
    ratio: Annotated[float, typer.Option(min=1.0, help="Imbalance ratio of the training set.")] = 50.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of images.")] = 0,
) -> None:
    """Write scikit-learn's 1,797 scanned digits as PNG files: a long-tailed train, a balanced val and test."""
    from dualtail.data.digits import write_digits

    manifest = write_digits(directory, ratio=ratio, seed=seed)
    for split in ("train", "val", "test"):
        counts = manifest.counts(split)
        print(f"{split:5} {counts.sum():5d} images, {counts.min()} to {counts.max()} a class")
    print(printable(f"written to {directory}"))
