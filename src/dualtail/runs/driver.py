"""One driver for all stages: what is up to date is skipped, what the recipe has no more is forgotten, the rest done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dualtail.runs.context import RunContext
from dualtail.runs.provenance import versions_of
from dualtail.runs.stages.base import Stage


def run_stage(stage: Stage, context: RunContext) -> None:
    """Bring a stage up to date.

    A record in ``stages.json`` vouches for a unit's files: it is withdrawn just before the first of them is overwritten
    and written once all are complete, so that a run that stops anywhere goes on with the first unit that has none, and
    one that stops while it computes has lost nothing.

    Args:
        stage: of the context.
        context: the run.
    """
    units = list(stage.units())
    _forget_others(stage, context, units)
    due: dict[str, str] = {}
    for unit in units:
        inputs = stage.inputs(unit)
        if context.group.agree(context.group.leads and _is_done(stage, context, unit, inputs)):
            context.observer.skipped(_title(stage, [unit]))
        else:
            due[unit] = inputs
    passes = [list(due)] if stage.together else [[unit] for unit in due]
    for some in passes:
        if some:
            _run_pass(stage, context, {unit: due[unit] for unit in some})


def _is_done(stage: Stage, context: RunContext, unit: str, inputs: str) -> bool:
    """Whether a unit's files are there as they were written; says which of them are not."""
    records, key = context.run.records, stage.key(unit)
    if records.is_done(key, inputs, stage.outputs(unit)):
        return True
    if records.inputs_of(key) == inputs:
        for name in records.faults(key):
            how = "does not hold what was written" if (context.run.root / name).exists() else "is missing"
            context.observer.note(f"{name} {how}: {_title(stage, [unit])} is done again")
    return False


def _run_pass(stage: Stage, context: RunContext, due: Mapping[str, str]) -> None:
    title = _title(stage, list(due), stage.manner)
    context.observer.stage(title)
    start = time.monotonic()
    records, leads = context.run.records, context.group.leads
    computed = stage.compute(list(due))
    context.group.wait()  # what other processes wrote is there
    shared = (time.monotonic() - start) / len(due)
    for unit, inputs in due.items() if leads else ():
        own = time.monotonic()
        records.withdraw([stage.key(unit)])
        outputs = stage.write(unit, computed)
        known = stage.seconds(unit)
        seconds = shared + time.monotonic() - own if known is None else known
        records.add(
            stage.key(unit),
            inputs,
            outputs,
            seconds,
            units=len(due) if known is None else 1,
            sources=stage.sources(unit),
            versions=versions_of(stage.packages),
        )
        _delete(stage.scratch(unit))
    context.group.wait()  # what this stage wrote is there for all
    context.observer.finished(title, time.monotonic() - start)


def _forget_others(stage: Stage, context: RunContext, units: Sequence[str]) -> None:
    """Drop the files and records of units that the recipe no longer has."""
    if context.group.leads:
        wanted = {stage.key(unit) for unit in units}
        gone = [key for key in context.run.records.of_stage(stage.name) if key not in wanted]
        for unit in (key.partition("/")[2] for key in gone):
            _delete([*stage.scratch(unit), *stage.leftovers(unit)])
        context.run.records.forget(gone)  # last: whoever stops in between forgets again
    context.group.wait()


def _delete(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _title(stage: Stage, units: Sequence[str], manner: str = "") -> str:
    names = ", ".join(unit for unit in units if unit)
    return f"{stage.title}{manner}" + (f": {names}" if names else "")
