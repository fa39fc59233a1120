"""The tables of a run, built once for every format, and how they look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dualtail.logits.groups import GROUP_NAMES, compare_priors
from dualtail.logits.intervals import mean_interval
from dualtail.logits.prior import LabelPrior
from dualtail.report.formats import TEXT_WIDTH, column_width, to_rich
from dualtail.report.published import find_benchmark, published_marks
from dualtail.report.results import Row, RunResults, read_results
from dualtail.report.sentences import (
    GROUP_TITLES,
    comparison_of,
    correlation_interval,
    describe_run,
    train_prior,
)
from dualtail.report.sheet import Column, Estimate, Sheet

# What a narrow terminal leaves out first.
_SPARE = {"many": 2, "medium": 4, "few": 1}
# A terminal shows so many subsets; the page and the files have them all.
_SUBSETS_IN_TERMINAL = 15
# What is printed where the width is not known, such as into a file.
_PLAIN_WIDTH = 120
_NARROWEST_TEXT = 8


# What a subset of the members may be made of.
KINDS = ("one model", "seeds of one model", "different models", "mixed")


# --- in a terminal


def print_run(root: Path | str, console: Console | None = None) -> None:
    """Print what a run found on stdout.

    Args:
        root: the run directory.
        console: where to print.

    Raises:
        RunError: it is no run directory or has not finished.
    """
    print_results(read_results(root), console or plain_console())


def print_results(results: RunResults, console: Console) -> None:
    """Print a run's overview, methods and subsets."""
    console.print(f"[bold]{escape(results.name)}[/bold]")
    for line in describe_run(results):
        console.print(f"[dim]{line.topic}:[/dim] {escape(str(line))}", soft_wrap=True)
    for sheet in (methods_sheet(results), comparisons_sheet(results), subsets_sheet(results)):
        if sheet:
            console.print()
            print_sheet(sheet, console)


def plain_console() -> Console:
    """Return a console on stdout that is wide enough where stdout is a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Print a table with as many columns as there is room for."""
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
    columns, text_width = list(sheet.columns), TEXT_WIDTH
    while sum(column_width(sheet, column, text_width) + 2 for column in columns) - 2 > console.width:
        spared = max(columns, key=lambda column: (column.spare, columns.index(column)))
        if spared.spare:
            columns.remove(spared)
        elif text_width > _NARROWEST_TEXT:
            text_width -= 1
        else:
            break
    return to_rich(replace(sheet, columns=columns), text_width)


def run_sheets(results: RunResults) -> list[Sheet]:
    """Return every table of a run that has something in it."""
    builders = (
        members_sheet,
        priors_sheet,
        prior_correlation_sheet,
        cross_sheet,
        groups_sheet,
        own_groups_sheet,
        methods_sheet,
        comparisons_sheet,
        subsets_sheet,
        subset_sizes_sheet,
        neighbors_sheet,
        disagreement_sheet,
    )
    return [sheet for build in builders if (sheet := build(results))]


# --- the run's parts


