"""A run from its recipe to its end: the data, then every stage in its order."""

from __future__ import annotations

from pathlib import Path

from dualtail.data.manifest import SPLITS, Manifest
from dualtail.data.problems import raise_errors
from dualtail.errors import RecipeError
from dualtail.process_group import ProcessGroup, own_device, resolve_device
from dualtail.runs.choices import refuse_choice_faults
from dualtail.runs.context import RunContext
from dualtail.runs.dataset import build_manifest, find_missing_val, find_problems
from dualtail.runs.directory import RunDirectory
from dualtail.runs.driver import run_stage
from dualtail.runs.observer import Observer, PatientProgress
from dualtail.runs.provenance import write_provenance
from dualtail.runs.recipe import Recipe
from dualtail.runs.records import other_versions
from dualtail.runs.stages import STAGES

NOTED_PROBLEMS = 5


def run_pipeline(
    recipe: Recipe, out: str | Path, *, update: bool = False, observer: Observer | None = None
) -> RunDirectory:
    """Run a recipe to its end, or go on where an earlier call stopped.

    Args:
        recipe: see :mod:`dualtail.runs.recipe`.
        out: the run directory.
        update: take a changed recipe over in a directory that belongs to another.
        observer: hears what is done.

    Returns:
        The finished run, unlocked.

    Raises:
        DualtailError: the recipe, its data or its models cannot be used; what was computed before stays.
        Interrupted: the user stopped the run; the same call goes on.
    """
    refuse_choice_faults(recipe)
    resolve_device(recipe.runtime.device)
    group = ProcessGroup.join(recipe.runtime.device)
    if group.leads:
        with RunDirectory.open(out, recipe, update=update) as run:
            group.wait()
            _run_stages(run, group, observer or Observer())
            return run
    group.wait()  # until the directory holds the recipe
    run = RunDirectory(Path(out), recipe)
    _run_stages(run, group, Observer())
    return run


def _run_stages(run: RunDirectory, group: ProcessGroup, observer: Observer) -> None:
    manifest = _read_data(run.recipe, group, observer)
    device = own_device(run.recipe.runtime.device)
    context = RunContext(run, manifest, group, observer, device)
    _ = context.split_fingerprints  # by all processes together
    if group.leads and not run.records.closed:  # else they tell of the results that stand
        _write_facts(context)
    for stage in STAGES:
        run_stage(stage(context), context)
    if group.leads:
        _write_facts(context)
        run.finish()
        for line in other_versions(run.records.read()):
            observer.note(line)


def _read_data(recipe: Recipe, group: ProcessGroup, observer: Observer) -> Manifest:
    """Read the data, say what it holds, and refuse what is wrong with it."""
    # The first process alone unpacks and decodes: all work on the set that it found.
    progress = PatientProgress(observer, "decoding every image once")
    manifest = group.agree(build_manifest(recipe.data, recipe.seed, progress) if group.leads else None)
    assert manifest is not None  # the first process has it, or has failed
    problems = find_problems(manifest, recipe.data)
    raise_errors(problems)
    for problem in problems[:NOTED_PROBLEMS]:
        observer.note(str(problem))
    if len(problems) > NOTED_PROBLEMS:
        observer.note(f"and {len(problems) - NOTED_PROBLEMS:,} more like these: 'dualtail check' lists them")
    for note in manifest.notes:
        observer.note(note)
    for fault in find_missing_val(recipe, manifest):
        raise RecipeError(fault, where="recipe")
    sizes = ", ".join(f"{size:,} {name}" for name, size in manifest.split_sizes.items())
    observer.note(f"{manifest.num_classes:,} classes; images: {sizes}")
    return manifest


def _write_facts(context: RunContext) -> None:
    """Write down what the data hold and who works on them."""
    write_provenance(
        context.run.provenance,
        data={
            "fingerprint": context.data_inputs(*SPLITS),
            "root": context.recipe.data.root,
            "image_root": str(context.manifest.root),
            "splits": context.manifest.split_sizes,
        },
        seeds=sorted({member.seed for member in context.run.members}),
        processes=context.group.size,
    )
