"""Several runs against the first of them: paired differences on the same images, and what can be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dualtail.logits.comparison import paired_test
from dualtail.report.report_table import Column, ReportTable, difference_estimate
from dualtail.report.samples import Samples
from dualtail.report.tables.runs import runs_table, seeds_table, settings_table
from dualtail.report.words import spell_less, spell_points
from dualtail.runs.finished import RunResults
from dualtail.runs.results import Row, groups_by_name

Question = tuple[str, Literal["overall", "macro"], NDArray[np.bool_] | None]
"""What is compared: (title, measure, classes)."""


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
    runs: ReportTable
    differences: ReportTable
    settings: ReportTable
    seeds: ReportTable

    @property
    def tables(self) -> list[ReportTable]:
        """The tables that have something in them."""
        return [table for table in (self.runs, self.differences, self.seeds, self.settings) if table]


def compare_runs(runs: Sequence[RunResults], samples: Sequence[Samples | None]) -> Comparison:
    """Compare runs with the first of them.

    Args:
        runs: two or more.
        samples: the answers of their models, None where the logits are missing.
    """
    names = distinct_names(runs)
    differences = _differences(runs, samples, names)
    return Comparison(
        names=names,
        sentence=_sentence(names, differences),
        runs=runs_table(runs, names),
        differences=differences,
        settings=settings_table(runs, names),
        seeds=seeds_table(runs, names),
    )


def distinct_names(runs: Sequence[RunResults]) -> list[str]:
    """Return the runs' names, with their folder where two have the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{run.root.resolve().parent.name}/{name}"
        for name, run in zip(names, runs, strict=True)
    ]


def _differences(
    runs: Sequence[RunResults], samples: Sequence[Samples | None], names: Sequence[str]
) -> ReportTable:
    """Return the paired differences to the first run; the note names the runs that cannot be paired."""
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
            test = paired_test(
                other.ensemble.prediction[places],
                first.ensemble.prediction,
                first.labels,
                measure=measure,
                classes=mask,
                confidence=confidence,
            )
            difference = difference_estimate(test)
            rows.append({"run": name, "measure": title, "difference": difference, "p_value": test.p_value})
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
    return ReportTable("differences", f"Differences to {names[0]}", columns, rows, note)


def _questions(run: RunResults, samples: Samples) -> list[Question]:
    """Return what is compared: all images, all classes, and those who suffer."""
    sizes = np.bincount(samples.labels, minlength=len(run.classes))
    measured = sizes > 0
    questions: list[Question] = [("all", "overall", None)]
    if len(set(sizes[measured].tolist())) > 1:
        questions.append(("macro", "macro", None))
    few = groups_by_name(run.classes.d_groups, "D").mask("few").numpy()
    suffering = [("D-Few", few)]
    if run.classes.p_groups is not None:
        suffering.append(("tail-tail", few & groups_by_name(run.classes.p_groups, "P").mask("few").numpy()))
    return questions + [(title, "macro", mask) for title, mask in suffering if (mask & measured).any()]


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
    order = np.array(rows, dtype=np.int64)
    return order if (other.labels[order] == first.labels).all() else None


def _sentence(names: Sequence[str], differences: ReportTable) -> str:
    overall = [(row["run"], row["difference"]) for row in differences.rows if row["measure"] == "all"]
    if not overall:
        return "The runs cannot be paired: their images or classes differ, or logits are missing."
    parts = []
    for name, difference in overall:
        points = spell_points(difference)
        if difference.low > 0:
            parts.append(f"{name} is better than {names[0]} by {points}")
        elif difference.high < 0:
            parts.append(f"{name} is worse than {names[0]} by {spell_less(difference)}")
        else:
            parts.append(f"between {name} and {names[0]} no difference can be told ({points})")
    line = "; ".join(parts)
    return f"{line[0].upper()}{line[1:]}."
