"""Who suffers: accuracy by group of every model."""

from __future__ import annotations

from dualtail.report.model_styles import run_models
from dualtail.report.report_table import Column, ReportTable, group_estimates
from dualtail.report.words import GROUP_TITLES
from dualtail.runs.finished import RunResults
from dualtail.runs.results import Row

# What a narrow terminal leaves out first.
_SPARE = {"many": 2, "medium": 4, "few": 1}


def groups_table(results: RunResults) -> ReportTable:
    """Return accuracy by group, with intervals, of every zero-shot model, member and the ensemble.

    P-groups are the same for all rows: those of the members' mean prior.
    """
    rows = [{"model": model.label, **group_estimates(model.evaluation)} for model in run_models(results)]
    note = interval_note(results)
    if results.has_groups:
        note += " P-groups are those of the members' mean prior in every row."
    columns = [Column("model", "model"), *metric_columns(results)]
    return ReportTable("groups", "Accuracy by group", columns, rows, note)


def own_groups_table(results: RunResults) -> ReportTable:
    """Return accuracy by the P-groups of each model's own prior; empty where a run has one prior only."""
    grouped = [backbone for backbone in results.backbones if backbone.groups is not None]
    rows: list[Row] = []
    for backbone in grouped if len(grouped) > 1 else []:
        if backbone.metrics is not None:
            rows.append({"model": f"zero-shot {backbone.name}", **group_estimates(backbone.metrics)})
        rows += [
            {"model": member.name, **group_estimates(member.metrics)}
            for member in results.members
            if member.backbone == backbone.name
        ]
    columns = [column for column in metric_columns(results) if not column.key.startswith("d_")]
    title = "Accuracy by the P-groups of each model's own prior"
    return ReportTable(
        "own_groups", title, [Column("model", "model"), *columns], rows, interval_note(results)
    )


def metric_columns(results: RunResults) -> list[Column]:
    """Return the columns of accuracies: groups without classes are left out."""
    columns = [Column("overall", "all", "percent", "high")]
    for kind in ("D", "P"):
        for name, size in results.classes.group_sizes(kind).items():
            if size:
                title = f"{kind}-{GROUP_TITLES[name]}"
                columns.append(Column(f"{kind.lower()}_{name}", title, "percent", "high", spare=_SPARE[name]))
    cross = results.classes.cross()
    if cross and cross[2][2]:
        columns.append(Column("tail_tail", "tail-tail", "percent", "high"))
    return columns


def interval_note(results: RunResults) -> str:
    """Return what the intervals of a table of accuracies are, and on which split it was measured."""
    confidence = 100 * results.recipe.evaluate.confidence
    return f"Per cent on {results.classes.evaluated_on}, with {confidence:g} % intervals."
