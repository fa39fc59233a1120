"""How reliable: what the features alone tell, and how different the members are."""

from __future__ import annotations

from dualtail.report.report_table import Column, ReportTable, group_estimates
from dualtail.report.tables.groups import interval_note, metric_columns
from dualtail.runs.finished import RunResults
from dualtail.runs.results import Row


def neighbors_table(results: RunResults) -> ReportTable:
    """Return accuracy of the nearest neighbours among the features, before and after tuning, by group."""
    neighbors = results.neighbors
    rows: list[Row] = []
    if neighbors is not None:
        for backbone in results.backbones:
            own = [member.name for member in results.members if member.backbone == backbone.name]
            models = [("before tuning", backbone.name, neighbors.backbones.get(backbone.name))]
            models += [("after tuning", name, neighbors.members.get(name)) for name in own]
            rows += [
                {"model": name, "when": when, **group_estimates(evaluation)}
                for when, name, evaluation in models
                if evaluation is not None
            ]
    voters = f"Up to {neighbors.k} nearest images of {neighbors.bank} by cosine vote. " if neighbors else ""
    return ReportTable(
        "neighbors",
        "Do the features alone tell the classes apart? Accuracy of the nearest neighbours",
        [Column("model", "features of"), Column("when", ""), *metric_columns(results)],
        rows,
        f"{voters}{interval_note(results)} "
        "No adjustment of logits changes these figures: an imbalance that stays here is in the features.",
    )


def disagreement_table(results: RunResults) -> ReportTable:
    """Return for every pair of members how differently they answer, err and see."""
    measured = results.disagreement
    rows: list[Row] = []
    if measured is not None:
        rows = [
            {
                "a": measured.members[b],
                "b": measured.members[a],
                "disagreement": measured.disagreement[a][b],
                "double_fault": measured.double_fault[a][b],
                "error_correlation": measured.error_correlation[a][b],
                "cka": measured.cka[a][b],
            }
            for a in range(len(measured.members))
            for b in range(a)
        ]
    columns = [
        Column("a", "member"),
        Column("b", "and"),
        Column("disagreement", "answer differently, %", "percent"),
        Column("double_fault", "both wrong, %", "percent"),
        Column("error_correlation", "correlation of errors", "correlation"),
        Column("cka", "similarity of features (CKA)", "correlation"),
    ]
    return ReportTable(
        "disagreement",
        "How different the members are",
        columns,
        rows,
        "Averaging helps most where members err on different images: a low correlation of errors.",
    )
