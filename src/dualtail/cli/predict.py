"""``dualtail predict``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Format(str, Enum):
    """How predictions are printed."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"


class BadImage(str, Enum):
    """What becomes of an image that cannot be read."""

    error = "error"
    skip = "skip"


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files and folders.", show_default=False)
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to print for each image.")] = 1,
    format_: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
    on_bad_image: Annotated[
        BadImage, typer.Option(help="Stop at an image that cannot be read, or leave it out.")
    ] = BadImage.error,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            "--max-pixels",
            min=1,
            help="Pixels of an image, at most; the recipe's limit if left out.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Classify images with the adjusted ensemble of a run; prints the class and its probability."""
    from dualtail.cli.console import ConsoleObserver
    from dualtail.cli.printing import print_predictions
    from dualtail.runs.predict import find_images, predict_images

    observer = ConsoleObserver()
    try:
        predictions = predict_images(
            run,
            find_images(images),
            top=top,
            device=device,
            on_bad_image=on_bad_image.value,
            max_pixels=max_pixels,
            observer=observer,
        )
    finally:
        observer.close()
    print_predictions(predictions, format_.value)
