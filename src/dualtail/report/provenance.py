"""Where a run comes from: versions, machine, data, durations, and the command that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from dualtail.report.report_table import Column, ReportTable
from dualtail.report.words import and_list
from dualtail.runs.finished import RunResults
from dualtail.runs.recipe_file import dump_recipe
from dualtail.runs.records import other_versions
from dualtail.runs.results import Row

# In older runs each record of these stages holds the whole pass that served all of them.
_SHARED = ("zero_shot", "logits")


@dataclass(frozen=True)
class Provenance:
    """What the last section of a run shows.

    Attributes:
        command: repeats the run.
        recipe: the resolved recipe, YAML.
        facts: versions, machine and data.
        stages: seconds of every stage.
        notes: what was done to the data.
    """

    command: str
    recipe: str
    facts: ReportTable
    stages: ReportTable
    notes: list[str]


def describe_provenance(results: RunResults) -> Provenance:
    """Return where a run comes from."""
    recipe, root = results.run.recipe_file.resolve(), results.root.resolve()
    again = root.with_name(f"{root.name}-again")
    return Provenance(
        command=f"dualtail run {shlex.quote(str(recipe))} --out {shlex.quote(str(again))}",
        recipe=dump_recipe(results.recipe),
        facts=_facts(results),
        stages=_stages(results),
        notes=results.classes.notes,
    )


def _facts(results: RunResults) -> ReportTable:
    record = results.provenance
    machine, data = record.get("machine") or {}, record.get("data") or {}
    splits = ", ".join(f"{size:,} {name}" for name, size in (data.get("splits") or {}).items())
    facts = [
        ("started", record.get("started")),
        ("updated", record.get("updated")),
        ("commands", "\n".join(record.get("commands") or []) or None),
        ("commit", record.get("commit")),
        *((f"{package} version", version) for package, version in (record.get("versions") or {}).items()),
        ("system", machine.get("system")),
        ("cores", machine.get("cores")),
        ("device", machine.get("device")),
        ("CUDA", machine.get("cuda")),
        ("seeds", ", ".join(map(str, record.get("seeds") or [])) or None),
        ("data", data.get("root")),
        ("data fingerprint", data.get("fingerprint")),
        ("images", splits or None),
    ]
    facts += [("other versions", line) for line in other_versions(results.stages)]
    rows = [{"fact": fact, "value": value} for fact, value in facts if value is not None]
    return ReportTable("provenance", "Where it was run", [Column("fact", ""), Column("value", "")], rows)


def _stages(results: RunResults) -> ReportTable:
    rows: list[Row] = [
        {"stage": stage, "seconds": record.seconds, "finished": record.finished}
        for stage, record in results.stages.items()
    ]
    repeated = [stage for stage in _SHARED if _holds_whole_passes(results, stage)]
    note = ""
    if repeated:
        note = f"Each record of {and_list(repeated)} holds the whole pass that served all of them: there is no sum."
    elif len(rows) > 1:
        rows.append({"stage": "all", "seconds": sum(row["seconds"] for row in rows)})
    columns = [
        Column("stage", "stage"),
        Column("seconds", "seconds", "number"),
        Column("finished", "finished"),
    ]
    return ReportTable("stages", "What took how long", columns, rows, note)


def _holds_whole_passes(results: RunResults, stage: str) -> bool:
    own = [record for key, record in results.stages.items() if key.partition("/")[0] == stage]
    return len(own) > 1 and any(record.units is None for record in own)