def members_sheet(results: RunResults) -> Sheet:
    """Return the members: what they are made of and how they were trained."""
    rows = []
    weights = dict(zip(results.weights.get("members", []), results.weights.get("weights", []), strict=False))
    for member in results.members:
        backbone = results.backbone(member.backbone)
        info = backbone.info if backbone else {}
        training = member.training
        last = (training.get("history") or [{}])[-1]
        memory = training.get("peak_memory")
        rows.append(
            {
                "member": member.name,
                "backbone": _short_backbone(str(info.get("backbone", member.backbone))),
                "parameters": info.get("parameters"),
                "trained": training.get("num_parameters"),
                "seed": member.seed,
                "seconds": training.get("seconds"),
                "speed": training.get("images_per_second"),
                "memory": None if memory is None else memory / 2**30,
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
        Column("seconds", "training, s", "number"),
        Column("speed", "images/s", "number"),
        Column("memory", "peak memory, GiB", "number"),
        Column("loss", "last loss", "number"),
        Column("weight", "P(c)", "number"),
        Column("overall", "accuracy", "percent"),
    ]
    used = [column for column in columns if any(row[column.key] is not None for row in rows)]
    return Sheet("members", "Members", used, rows)


def _short_backbone(name: str) -> str:
    """Return a backbone's name, of a local one only the folder; the recipe has the whole path.

    Example:
        >>> _short_backbone("timm:vit_base"), _short_backbone("open_clip:/home/me/models/small")
        ('timm:vit_base', 'open_clip:…/small')
    """
    library, _, rest = name.partition(":")
    return f"{library}:…/{Path(rest).name}" if Path(rest).is_absolute() else name


def priors_sheet(results: RunResults) -> Sheet:
    """Return how uneven each estimated pre-training prior is."""
    known = [(b.name, b.prior) for b in results.backbones if b.prior is not None]
    if results.prior is not None and len(known) > 1:
        known.append(("mean of the members", results.prior))
    rows = [_prior_row(name, prior, results) for name, prior in known]
    columns = [
        Column("backbone", "backbone"),
        Column("ratio", "largest / smallest", "number"),
        Column("error", "standard error of log P", "number"),
        Column("most", "most probable"),
        Column("least", "least probable"),
        Column("spearman", "rank correlation with counts", "correlation"),
    ]
    return Sheet("priors", "Estimated pre-training label priors", columns, rows)


def _prior_row(name: str, prior: LabelPrior, results: RunResults) -> Row:
    log_prob, errors, names = prior.log_prob, prior.standard_errors, results.classes.names
    counts = train_prior(results)
    interval = correlation_interval(prior, counts, results.recipe.evaluate.confidence)
    return {
        "backbone": name,
        "ratio": float((log_prob.max() - log_prob.min()).exp()),
        "error": None if errors is None else float(errors.median()),
        "most": names[int(log_prob.argmax())],
        "least": names[int(log_prob.argmin())],
        "spearman": Estimate(compare_priors(prior, counts).spearman, *interval),
    }


def prior_correlation_sheet(results: RunResults) -> Sheet:
    """Return Spearman's rank correlation between the backbones' priors; empty for fewer than two."""
    known = [(backbone.name, backbone.prior) for backbone in results.backbones if backbone.prior is not None]
    rows: list[Row] = []
    if len(known) > 1:
        for name, prior in known:
            rows.append(
                {"": name, **{other: compare_priors(prior, second).spearman for other, second in known}}
            )
    columns = [Column("", "")] + [Column(name, name, "correlation") for name, _ in known]
    return Sheet("prior_correlation", "Rank correlation between the backbones' priors", columns, rows)


def cross_sheet(results: RunResults) -> Sheet:
    """Return how many classes each cell of D-groups times P-groups has."""
    rows = [
        {"d": f"D-{GROUP_TITLES[d]}", **dict(zip(GROUP_NAMES, counts, strict=True))}
        for d, counts in zip(GROUP_NAMES, results.classes.cross(), strict=False)
    ]
    columns = [Column("d", "")] + [Column(p, f"P-{GROUP_TITLES[p]}", "count") for p in GROUP_NAMES]
    return Sheet("cross", "Classes by D-group and P-group", columns, rows)


# --- who suffers


def groups_sheet(results: RunResults) -> Sheet:
    """Return accuracy by group, with intervals, of every zero-shot model, member and the ensemble.

    P-groups are the same for all rows: those of the members' mean prior.
    """
    rows = [{"model": label, **cells} for label, cells in common_groups(results)]
    note = _interval_note(results)
    if results.has_groups:
        note += " P-groups are those of the members' mean prior in every row."
    return Sheet(
        "groups", "Accuracy by group", [Column("model", "model"), *metric_columns(results)], rows, note
    )


def common_groups(results: RunResults) -> list[tuple[str, dict[str, Estimate]]]:
    """Return (model, group to estimate) for every model of a run, all with the same groups of classes."""
    found = []
    for label, column in model_columns(results):
        accuracies = [row.get(column) for row in results.per_class]
        sizes = [row.get("n_test") or 0 for row in results.per_class]
        found.append((label, _estimates(results, accuracies, sizes)))
    if len(results.members) > 1 or not found:
        # The ensemble's own metrics have the same groups.
        found = [pair for pair in found if pair[0] != "ensemble"]
        found.append(("ensemble", metrics_cells(results.metrics)))
    return found


def model_columns(results: RunResults) -> list[tuple[str, str]]:
    """Return (label, column of ``per_class.csv``) of every model that the run has, the ensemble last."""
    present = results.per_class[0].keys() if results.per_class else ()
    named = [(f"zero-shot {backbone.name}", f"zero_shot_{backbone.name}") for backbone in results.backbones]
    named += [(member.name, f"member_{member.name}") for member in results.members]
    if len(results.members) > 1:
        named.append(("ensemble", "adjusted"))
    return [(label, column) for label, column in named if column in present]


def cells_of_groups(results: RunResults) -> dict[str, np.ndarray]:
    """Return ``(C,)`` masks of every group and cell: overall, d_many, ..., p_few, few.few (D then P), tail_tail."""
    classes = results.classes
    masks = {"overall": np.ones(len(classes), bool)}
    d_groups = np.array(classes.d_groups)
    masks |= {f"d_{name}": d_groups == name for name in GROUP_NAMES}
    if classes.p_groups is not None:
        p_groups = np.array(classes.p_groups)
        masks |= {f"p_{name}": p_groups == name for name in GROUP_NAMES}
        masks |= {f"{d}.{p}": (d_groups == d) & (p_groups == p) for d in GROUP_NAMES for p in GROUP_NAMES}
        masks["tail_tail"] = masks["few.few"]
    return masks


def _estimates(
    results: RunResults, accuracies: Sequence[float | None], sizes: Sequence[int]
) -> dict[str, Estimate]:
    """Return accuracy and interval of every group from the classes' accuracies, as ``metrics.json`` has them."""
    n = np.array(sizes, dtype=np.float64)
    correct = np.round(np.array([value or 0.0 for value in accuracies]) * n)
    cells = {}
    for key, mask in cells_of_groups(results).items():
        some = mask & (n > 0)
        weights = n * mask if key == "overall" else mask.astype(np.float64)
        bounds = mean_interval(correct, n, results.recipe.evaluate.confidence, weights=weights)
        value = None
        if some.any():
            value = float(np.average(correct[some] / n[some], weights=weights[some]))
        low, high = bounds or (None, None)
        cells[key] = Estimate(value, low, high, int(n[mask].sum()), int(mask.sum()))
    return cells


def metrics_cells(metrics: Row) -> dict[str, Estimate]:
    """Return every group and cell of a ``metrics.json``, under the keys of :func:`cells_of_groups`."""
    low, high = metrics.get("overall_ci") or (None, None)
    cells = {"overall": Estimate(metrics.get("overall"), low, high, metrics.get("n"), metrics.get("classes"))}
    for kind in ("d", "p"):
        groups = metrics.get(f"{kind}_groups") or {}
        cells |= {f"{kind}_{name}": Estimate.of(cell) for name, cell in groups.items()}
    for d, row in (metrics.get("cross") or {}).items():
        cells |= {f"{d}.{p}": Estimate.of(cell) for p, cell in row.items()}
    if "few.few" in cells:
        cells["tail_tail"] = cells["few.few"]
    return cells


def own_groups_sheet(results: RunResults) -> Sheet:
    """Return accuracy by the P-groups of each model's own prior; empty where a run has one prior only."""
    rows: list[Row] = []
    if len([backbone for backbone in results.backbones if backbone.p_groups]) > 1:
        for backbone in results.backbones:
            if not backbone.p_groups:
                continue
            if backbone.metrics:
                rows.append({"model": f"zero-shot {backbone.name}", **metrics_cells(backbone.metrics)})
            rows += [
                {"model": member.name, **metrics_cells(member.metrics)}
                for member in results.members
                if member.backbone == backbone.name
            ]
    columns = [column for column in metric_columns(results) if not column.key.startswith("d_")]
    title = "Accuracy by the P-groups of each model's own prior"
    return Sheet("own_groups", title, [Column("model", "model"), *columns], rows, _interval_note(results))


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


def _interval_note(results: RunResults) -> str:
    confidence = 100 * results.recipe.evaluate.confidence
    return f"Per cent on {results.classes.evaluated_on}, with {confidence:g} % intervals."


# --- what helped


def methods_sheet(results: RunResults) -> Sheet:
    """Return the table of methods: zero-shot, adjustments, members, the ensemble, and published rows."""
    rows = [_method_row(row, results) for row in results.methods]
    several = any((row.get("m") or 1) > 1 for row in results.methods)
    benchmark = find_benchmark(results.classes)
    if benchmark is not None:
        rows += [published.to_row() for published in benchmark.methods]
    first = [Column("label", "method"), Column("members", "of")]
    columns = [
        *first,
        *([Column("m", "M", "count", spare=3)] if several else []),
        *metric_columns(results),
        Column("macro", "macro", "percent", "high", spare=5),
        Column("worst", "worst class", "percent", "high", spare=6),
        Column("ece", "ECE", "percent", "low", spare=6),
    ]
    title = f"Methods, accuracy in per cent on {results.classes.evaluated_on}"
    return Sheet("methods", title, columns, rows, marks=published_marks(results.classes))


def _method_row(row: Row, results: RunResults) -> Row:
    names = str(row.get("members") or "").split("+")
    everyone = len(names) > 1 and len(names) in (len(results.members), len(results.backbones))
    return {
        **row,
        "label": row.get("label") or row.get("method"),
        "members": "all" if everyone else ", ".join(names),
        "overall": Estimate(
            row.get("overall"), row.get("overall_low"), row.get("overall_high"), row.get("n")
        ),
    }


def subsets_sheet(results: RunResults) -> Sheet:
    """Return every subset of the members; empty where there is one member."""
    rows = []
    for row in results.subsets if len(results.members) > 1 else []:
        names = str(row["members"]).split("+")
        overall = Estimate(row.get("overall"), row.get("overall_low"), row.get("overall_high"), row.get("n"))
        kind = subset_kind(results, names)
        rows.append({**row, "label": ", ".join(names), "kind": kind, "overall": overall})
    rows.sort(key=lambda row: (row.get("m") or 0, -(row["overall"].value or 0)))
    columns = [
        Column("label", "members"),
        Column("m", "M", "count"),
        Column("kind", "made of"),
        *metric_columns(results),
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
    rows: list[Row] = []
    for (size, kind), subsets in sorted(
        groups.items(), key=lambda pair: (pair[0][0], KINDS.index(pair[0][1]))
    ):
        values = [row["overall"].value for row in subsets]
        found = {
            "m": size,
            "kind": kind,
            "subsets": len(subsets),
            "overall": mean(values),
            "spread": stdev(values) if len(values) > 1 else None,
        }
        for key in ("d_many", "d_medium", "d_few", "tail_tail"):
            known = [row[key] for row in subsets if row.get(key) is not None]
            found[key] = mean(known) if known else None
        rows.append(found)
    benchmark = find_benchmark(results.classes)
    if rows and benchmark is not None:
        rows += [{**published.to_row(), "kind": published.label} for published in benchmark.ablation]
    groups_shown = [
        replace(column, best=None)
        for column in metric_columns(results)
        if column.key in ("d_many", "d_medium", "d_few", "tail_tail")
    ]
    columns = [
        Column("kind", "made of"),
        Column("m", "M", "count"),
        Column("subsets", "subsets", "count"),
        Column("overall", "mean accuracy", "percent"),
        Column("spread", "standard deviation", "percent"),
        *groups_shown,
    ]
    title = "How many members: mean and spread over the subsets of each size"
    return Sheet("subset_sizes", title, columns, rows, marks=published_marks(results.classes))


def comparisons_sheet(results: RunResults) -> Sheet:
    """Return the paired differences between the ensemble and each member, in points of accuracy."""
    rows: dict[str, Row] = {}
    for item in results.comparisons:
        row = rows.setdefault(str(item.get("b")), {"member": str(item.get("b"))})
        measure, classes = item.get("measure", "overall"), item.get("classes", "all")
        key = measure if classes == "all" else classes
        row[key] = comparison_of(item)
        if key == "overall":
            row["p_value"] = item.get("p_value")
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
    return Sheet(
        "comparisons",
        "The ensemble against each member, paired on the same images, in points",
        used,
        list(rows.values()),
        "An interval that holds 0 leaves open which of the two is better.",
    )


# --- reliability


def neighbors_sheet(results: RunResults) -> Sheet:
    """Return accuracy of the nearest neighbours among the features, before and after tuning, by group."""
    content = results.neighbors or {}
    rows: list[Row] = []
    for backbone in [found.name for found in results.backbones]:
        before = (content.get("backbones") or {}).get(backbone)
        if before:
            rows.append({"model": backbone, "when": "before tuning", **metrics_cells(before)})
        for member in results.members:
            after = (content.get("members") or {}).get(member.name)
            if after and member.backbone == backbone:
                rows.append({"model": member.name, "when": "after tuning", **metrics_cells(after)})
    columns = [Column("model", "features of"), Column("when", ""), *metric_columns(results)]
    return Sheet(
        "neighbors",
        "Do the features alone tell the classes apart? Accuracy of the nearest neighbours",
        columns,
        rows,
        f"Up to {content.get('k')} nearest images of {content.get('bank')} by cosine vote. {_interval_note(results)} "
        "No adjustment of logits changes these figures: an imbalance that stays here is in the features.",
    )


def disagreement_sheet(results: RunResults) -> Sheet:
    """Return for every pair of members how differently they answer, err and see."""
    content = results.disagreement or {}
    names = content.get("members") or []
    rows: list[Row] = []
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            rows.append(
                {
                    "a": b,
                    "b": a,
                    **{
                        key: (content.get(key) or {})[i][j] if content.get(key) else None
                        for key in ("disagreement", "error_correlation", "double_fault", "cka")
                    },
                }
            )
    columns = [
        Column("a", "member"),
        Column("b", "and"),
        Column("disagreement", "answer differently, %", "percent"),
        Column("double_fault", "both wrong, %", "percent"),
        Column("error_correlation", "correlation of errors", "correlation"),
        Column("cka", "similarity of features (CKA)", "correlation"),
    ]
    return Sheet(
        "disagreement",
        "How different the members are",
        columns,
        rows,
        "Averaging helps most where members err on different images: a low correlation of errors.",
    )
