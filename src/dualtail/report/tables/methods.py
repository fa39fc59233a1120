"""What helped: every method, every subset of the members, and the ensemble against each member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev

from dualtail.logits.metrics import Evaluation
from dualtail.report.published import find_benchmark, published_marks
from dualtail.report.report_table import Column, Estimate, ReportTable, difference_estimate
from dualtail.report.tables.groups import metric_columns
from dualtail.runs.finished import RunResults
from dualtail.runs.results import Row

KINDS = ("one model", "seeds of one model", "different models", "mixed")
"""What a subset of the members may be made of."""


def methods_table(results: RunResults) -> ReportTable:
    """Return the table of methods: zero-shot, adjustments, members, the ensemble, and published rows."""
    rows: list[Row] = [
        {
            "label": method.label,
            "members": _those(method.members, results),
            "m": len(method.members),
            **_accuracies(method.evaluation),
            "worst": method.evaluation.worst,
            "ece": method.evaluation.ece,
        }
        for method in results.methods
    ]
    several = any(row["m"] > 1 for row in rows)
    benchmark = find_benchmark(results.classes)
    if benchmark is not None:
        rows += [published.to_row() for published in benchmark.methods]
    columns = [
        Column("label", "method"),
        Column("members", "of"),
        *([Column("m", "M", "count", spare=3)] if several else []),
        *metric_columns(results),
        Column("macro", "macro", "percent", "high", spare=5),
        Column("worst", "worst class", "percent", "high", spare=6),
        Column("ece", "ECE", "percent", "low", spare=6),
    ]
    title = f"Methods, accuracy in per cent on {results.classes.evaluated_on}"
    return ReportTable("methods", title, columns, rows, marks=published_marks(results.classes))


def _those(names: Sequence[str], results: RunResults) -> str:
    everyone = len(names) > 1 and len(names) in (len(results.members), len(results.backbones))
    return "all" if everyone else ", ".join(names)


def _accuracies(evaluation: Evaluation) -> Row:
    """Return the accuracies of a row, that over all images with its interval."""
    groups = evaluation.by_group()
    return {
        **{key: group.accuracy for key, group in groups.items()},
        "overall": Estimate.of(groups["overall"]),
        "macro": evaluation.macro,
    }


def subsets_table(results: RunResults) -> ReportTable:
    """Return every subset of the members; empty where there is one member."""
    rows: list[Row] = [
        {
            "label": ", ".join(subset.members),
            "m": len(subset.members),
            "kind": subset_kind(results, subset.members),
            **_accuracies(subset.evaluation),
        }
        for subset in results.subsets
        if len(results.members) > 1
    ]
    rows.sort(key=lambda row: (row["m"], -row["overall"].value))
    columns = [
        Column("label", "members"),
        Column("m", "M", "count"),
        Column("kind", "made of"),
        *metric_columns(results),
        Column("macro", "macro", "percent", "high", spare=5),
    ]
    if len({row["kind"] for row in rows if row["m"] > 1}) < 2:
        columns = [column for column in columns if column.key != "kind"]
    return ReportTable("subsets", "Every subset of the members", columns, rows)


def subset_kind(results: RunResults, names: Sequence[str]) -> str:
    """Return which of :data:`KINDS` the members of these names are."""
    if len(names) < 2:
        return "one model"
    backbones = [member.backbone for member in results.members if member.name in names]
    distinct = len(set(backbones))
    if distinct == 1:
        return "seeds of one model"
    return "different models" if distinct == len(backbones) else "mixed"


def subset_sizes_table(results: RunResults) -> ReportTable:
    """Return mean and spread over the subsets of each size, seeds of one model apart from different models."""
    families: dict[tuple[int, str], list[Row]] = {}
    for row in subsets_table(results).rows:
        families.setdefault((row["m"], row["kind"]), []).append(row)
    order = sorted(families, key=lambda family: (family[0], KINDS.index(family[1])))
    shown = [
        replace(column, best=None)
        for column in metric_columns(results)
        if column.key in ("d_many", "d_medium", "d_few", "tail_tail")
    ]
    rows = [_size_row(*family, families[family], [column.key for column in shown]) for family in order]
    benchmark = find_benchmark(results.classes)
    if rows and benchmark is not None:
        rows += [{**published.to_row(), "kind": published.label} for published in benchmark.ablation]
    columns = [
        Column("kind", "made of"),
        Column("m", "M", "count"),
        Column("subsets", "subsets", "count"),
        Column("overall", "mean accuracy", "percent"),
        Column("spread", "standard deviation", "percent"),
        *shown,
    ]
    title = "How many members: mean and spread over the subsets of each size"
    return ReportTable("subset_sizes", title, columns, rows, marks=published_marks(results.classes))


def _size_row(size: int, kind: str, subsets: Sequence[Row], keys: Sequence[str]) -> Row:
    values = [row["overall"].value for row in subsets]
    averages: Row = {
        "m": size,
        "kind": kind,
        "subsets": len(subsets),
        "overall": mean(values),
        "spread": stdev(values) if len(values) > 1 else None,
    }
    for key in keys:
        known = [row[key] for row in subsets if row.get(key) is not None]
        averages[key] = mean(known) if known else None
    return averages


def comparisons_table(results: RunResults) -> ReportTable:
    """Return the paired differences between the ensemble and each member, in points of accuracy."""
    rows: dict[str, Row] = {}
    for comparison in results.comparisons:
        row = rows.setdefault(comparison.member, {"member": comparison.member})
        key = comparison.test.measure if comparison.classes == "all" else comparison.classes
        row[key] = difference_estimate(comparison.test)
        if key == "overall":
            row["p_value"] = comparison.test.p_value
    # On as many images of each class the two accuracies are the same; without P-groups nothing is tail-tail.
    balanced = len(set(results.classes.counts.get(results.classes.evaluated_on, []))) < 2
    columns = [
        Column("member", "ensemble minus"),
        Column("overall", "all", "points"),
        Column("p_value", "p of all", "p_value", spare=2),
        *([] if balanced else [Column("macro", "macro", "points", spare=1)]),
        Column("d_few", "D-Few", "points"),
        *([Column("tail_tail", "tail-tail", "points")] if results.has_groups else []),
    ]
    used = [column for column in columns if any(row.get(column.key) is not None for row in rows.values())]
    return ReportTable(
        "comparisons",
        "The ensemble against each member, paired on the same images, in points",
        used,
        list(rows.values()),
        "An interval that holds 0 leaves open which of the two is better.",
    )
