"""The pipeline in this process, in the ways that the installed program's tests do not go."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dualtail.data.transforms import eval_transform
from dualtail.engine.checkpoint import write_checkpoint
from dualtail.errors import DualtailError, RecipeError
from dualtail.imagespec import ImageSpec
from dualtail.logits.metrics import evaluate
from dualtail.logits.prior import LabelPrior
from dualtail.runs import attribution, pipeline
from dualtail.runs.analysis import remaining_source_prior
from dualtail.runs.observer import Observer
from dualtail.runs.pipeline import drop_stale_checkpoints, run_pipeline
from dualtail.runs.recipe import Recipe, apply_override, parse_recipe
from dualtail.runs.store import RunDirectory, read_logits


def recipe_of(workshop: Path, *overrides: str) -> Recipe:
    content: dict[str, Any] = yaml.safe_load((workshop / "recipe.yaml").read_text())
    content["data"]["root"] = str(workshop / "images")
    for member in content["members"]:
        member["backbone"] = f"open_clip:{workshop / member['backbone'].removeprefix('open_clip:./')}"
    for override in ("finetune.epochs=1", "finetune.precision=fp32", *overrides):
        content = apply_override(content, override)
    return parse_recipe(content)


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def methods(run: RunDirectory) -> set[str]:
    with open(run.adjusted_dir / "methods.csv") as file:
        return {row["method"] for row in csv.DictReader(file)}


def test_plain_cross_entropy_leaves_the_source_prior_to_the_adjustments(workshop: Path, tmp_path: Path):
    run = run_pipeline(recipe_of(workshop, "finetune.loss.name=ce", "adjust.weights=fitted"), tmp_path)
    assert {"member", "gla_ft", "gla", "backdoor", "backdoor_gla"} <= methods(run)
    weights = json.loads((run.adjusted_dir / "weights.json").read_text())
    assert weights["fitted"]
    assert sum(weights["weights"]) == pytest.approx(1)
    assert weights["nll"] <= weights["uniform_nll"] + 1e-9


def test_la_takes_the_source_prior_so_no_method_does_again(workshop: Path, tmp_path: Path):
    assert "gla_ft" not in methods(run_pipeline(recipe_of(workshop), tmp_path))


def test_a_prior_from_train_a_loss_with_it_and_no_val(workshop: Path, tmp_path: Path):
    import shutil

    for split in ("train", "test"):
        shutil.copytree(workshop / "images" / split, tmp_path / "images" / split)
    recipe = recipe_of(
        workshop, f"data.root={tmp_path / 'images'}", "data.val_per_class=0", "prior={split: train, per_class: 3}",
        "finetune.loss.name=gla_train",
    )  # fmt: skip
    run = run_pipeline(recipe, tmp_path / "run")
    prior = json.loads((run.backbone_dir("tiny_a") / "prior.json").read_text())
    assert prior["num_samples"] == 9
    assert not (run.adjusted_dir / "neighbors.json").exists()
    assert json.loads((run.adjusted_dir / "metrics.json").read_text())["split"] == "test"


def test_a_backbone_without_text_tower_goes_along(workshop: Path, tmp_path: Path):
    seen = Notes()
    recipe = recipe_of(
        workshop, 'members.1={name: plain, backbone: "timm:test_vit", weights: random, image_size: 32}'
    )  # fmt: skip
    run = run_pipeline(recipe, tmp_path, observer=seen)
    assert any("plain has no text tower" in note for note in seen.notes)
    assert not (run.backbone_dir("plain") / "prior.json").exists()
    assert json.loads((run.member_dir("plain") / "metrics.json").read_text())["n"] == 24
    # The ensemble's prior is that of the one member which has one.
    own = json.loads((run.backbone_dir("tiny_a") / "prior.json").read_text())["log_prob"]
    assert json.loads((run.adjusted_dir / "prior.json").read_text())["log_prob"] == pytest.approx(own)
    asks = recipe_of(workshop, "finetune.loss.name=gla_train").finetune
    with pytest.raises(RecipeError, match="plain has none"):
        run_pipeline(recipe.model_copy(update={"finetune": asks}), tmp_path, update=True)


def test_a_second_stage_and_the_best_epoch(workshop: Path, tmp_path: Path):
    recipe = recipe_of(
        workshop, "finetune.keep=best", "finetune.second_stage={epochs: 2}", "finetune.epochs=2"
    )
    run = run_pipeline(recipe, tmp_path)
    training = json.loads((run.member_dir("tiny_b") / "training.json").read_text())
    assert training["best_epoch"] in (1, 2)
    assert [epoch["epoch"] for epoch in training["second_stage"]["history"]] == [1, 2]
    assert training["second_stage"]["num_parameters"] < training["num_parameters"]  # the head alone
    assert not (run.member_dir("tiny_b") / "resume").exists()


def test_crops_and_seeds(workshop: Path, tmp_path: Path):
    recipe = recipe_of(workshop, "evaluate.crops=5", "members.0.seeds=[0, 1]")
    run = run_pipeline(recipe, tmp_path)
    assert sorted(path.name for path in (run.root / "members").iterdir()) == [
        "tiny_a-seed0",
        "tiny_a-seed1",
        "tiny_b",
    ]
    assert sorted(path.name for path in (run.root / "backbones").iterdir()) == ["tiny_a", "tiny_b"]
    with open(run.adjusted_dir / "subsets.csv") as file:
        assert len(list(csv.DictReader(file))) == 7


def test_checkpoints_of_other_inputs_are_dropped(tmp_path: Path):
    for name, identity in (("first", "old"), ("second", "new")):
        write_checkpoint(tmp_path / name, {"weight": torch.zeros(1)}, {"identity": identity})
    drop_stale_checkpoints(tmp_path, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["second"]
    drop_stale_checkpoints(tmp_path / "none", "new")


def test_a_backbone_that_takes_anothers_name_leaves_nothing_of_it(workshop: Path, tmp_path: Path):
    run_pipeline(recipe_of(workshop, "members.1.name=second"), tmp_path)
    plain = recipe_of(
        workshop, 'members.1={name: second, backbone: "timm:test_vit", weights: random, image_size: 32}'
    )
    run = run_pipeline(plain, tmp_path, update=True)
    assert not (run.backbone_dir("second") / "zero_shot.safetensors").exists()
    assert not (run.backbone_dir("second") / "prior.json").exists()
    assert "prior/second" not in run.stages()
    with open(run.adjusted_dir / "methods.csv") as file:
        assert [row["members"] for row in csv.DictReader(file) if row["method"] == "zero_shot"] == ["tiny_a"]


class Stages(Observer):
    def __init__(self) -> None:
        self.begun: list[str] = []

    def stage(self, title: str) -> None:
        self.begun.append(title.partition(":")[0])


def test_a_new_test_image_trains_nobody_again(workshop: Path, tmp_path: Path):
    shutil.copytree(workshop / "images", tmp_path / "images")
    recipe = recipe_of(workshop, f"data.root={tmp_path / 'images'}", "finetune.loss.name=gla_train")
    run_pipeline(recipe, tmp_path / "run")
    image = next((tmp_path / "images" / "test" / "blue jay").iterdir())
    shutil.copy(image, image.with_name("another.png"))
    seen = Stages()
    run = run_pipeline(recipe, tmp_path / "run", observer=seen)
    assert set(seen.begun) == {
        "zero-shot", "logits", "backdoor adjustment", "evaluation", "attribution",
    }  # fmt: skip
    assert len(read_logits(run.member_dir("tiny_a") / "logits.safetensors", "test").labels) == 25


@pytest.mark.parametrize(
    ("split", "keep", "trains"), [("val", "last", False), ("val", "best", True), ("train", "last", True)]
)
def test_what_training_sees_trains_again(workshop: Path, tmp_path: Path, split: str, keep: str, trains: bool):
    shutil.copytree(workshop / "images", tmp_path / "images")
    recipe = recipe_of(workshop, f"data.root={tmp_path / 'images'}", f"finetune.keep={keep}")
    run_pipeline(recipe, tmp_path / "run")
    image = next((tmp_path / "images" / split / "blue jay").iterdir())
    shutil.copy(image, image.with_name("another.png"))
    seen = Stages()
    run_pipeline(recipe, tmp_path / "run", observer=seen)
    assert ("fine-tuning" in seen.begun) == trains
    assert "logits" in seen.begun


def test_all_maps_are_of_one_cut(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(workshop / "tiny_a", tmp_path / "squashed")
    config = tmp_path / "squashed" / "open_clip_config.json"
    content = json.loads(config.read_text())
    content.setdefault("preprocess_cfg", {})["resize_mode"] = "squash"
    config.write_text(json.dumps(content))
    asked: dict[str, list[ImageSpec]] = {}
    for module in (attribution, pipeline):
        seen = asked.setdefault(module.__name__, [])
        monkeypatch.setattr(
            module,
            "eval_transform",
            lambda spec, seen=seen, **how: (seen.append(spec), eval_transform(spec, **how))[1],
        )
    recipe = recipe_of(
        workshop, f"members.0.backbone=open_clip:{tmp_path / 'squashed'}", "data.interpolation=bilinear"
    )
    run_pipeline(recipe, tmp_path / "run")
    maps, logits = asked[attribution.__name__], asked[pipeline.__name__]
    assert {spec.squash for spec in logits} == {True, False}
    assert {spec.squash for spec in maps} == {False}
    assert {spec.interpolation for spec in maps + logits} == {"bilinear"}


def test_models_and_images_may_move(workshop: Path, tmp_path: Path):
    run_pipeline(recipe_of(workshop), tmp_path / "run")
    shutil.copytree(workshop, tmp_path / "moved")
    seen = Stages()
    moved = recipe_of(tmp_path / "moved")
    run_pipeline(moved, tmp_path / "run", update=True, observer=seen)
    assert seen.begun == []
    config = tmp_path / "moved" / "tiny_a" / "open_clip_config.json"
    config.write_text(config.read_text() + " ")
    run_pipeline(moved, tmp_path / "run", observer=seen)
    assert seen.begun.count("fine-tuning") == 1


def test_a_run_that_fails_at_once_leaves_the_directory_free(workshop: Path, tmp_path: Path):
    broken = recipe_of(workshop, f"data.root={tmp_path}", "name=other")
    with pytest.raises(DualtailError):
        run_pipeline(broken, tmp_path / "run")
    run_pipeline(recipe_of(workshop), tmp_path / "run")


def test_the_temperature_of_a_prior_is_that_of_its_logits(workshop: Path, tmp_path: Path):
    """Scaling zero-shot logits and fixing the temperature at that scale changes no adjusted answer."""
    plain = run_pipeline(recipe_of(workshop), tmp_path / "a")
    halved = run_pipeline(recipe_of(workshop, "prior.temperature=2.0"), tmp_path / "b")
    prior = LabelPrior.from_dict(json.loads((halved.backbone_dir("tiny_a") / "prior.json").read_text()))
    logits = read_logits(halved.backbone_dir("tiny_a") / "zero_shot.safetensors", "test")
    expected = evaluate(logits.logits / 2 - prior.log_prob.float(), logits.labels)
    with open(halved.adjusted_dir / "methods.csv") as file:
        row = next(
            row for row in csv.DictReader(file) if row["method"] == "gla_zs" and row["members"] == "tiny_a"
        )
    assert float(row["nll"]) == pytest.approx(expected.nll, rel=1e-5)
    assert plain.root != halved.root


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        (["finetune.loss.name=ce"], [40, 16, 4]),
        (["finetune.loss.name=la"], None),
        (["finetune.loss.name=ce", "finetune.sampling=class_balanced"], None),
        (["finetune.loss.name=ce", "finetune.second_stage={}"], None),
        (["finetune.loss.name=la", "finetune.second_stage={sampling: instance}"], [40, 16, 4]),
    ],
)
def test_what_of_the_source_prior_training_leaves(
    workshop: Path, overrides: list[str], left: list[int] | None
):
    found = remaining_source_prior(recipe_of(workshop, *overrides).finetune, np.array([40, 16, 4]))
    if left is None:
        assert found is None
    else:
        assert found is not None
        assert found.prob.tolist() == pytest.approx([count / sum(left) for count in left])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("finetune.warmup_epochs=99.0", "warmup_epochs"),
        ("adjust={rule: median, weights: fitted}", "cannot be fitted under the rule median"),
        ("finetune={tuner: {name: none}, second_stage: {only: [tuner]}}", "trains nothing"),
        ("finetune.learning_rate=.inf", "finite"),
    ],
)
def test_what_would_fail_late_is_refused_first(workshop: Path, tmp_path: Path, override: str, line: str):
    with pytest.raises(DualtailError, match=line):
        run_pipeline(recipe_of(workshop, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()
