"""Several runs side by side: what they reach, what differs in their settings, and their spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dualtail.files import fingerprint
from dualtail.logits.comparison import summarize_seeds
from dualtail.report.report_table import Column, Estimate, ReportTable, group_estimates, number
from dualtail.report.words import GROUP_TITLES, and_list, count
from dualtail.runs.finished import RunResults
from dualtail.runs.recipe_file import recipe_differences
from dualtail.runs.results import Row

# What makes runs differ in their seed alone.
_SEED_KEYS = ("seed", "name")
_GROUPS = ("overall", "d_many", "d_medium", "d_few", "tail_tail")


def runs_table(runs: Sequence[RunResults], names: Sequence[str]) -> ReportTable:
    """Return what the adjusted ensemble of each run reaches."""
    rows: list[Row] = []
    for name, run in zip(names, runs, strict=True):
        groups, metrics = group_estimates(run.metrics), run.metrics
        rows.append(
            {
                "run": name,
                "members": len(run.members),
                "classes": len(run.classes),
                "n": metrics.n,
                "macro": Estimate(metrics.macro, *metrics.macro_ci),
                **{key: groups[key] for key in _GROUPS if key in groups},
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
    used = [column for column in columns if any(_known(row.get(column.key)) for row in rows)]
    note = (
        f"Tail-tail has each run's own classes here, by the priors of its members; the differences below have those of "
        f"{names[0]} in all runs."
        if not _same_p_groups(runs)
        else ""
    )
    return ReportTable("runs", "The adjusted ensembles of the runs, accuracy in per cent", used, rows, note)


def _same_p_groups(runs: Sequence[RunResults]) -> bool:
    return len({tuple(run.classes.p_groups or ()) for run in runs}) == 1


def _known(value: Any) -> bool:
    return isinstance(value, str) or number(value) is not None


def settings_table(runs: Sequence[RunResults], names: Sequence[str]) -> ReportTable:
    """Return the keys of the recipes that differ, names aside."""
    settings = [run.recipe.model_dump(mode="json") for run in runs]
    keys = {key for run in runs[1:] for key in recipe_differences(runs[0].recipe, run.recipe)} - {"name"}
    rows = [
        {"key": key, **{f"run{place}": _setting(content, key) for place, content in enumerate(settings)}}
        for key in sorted(keys)
    ]
    columns = [Column("key", "setting")] + [Column(f"run{place}", name) for place, name in enumerate(names)]
    return ReportTable("settings", "Settings that differ", columns, rows)


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


def seeds_table(runs: Sequence[RunResults], names: Sequence[str]) -> ReportTable:
    """Return mean, standard deviation and t-interval over each set of runs that differ in their seed alone."""
    families: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        families.setdefault(_without_seeds(run), []).append(place)
    rows: list[Row] = []
    for members in families.values():
        if len(members) > 1:
            cells = [group_estimates(runs[place].metrics) for place in members]
            row: Row = {"runs": and_list([names[place] for place in members]), "n": len(members)}
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
    return ReportTable("seeds", title, used, rows, "Intervals are Student's t over the seeds.")


def _without_seeds(run: RunResults) -> str:
    content = run.recipe.model_dump(mode="json", exclude={"runtime", *_SEED_KEYS})
    content["precision"] = run.recipe.runtime.precision  # the one key of its section that moves results
    for member in content["members"]:
        member["seeds"] = None if member["seeds"] is None else len(member["seeds"])
    return fingerprint(content)
