"""Several runs side by side: what they reach, paired differences, what differs in their settings, spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from dualtail.logits.comparison import paired_test, summarize_seeds
from dualtail.report.results import Row, RunResults, read_results
from dualtail.report.samples import Samples, read_samples
from dualtail.report.sentences import GROUP_TITLES, and_list, comparison_of, count, spell_less
from dualtail.report.sheet import Column, Estimate, Sheet, format_interval, format_value
from dualtail.report.tables import (
    cells_of_groups,
    metrics_cells,
    plain_console,
    print_results,
    print_sheet,
)
from dualtail.runs.store import fingerprint, recipe_differences

# What makes runs differ in their seed alone.
_SEED_KEYS = ("seed", "name")


@dataclass(frozen=True)
class Comparison:
    """Several runs compared with the first.

    Attributes:
        names: of the runs, each once.
        sentence: what can be said.
        runs: a row a run.
        differences: paired differences to the first run.
        settings: the keys of the recipes that differ.
        seeds: mean and spread over runs that differ in their seed alone.
    """

    names: list[str]
    sentence: str
    runs: Sheet
    differences: Sheet
    settings: Sheet
    seeds: Sheet

    @property
    def sheets(self) -> list[Sheet]:
        """The tables that have something in them."""
        return [sheet for sheet in (self.runs, self.differences, self.seeds, self.settings) if sheet]


def print_runs(roots: Sequence[Path | str], console: Console | None = None) -> None:
    """Print what runs found on stdout: each of them, then how they compare.

    Raises:
        RunError: a directory is no run or has not finished.
    """
    console = console or plain_console()
    runs = [read_results(root) for root in roots]
    for place, run in enumerate(runs):
        if place:
            console.print()
        print_results(run, console)
    if len(runs) > 1:
        console.print()
        found = compare_runs(runs, [read_samples(run) for run in runs])
        console.print(f"[bold]{len(runs)} runs compared[/bold]")
        console.print(escape(found.sentence), soft_wrap=True)
        for sheet in found.sheets:
            console.print()
            print_sheet(sheet, console)


def compare_runs(runs: Sequence[RunResults], samples: Sequence[Samples | None]) -> Comparison:
    """Compare runs with the first of them.

    Args:
        runs: two or more.
        samples: the answers of their models, None where the logits are missing.
    """
    names = distinct_names(runs)
    differences, unpaired = _differences(runs, samples, names)
    return Comparison(
        names=names,
        sentence=_sentence(names, differences, unpaired),
        runs=_runs_sheet(runs, names),
        differences=differences,
        settings=_settings_sheet(runs, names),
        seeds=_seeds_sheet(runs, names),
    )


def distinct_names(runs: Sequence[RunResults]) -> list[str]:
    """Return the runs' names, with their folder where two have the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{run.root.resolve().parent.name}/{name}"
        for name, run in zip(names, runs, strict=True)
    ]


def _runs_sheet(runs: Sequence[RunResults], names: Sequence[str]) -> Sheet:
    rows: list[Row] = []
    for name, run in zip(names, runs, strict=True):
        cells = metrics_cells(run.metrics)
        low, high = run.metrics.get("macro_ci") or (None, None)
        rows.append(
            {
                "run": name,
                "members": len(run.members),
                "classes": len(run.classes),
                "n": run.metrics.get("n"),
                "macro": Estimate(run.metrics.get("macro"), low, high),
                **{key: cells.get(key) for key in ("overall", "d_many", "d_medium", "d_few", "tail_tail")},
            }
        )
    columns = [
        Column("run", "run"),
        Column("members", "M", "count"),
        Column("classes", "classes", "count", spare=3),
        Column("n", "test images", "count", spare=3),
        Column("overall", "all", "percent", "high"),
        Column("macro", "macro", "percent", "high", spare=2),
        *(
            Column(f"d_{key}", f"D-{title}", "percent", "high", spare=2 if key == "medium" else 1)
            for key, title in GROUP_TITLES.items()
        ),
        # Of other classes in each run where the priors differ: no best one to mark.
        Column("tail_tail", "tail-tail", "percent", "high" if _same_p_groups(runs) else None),
    ]
    used = [column for column in columns if any(_known(row[column.key]) for row in rows)]
    note = (
        f"Tail-tail has each run's own classes here, by the priors of its members; the differences below have those of "
        f"{names[0]} in all runs."
        if not _same_p_groups(runs)
        else ""
    )
    return Sheet("runs", "The adjusted ensembles of the runs, accuracy in per cent", used, rows, note)


def _same_p_groups(runs: Sequence[RunResults]) -> bool:
    return len({tuple(run.classes.p_groups or ()) for run in runs}) == 1


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, Estimate) and value.value is None)


def _differences(
    runs: Sequence[RunResults], samples: Sequence[Samples | None], names: Sequence[str]
) -> tuple[Sheet, list[str]]:
    """Return the paired differences to the first run, and the runs that were measured on other images."""
    rows: list[Row] = []
    unpaired: list[str] = []
    first = samples[0]
    for name, run, other in list(zip(names, runs, samples, strict=True))[1:]:
        places = None if first is None or other is None else pair_images(first, other)
        if first is None or other is None or places is None or run.classes.names != runs[0].classes.names:
            unpaired.append(name)
            continue
        confidence = runs[0].recipe.evaluate.confidence
        for title, measure, mask in _questions(runs[0], first):
            found = paired_test(
                other.ensemble.prediction[places],
                first.ensemble.prediction,
                first.labels,
                measure=measure,
                classes=mask,
                confidence=confidence,
            )
            difference = comparison_of(found.to_dict())
            rows.append({"run": name, "measure": title, "difference": difference, "p_value": found.p_value})
    columns = [
        Column("run", "run"),
        Column("measure", "accuracy"),
        Column("difference", "difference in points", "points"),
        Column("p_value", "p", "p_value"),
    ]
    note = "Paired on the same images, without correction for the number of comparisons."
    if unpaired:
        note += (
            f" Not paired, as the test images or classes differ or logits are missing: {', '.join(unpaired)}."
        )
    return Sheet("differences", f"Differences to {names[0]}", columns, rows, note), unpaired


