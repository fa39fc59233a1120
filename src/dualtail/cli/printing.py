"""Predictions on stdout, for a person or for a program."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dualtail.runs.predict import Prediction


def print_predictions(predictions: Sequence[Prediction], format_: str) -> None:
    """Print predictions as a ``table``, as ``jsonl`` (one object an image) or as ``csv`` (one row a class)."""
    if format_ == "jsonl":
        for prediction in predictions:
            classes = [{"class": name, "probability": round(p, 6)} for name, p in prediction.classes]
            print(json.dumps({"path": prediction.path, "predictions": classes}, ensure_ascii=False))
    elif format_ == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "rank", "class", "probability"])
        for prediction in predictions:
            for rank, (name, probability) in enumerate(prediction.classes, 1):
                writer.writerow([prediction.path, rank, name, f"{probability:.6f}"])
    else:
        table = Table(box=None, pad_edge=False)
        table.add_column("image", overflow="fold")
        table.add_column("class", overflow="fold")
        table.add_column("probability", justify="right")
        for prediction in predictions:
            for rank, (name, probability) in enumerate(prediction.classes):
                table.add_row(
                    "" if rank else escape(prediction.path), escape(name), f"{100 * probability:.1f} %"
                )
        Console(highlight=False).print(table)
