"""The recipes that come with the repository are valid, and say in their headers what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualtail.runs.choices import find_choice_faults
from dualtail.runs.members import plan_members
from dualtail.runs.recipe_file import read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
BENCHMARKS = {"imagenet_lt", "places_lt", "inaturalist2018", "cifar10_lt", "cifar100_lt"}
THREE = [
    "open_clip:ViT-B-16-quickgelu/openai",
    "open_clip:ViT-B-16/laion2b_s34b_b88k",
    "open_clip:ViT-B-16-quickgelu/metaclip_400m",
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path):
    assert find_choice_faults(read_recipe(path)) == []
    assert f"dualtail run recipes/{path.name}" in path.read_text()


def test_every_benchmark_has_one():
    assert {path.stem for path in RECIPES} >= BENCHMARKS


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_benchmarks_use_the_papers_models_and_lifts_recipe(name: str):
    path = next(path for path in RECIPES if path.stem == name)
    recipe = read_recipe(path)
    assert [member.backbone.backbone for member in plan_members(recipe)] == THREE
    tuned = recipe.finetune
    assert tuned.epochs == (20 if name == "inaturalist2018" else 10)
    assert (tuned.optimizer, tuned.learning_rate, tuned.batch_size) == ("sgd", 0.01, 128)
    assert (tuned.tuner.name, tuned.head.name, tuned.loss.name) == ("adaptformer", "cosine", "la")
    assert "Not run by this project" in path.read_text()
