from __future__ import annotations

import re
from pathlib import Path

import pytest

from dualtail.errors import DataError
from dualtail.files import read_json
from dualtail.lab import demo
from dualtail.lab.demo import RECIPE_FILE, control_recipe, demo_recipe, tell_demo
from dualtail.lab.embedded import DIFFERENT, SAME_PRIOR, embedded_world
from dualtail.lab.tune import BATCH, EPOCHS, LEARNING_RATE, WIDTH
from dualtail.runs.directory import RunDirectory
from dualtail.runs.members import plan_members
from dualtail.runs.recipe_file import read_recipe


def test_the_recipes_name_the_embedded_models(tmp_path) -> None:
    recipe = demo_recipe(tmp_path / "data")
    assert recipe.data.root == str(tmp_path / "data")
    assert [member.name for member in recipe.members] == list(DIFFERENT)
    controls = control_recipe(recipe)
    assert [plan.name for plan in plan_members(controls)] == [*SAME_PRIOR, "alder-seed1", "alder-seed2"]
    for member in (*recipe.members, *controls.members):
        assert Path(member.backbone.removeprefix("open_clip:")).is_dir()
    # Besides the name and the members, the two runs differ in nothing.
    same = recipe.model_dump(exclude={"name", "members"})
    assert controls.model_dump(exclude={"name", "members"}) == same


def test_the_studies_fine_tune_as_the_demo_does() -> None:
    finetune = read_recipe(RECIPE_FILE).finetune
    assert (finetune.epochs, finetune.batch_size, finetune.learning_rate) == (EPOCHS, BATCH, LEARNING_RATE)
    assert finetune.tuner.options == {"width": WIDTH}


@pytest.mark.slow
def test_the_demo_is_reproduced_to_the_digit(monkeypatch, tmp_path) -> None:
    whole = demo.demo_recipe

    def shorter(data: Path):
        recipe = whole(data)
        return recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"epochs": 1})})

    monkeypatch.setattr(demo, "demo_recipe", shorter)
    first = list(tell_demo(tmp_path / "a"))
    again = list(tell_demo(tmp_path / "b"))
    assert first[:-1] == again[:-1]  # the last chapter is about time
    for name in ("run", "controls"):
        metrics = [read_json(tmp_path / place / name / "adjusted" / "metrics.json") for place in ("a", "b")]
        assert metrics[0] == metrics[1]
    stages = RunDirectory.read(tmp_path / "a" / "run").records.read()
    resumed = list(tell_demo(tmp_path / "a"))
    assert resumed[:-1] == first[:-1]
    assert RunDirectory.read(tmp_path / "a" / "run").records.read() == stages  # nothing was done twice

    task, priors, zero_shot, members, controls, _ = first
    assert f"{embedded_world().classes} classes" in task.text
    assert all(float(row[1]) > 0.85 for row in priors.rows[1:])
    assert all(float(row[2]) > float(row[4]) for row in zero_shot.rows[1:4])  # P-Many above P-Few
    assert members.rows[-1][0] == "backdoor-adjusted"
    assert [len(row) for row in controls.rows] == [5] * 5
    assert re.search(r"[+-]\d+\.\d points \[", controls.text)


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="the folder holds something else; name a new or an empty folder"):
        next(tell_demo(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
