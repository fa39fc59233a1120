"""The tables of a run, built once for every format, and how they look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dualtail.logits.groups import GROUP_NAMES, compare_priors
from dualtail.logits.prior import LabelPrior
from dualtail.report.formats import column_width, to_rich
from dualtail.report.results import Row, RunResults, read_results
from dualtail.report.sentences import describe_run
from dualtail.report.sheet import Column, Estimate, Sheet

GROUP_TITLES = {"many": "Many", "medium": "Medium", "few": "Few"}
# What a narrow terminal leaves out first.
_SPARE = {"many": 2, "medium": 4, "few": 1}

# A terminal shows so many subsets; the page and the files have them all.
_SUBSETS_IN_TERMINAL = 15
# What is printed where the width is not known, such as into a file.
_PLAIN_WIDTH = 120


def print_run(root: Path | str, console: Console | None = None) -> None:
    """Print what a run found on stdout.

    Args:
        root: the run directory.
        console: where to print.

    Raises:
        RunError: it is no run directory or has not finished.
    """
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=_PLAIN_WIDTH)
    results = read_results(root)
    console.print(f"[bold]{escape(results.name)}[/bold]")
    for line in describe_run(results):
        console.print(escape(line.text), soft_wrap=True)
    for sheet in (methods_sheet(results), subsets_sheet(results)):
        if sheet:
            console.print()
            _print_sheet(console, sheet)


def _print_sheet(console: Console, sheet: Sheet) -> None:
    left_out = len(sheet.rows) - _SUBSETS_IN_TERMINAL if sheet.key == "subsets" else 0
    if left_out > 0:
        sheet = replace(sheet, rows=sheet.rows[-_SUBSETS_IN_TERMINAL:])
    console.print(_fitting(sheet, console))
    if left_out > 0:
        console.print(f"[dim]{left_out} smaller subsets are in adjusted/subsets.csv[/dim]")
    if sheet.note:
        console.print(f"[dim]{escape(sheet.note)}[/dim]", soft_wrap=True)


def _fitting(sheet: Sheet, console: Console) -> Table:
    """Return the table with the columns that the terminal has room for."""
    columns = list(sheet.columns)
    while sum(column_width(sheet, column) + 2 for column in columns) - 2 > console.width:
        spared = max(columns, key=lambda column: (column.spare, columns.index(column)))
        if not spared.spare:
            break
        columns.remove(spared)
    return to_rich(replace(sheet, columns=columns))


def run_sheets(results: RunResults) -> list[Sheet]:
    """Return every table of a run that has something in it."""
    sheets = [
        members_sheet(results),
        priors_sheet(results),
        prior_correlation_sheet(results),
        cross_sheet(results),
        groups_sheet(results),
        methods_sheet(results),
        comparisons_sheet(results),
        subsets_sheet(results),
        subset_sizes_sheet(results),
    ]
    return [sheet for sheet in sheets if sheet]


# --- the run's parts


def members_sheet(results: RunResults) -> Sheet:
    """Return the members: what they are made of and how they were trained."""
    rows = []
    weights = dict(zip(results.weights.get("members", []), results.weights.get("weights", []), strict=False))
    for member in results.members:
        backbone = results.backbone(member.backbone)
        info = backbone.info if backbone else {}
        last = (member.training.get("epochs") or [{}])[-1]
        rows.append(
            {
                "member": member.name,
                "backbone": info.get("backbone", member.backbone),
                "parameters": info.get("parameters"),
                "trained": member.training.get("trained_parameters"),
                "seed": member.seed,
                "seconds": member.training.get("seconds"),
                "loss": last.get("loss"),
                "weight": weights.get(member.name),
                "overall": member.metrics.get("overall"),
            }
        )
    columns = [
        Column("member", "member"),
        Column("backbone", "backbone"),
        Column("parameters", "parameters", "count"),
        Column("trained", "trained", "count"),
        Column("seed", "seed", "count"),
        Column("seconds", "seconds", "number"),
        Column("loss", "last loss", "number"),
        Column("weight", "P(c)", "number"),
        Column("overall", "accuracy", "percent"),
    ]
    used = [column for column in columns if any(row[column.key] is not None for row in rows)]
    return Sheet("members", "Members", used, rows)


def priors_sheet(results: RunResults) -> Sheet:
    """Return how uneven each estimated pre-training prior is."""
    rows = []
    counts = _train_prior(results)
    for backbone in results.backbones:
        if backbone.prior is not None:
            rows.append(_prior_row(backbone.name, backbone.prior, counts, results.classes.names))
    if results.prior is not None and len(rows) > 1:
        rows.append(_prior_row("mean of the members", results.prior, counts, results.classes.names))
    columns = [
        Column("backbone", "backbone"),
        Column("ratio", "largest / smallest", "number"),
        Column("error", "median standard error of log P", "number"),
        Column("most", "most probable class"),
        Column("least", "least probable class"),
        Column("spearman", "rank correlation with the training counts", "number"),
    ]
    return Sheet(
        "priors",
        "Estimated pre-training label priors",
        columns,
        rows,
        "A prior that does not follow the training counts is an imbalance of its own: the counts cannot repair it.",
    )


def _prior_row(name: str, prior: LabelPrior, counts: LabelPrior | None, names: Sequence[str]) -> Row:
    log_prob = prior.log_prob
    errors = prior.standard_errors
    correlation = compare_priors(prior, counts).spearman if counts is not None else None
    return {
        "backbone": name,
        "ratio": float((log_prob.max() - log_prob.min()).exp()),
        "error": None if errors is None else float(errors.median()),
        "most": names[int(log_prob.argmax())],
        "least": names[int(log_prob.argmin())],
        "spearman": correlation,
    }


def _train_prior(results: RunResults) -> LabelPrior | None:
    counts = results.classes.counts.get("train") or results.classes.group_counts
    return LabelPrior.from_counts(counts, zero="smooth", smoothing=0.5) if len(counts) > 1 else None


def prior_correlation_sheet(results: RunResults) -> Sheet:
    """Return Spearman's rank correlation between the backbones' priors; empty for fewer than two."""
    known = [(backbone.name, backbone.prior) for backbone in results.backbones if backbone.prior is not None]
    rows = []
    if len(known) > 1:
        for name, prior in known:
            row: Row = {"backbone": name}
            for other, second in known:
                row[other] = compare_priors(prior, second).spearman
            rows.append(row)
    columns = [Column("backbone", "")] + [Column(name, name, "number") for name, _ in known]
    return Sheet(
        "prior_correlation", "How the backbones' priors agree (Spearman's rank correlation)", columns, rows
    )


def cross_sheet(results: RunResults) -> Sheet:
    """Return how many classes each cell of D-groups times P-groups has."""
    rows = [
        {"d": f"D-{GROUP_TITLES[d]}", **dict(zip(GROUP_NAMES, counts, strict=True))}
        for d, counts in zip(GROUP_NAMES, results.classes.cross(), strict=False)
    ]
    columns = [Column("d", "")] + [Column(p, f"P-{GROUP_TITLES[p]}", "count") for p in GROUP_NAMES]
    return Sheet("cross", "Classes by D-group and P-group", columns, rows)


def groups_sheet(results: RunResults) -> Sheet:
    """Return accuracy by group, with intervals, of every zero-shot model, member and the ensemble."""
    rows: list[Row] = []
    for backbone in results.backbones:
        if backbone.metrics:
            rows.append({"model": f"zero-shot {backbone.name}", **_group_cells(backbone.metrics)})
    rows += [{"model": member.name, **_group_cells(member.metrics)} for member in results.members]
    if len(results.members) > 1:
        rows.append({"model": "ensemble", **_group_cells(results.metrics)})
    columns = [Column("model", ""), *_metric_columns(results)]
    return Sheet("groups", "Accuracy by group", columns, rows, _interval_note(results))


def _group_cells(metrics: Row) -> Row:
    low, high = metrics.get("overall_ci") or (None, None)
    cells: Row = {"overall": Estimate(metrics.get("overall"), low, high, metrics.get("n"))}
    for kind in ("d", "p"):
        groups = metrics.get(f"{kind}_groups") or {}
        for name in GROUP_NAMES:
            cells[f"{kind}_{name}"] = Estimate.of(groups.get(name))
    cells["tail_tail"] = Estimate.of(((metrics.get("cross") or {}).get("few") or {}).get("few"))
    return cells


def _metric_columns(results: RunResults) -> list[Column]:
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


def _interval_note(results: RunResults) -> str:
    confidence = 100 * results.recipe.evaluate.confidence
    return f"Per cent on {results.classes.evaluated_on}, with {confidence:g} % intervals."


# --- what helped


def methods_sheet(results: RunResults) -> Sheet:
    """Return the table of methods: zero-shot, adjustments, members, the ensemble."""
    rows = [_method_row(row) for row in results.methods]
    several = any((row.get("m") or 1) > 1 for row in results.methods)
    first = [Column("label", "method")] + ([Column("m", "M", "count", spare=3)] if several else [])
    columns = [
        *first,
        *_metric_columns(results),
        Column("macro", "macro", "percent", "high", spare=5),
        Column("worst", "worst class", "percent", "high", spare=6),
        Column("ece", "ECE", "percent", "low", spare=6),
    ]
    return Sheet("methods", f"Methods, accuracy in per cent on {results.classes.evaluated_on}", columns, rows)


def _method_row(row: Row) -> Row:
    found = dict(row)
    found["label"] = row.get("label") or row.get("method")
    found["overall"] = Estimate(
        row.get("overall"), row.get("overall_low"), row.get("overall_high"), row.get("n")
    )
    return found


def subsets_sheet(results: RunResults) -> Sheet:
    """Return every subset of the members; empty where there is one member."""
    rows = []
    for row in results.subsets:
        if results.members and len(results.members) > 1:
            names = str(row["members"]).split("+")
            rows.append(_method_row({**row, "label": ", ".join(names), "kind": subset_kind(results, names)}))
    rows.sort(key=lambda row: (row.get("m") or 0, -(row["overall"].value or 0)))
    columns = [
        Column("m", "M", "count"),
        Column("label", "members"),
        Column("kind", "made of"),
        *_metric_columns(results),
        Column("macro", "macro", "percent", "high", spare=5),
    ]
    if len({row["kind"] for row in rows if (row.get("m") or 0) > 1}) < 2:
        columns = [column for column in columns if column.key != "kind"]
    return Sheet("subsets", "Every subset of the members", columns, rows)


def subset_kind(results: RunResults, names: Sequence[str]) -> str:
    """Return whether members are ``one model``, ``seeds of one model``, ``different models`` or ``mixed``."""
    backbones = [member.backbone for member in results.members if member.name in names]
    if len(names) < 2:
        return "one model"
    distinct = len(set(backbones))
    if distinct == 1:
        return "seeds of one model"
    return "different models" if distinct == len(backbones) else "mixed"


def subset_sizes_sheet(results: RunResults) -> Sheet:
    """Return mean and spread over the subsets of each size, seeds of one model apart from different models."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in subsets_sheet(results).rows:
        groups.setdefault((row["m"], row["kind"]), []).append(row)
    rows = []
    for (size, kind), members in groups.items():
        values = [row["overall"].value for row in members]
        tails = [value for row in members if (value := row.get("tail_tail")) is not None]
        rows.append(
            {
                "m": size, "kind": kind, "subsets": len(members), "overall": mean(values),
                "spread": stdev(values) if len(values) > 1 else None, "lowest": min(values), "highest": max(values),
                "tail_tail": mean(tails) if tails else None,
            }
        )  # fmt: skip
    columns = [
        Column("m", "M", "count"),
        Column("kind", "made of"),
        Column("subsets", "subsets", "count"),
        Column("overall", "mean accuracy", "percent"),
        Column("spread", "standard deviation", "percent"),
        Column("lowest", "lowest", "percent"),
        Column("highest", "highest", "percent"),
        Column("tail_tail", "mean tail-tail", "percent"),
    ]
    if all(row["tail_tail"] is None for row in rows):
        columns.pop()
    return Sheet("subset_sizes", "Members' ablation: mean and spread by size", columns, rows)


def comparisons_sheet(results: RunResults) -> Sheet:
    """Return the paired differences between the ensemble and each member."""
    rows = [_comparison_row(item) for item in results.comparisons]
    columns = [
        Column("a", "this"),
        Column("b", "minus this"),
        Column("difference", "difference in accuracy", "points"),
        Column("p_value", "p", "p_value"),
    ]
    return Sheet(
        "comparisons",
        "Paired differences on the same test images, in points",
        columns,
        rows,
        "An interval that holds 0 leaves open which of the two is better.",
    )


def _comparison_row(item: Row) -> Row:
    found = comparison_of(item)
    return {"a": item.get("a"), "b": item.get("b"), "difference": found, "p_value": item.get("p_value")}


def comparison_of(item: Row) -> Estimate:
    """Return a paired difference of overall accuracy as an estimate."""
    difference: Any = item.get("difference")
    if isinstance(difference, dict):
        difference = difference.get("overall")
    low, high = item.get("ci") or (None, None)
    return Estimate(difference, low, high)
