"""Predictions on stdout, for a person or for a program."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dualtail.errors import printable
from dualtail.files import csv_cell
from dualtail.report.words import shown
from dualtail.runs.predict import Prediction


def print_predictions(predictions: Sequence[Prediction], format_: str) -> None:
    """Print predictions as a ``table``, as ``jsonl`` (one object an image) or as ``csv`` (one row a class)."""
    if format_ == "jsonl":
        for prediction in predictions:
            classes = [{"class": name, "probability": round(p, 6)} for name, p in prediction.classes]
            line = {"path": prediction.path, "predictions": classes}
            print(printable(json.dumps(line, ensure_ascii=False)))  # its escapes are those of JSON
    elif format_ == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "rank", "class", "probability"])
        for prediction in predictions:
            for rank, (name, probability) in enumerate(prediction.classes, 1):
                path, class_name = (printable(csv_cell(text)) for text in (prediction.path, name))
                writer.writerow([path, rank, class_name, f"{probability:.6f}"])
    else:
        table = Table(box=None, pad_edge=False)
        table.add_column("image", overflow="fold")
        table.add_column("class", overflow="fold")
        table.add_column("probability", justify="right")
        for prediction in predictions:
            for rank, (name, probability) in enumerate(prediction.classes):
                table.add_row(
                    "" if rank else shown(prediction.path), shown(name), f"{100 * probability:.1f} %"
                )
        Console(highlight=False).print(table)
