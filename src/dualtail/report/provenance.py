"""Where a run comes from: versions, machine, data, durations, and the command that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from dualtail.report.results import RunResults
from dualtail.report.sheet import Column, Sheet
from dualtail.runs.recipe import dump_recipe


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
    facts: Sheet
    stages: Sheet
    notes: list[str]


def describe_provenance(results: RunResults) -> Provenance:
    """Return where a run comes from."""
    root = results.root.resolve()
    again = root.with_name(f"{root.name}-again")
    return Provenance(
        command=f"dualtail run {shlex.quote(str(root / 'recipe.yaml'))} --out {shlex.quote(str(again))}",
        recipe=dump_recipe(results.recipe),
        facts=_facts(results),
        stages=_stages(results),
        notes=results.classes.notes,
    )


def _facts(results: RunResults) -> Sheet:
    record = results.provenance
    machine, data = record.get("machine") or {}, record.get("data") or {}
    splits = ", ".join(f"{size:,} {name}" for name, size in (data.get("splits") or {}).items())
    found = [
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
    rows = [{"fact": fact, "value": value} for fact, value in found if value is not None]
    return Sheet("provenance", "Where it was run", [Column("fact", ""), Column("value", "")], rows)


def _stages(results: RunResults) -> Sheet:
    rows = [
        {"stage": stage, "seconds": record.get("seconds"), "finished": record.get("finished")}
        for stage, record in results.stages.items()
    ]
    if len(rows) > 1:
        rows.append({"stage": "all", "seconds": sum(row["seconds"] or 0 for row in rows)})
    columns = [
        Column("stage", "stage"),
        Column("seconds", "seconds", "number"),
        Column("finished", "finished"),
    ]
    return Sheet("stages", "What took how long", columns, rows)