def _questions(
    run: RunResults, samples: Samples
) -> list[tuple[str, Literal["overall", "macro"], NDArray[np.bool_] | None]]:
    """Return (title, measure, classes) of what is compared: all, and those who suffer."""
    measured = np.bincount(samples.labels, minlength=len(run.classes)) > 0
    masks = cells_of_groups(run)
    questions: list[tuple[str, Literal["overall", "macro"], NDArray[np.bool_] | None]] = [
        ("all", "overall", None)
    ]
    sizes = np.bincount(samples.labels, minlength=len(run.classes))[measured]
    if len(set(sizes.tolist())) > 1:
        questions.append(("macro", "macro", None))
    for title, key in (("D-Few", "d_few"), ("tail-tail", "tail_tail")):
        if key in masks and (masks[key] & measured).any():
            questions.append((title, "macro", masks[key]))
    return questions


def pair_images(first: Samples, other: Samples) -> NDArray[np.int64] | None:
    """Return the rows of ``other`` that hold the images of ``first``, in their order; None if the images differ.

    Images with the same name but another label are other images.
    """
    place = {name: row for row, name in enumerate(other.sample_ids)}
    if len(place) != len(first) or len(place) != len(other):
        return None
    rows = [place.get(name) for name in first.sample_ids]
    if any(row is None for row in rows):
        return None
    found = np.array(rows, dtype=np.int64)
    return found if (other.labels[found] == first.labels).all() else None


def _sentence(names: Sequence[str], differences: Sheet, unpaired: Sequence[str]) -> str:
    overall = [(row["run"], row["difference"]) for row in differences.rows if row["measure"] == "all"]
    if not overall:
        return "The runs were measured on different images, so that their differences cannot be paired."
    parts = []
    for name, difference in overall:
        points = (
            f"{format_value('points', difference.value)} points ({format_interval('points', difference)})"
        )
        if difference.low > 0:
            parts.append(f"{name} is better than {names[0]} by {points}")
        elif difference.high < 0:
            parts.append(f"{name} is worse than {names[0]} by {spell_less(difference)}")
        else:
            parts.append(f"between {name} and {names[0]} no difference can be told ({points})")
    line = "; ".join(parts)
    return f"{line[0].upper()}{line[1:]}."


# --- settings and seeds


def _settings_sheet(runs: Sequence[RunResults], names: Sequence[str]) -> Sheet:
    settings = [run.recipe.model_dump(mode="json") for run in runs]
    keys = {key for run in runs[1:] for key in recipe_differences(runs[0].recipe, run.recipe)} - {"name"}
    rows = [
        {"key": key, **{f"run{number}": _setting(found, key) for number, found in enumerate(settings)}}
        for key in sorted(keys)
    ]
    columns = [Column("key", "setting")] + [Column(f"run{number}", name) for number, name in enumerate(names)]
    return Sheet("settings", "Settings that differ", columns, rows)


def _setting(content: Any, key: str) -> str:
    """Return the value at a dotted key as text; nothing where the recipe has no such key."""
    for part in key.split("."):
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        else:
            return ""
    return _shown(content)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _seeds_sheet(runs: Sequence[RunResults], names: Sequence[str]) -> Sheet:
    """Return mean, standard deviation and t-interval over each set of runs that differ in their seed alone."""
    families: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        families.setdefault(_without_seeds(run), []).append(number)
    rows: list[Row] = []
    for members in families.values():
        if len(members) > 1:
            cells = [metrics_cells(runs[number].metrics) for number in members]
            row: Row = {"runs": and_list([names[number] for number in members]), "n": len(members)}
            for key in ("overall", "d_few", "tail_tail"):
                values = [cell[key].value for cell in cells if key in cell and cell[key].value is not None]
                if len(values) == len(members):
                    summary = summarize_seeds(values, runs[members[0]].recipe.evaluate.confidence)
                    low, high = summary.ci
                    # An accuracy lies between 0 and 1, which t does not know.
                    row |= {
                        key: Estimate(summary.mean, max(low, 0.0), min(high, 1.0)),
                        f"{key}_std": summary.std,
                    }
            rows.append(row)
    columns = [
        Column("runs", "runs"),
        Column("n", "seeds", "count"),
        Column("overall", "all, mean", "percent"),
        Column("overall_std", "standard deviation", "percent"),
        Column("d_few", "D-Few, mean", "percent"),
        Column("d_few_std", "standard deviation", "percent"),
        Column("tail_tail", "tail-tail, mean", "percent"),
        Column("tail_tail_std", "standard deviation", "percent"),
    ]
    used = [column for column in columns if any(_known(row.get(column.key)) for row in rows)]
    title = f"Spread over seeds: {count(len(rows), 'set')} of runs that differ in their seed alone"
    return Sheet("seeds", title, used, rows, "Intervals are Student's t over the seeds.")


def _without_seeds(run: RunResults) -> str:
    content = run.recipe.model_dump(mode="json", exclude={"runtime", *_SEED_KEYS})
    for member in content["members"]:
        member["seeds"] = None if member["seeds"] is None else len(member["seeds"])
    return fingerprint(content)
