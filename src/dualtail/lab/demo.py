"""The demo: the ordinary pipeline on the embedded models, whose true priors are known, told as a story.

Two runs over the same data: ``run`` holds the three members of different priors, ``controls`` the models of the
first one's prior and the first one's other fine-tuning seeds. Everything that is told is read from these runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from dualtail.errors import DataError
from dualtail.lab.embedded import MODELS, PACKAGE, SAME_PRIOR, embedded_world
from dualtail.lab.story import (
    CONTROLS,
    SEEDS,
    Chapter,
    Story,
    controls_chapter,
    cost_chapter,
    members_chapter,
    priors_chapter,
    task_chapter,
    zero_shot_chapter,
)
from dualtail.lab.task import TASK_FILE, describe, write_task
from dualtail.lab.world import World
from dualtail.runs.observer import Observer
from dualtail.runs.pipeline import run_pipeline
from dualtail.runs.recipe import Member, Recipe
from dualtail.runs.recipe_file import read_recipe

RECIPE_FILE = PACKAGE / "demo.yaml"
DATA, RUN = "data", "run"


def tell_demo(folder: str | Path, observer: Observer | None = None) -> Iterator[Chapter]:
    """Make the data, run the pipeline twice, and yield the story while it happens.

    What an earlier call finished in ``folder`` is not done again.

    Args:
        folder: gets ``data``, ``run`` and ``controls``.
        observer: hears the progress.

    Raises:
        DualtailError: the folder holds something else, or cannot be written.
    """
    threads = torch.get_num_threads()
    # Models as small as these gain nothing from a second thread but waiting, and sums then depend on the machine.
    torch.set_num_threads(1)
    try:
        yield from _tell(Path(folder), observer or Observer())
    finally:
        torch.set_num_threads(threads)


def _tell(folder: Path, observer: Observer) -> Iterator[Chapter]:
    world = embedded_world()
    started = time.monotonic()
    others = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others and not others & {DATA, RUN, CONTROLS}:
        raise DataError(
            "the folder holds something else", where=str(folder), fix="name a new or an empty folder"
        )
    if not _is_written(world, folder / DATA):
        observer.stage("drawing the images")
        write_task(world, folder / DATA)
        observer.finished("drawing the images", time.monotonic() - started)
    yield task_chapter(world)
    recipe = demo_recipe(folder / DATA)
    story = Story(world, run_pipeline(recipe, folder / RUN, observer=observer), None)
    yield priors_chapter(story)
    yield zero_shot_chapter(story)
    yield members_chapter(story)
    story = Story(
        world, story.run, run_pipeline(control_recipe(recipe), folder / CONTROLS, observer=observer)
    )
    yield controls_chapter(story)
    yield cost_chapter(story, time.monotonic() - started)


def demo_recipe(data: Path) -> Recipe:
    """Return the demo's recipe for images in ``data``."""
    return read_recipe(RECIPE_FILE, [f"data.root={json.dumps(str(data))}"])


def control_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the controls: the first model's prior again, and the first model's other seeds."""
    first = recipe.members[0]
    members = [
        *(Member(backbone=f"open_clip:{MODELS / name}", name=name) for name in SAME_PRIOR),
        Member(backbone=first.backbone, name=first.name, seeds=list(SEEDS)),
    ]
    return recipe.model_copy(update={"name": "demo-controls", "members": members})


def _is_written(world: World, data: Path) -> bool:
    try:
        written = json.loads((data / TASK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return written == describe(world)
