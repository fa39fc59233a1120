"""The pipeline in this process, in the ways that the installed program's tests do not go."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dualtail.data.transforms import eval_transform
from dualtail.engine.checkpoint import write_checkpoint
from dualtail.errors import DualtailError, RecipeError
from dualtail.imagespec import ImageSpec
from dualtail.logits.metrics import evaluate
from dualtail.logits.prior import LabelPrior
from dualtail.runs import context
from dualtail.runs.directory import RunDirectory
from dualtail.runs.logits_file import LogitsFile
from dualtail.runs.observer import Observer
from dualtail.runs.pipeline import run_pipeline
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import apply_override, parse_recipe
from dualtail.runs.remaining import remaining_source_prior
from dualtail.runs.stages import attribution, finetune
from dualtail.runs.stages.finetune import drop_stale_checkpoints


def recipe_of(workshop: Path, *overrides: str) -> Recipe:
    content: dict[str, Any] = yaml.safe_load((workshop / "recipe.yaml").read_text())
    content["data"]["root"] = str(workshop / "images")
    for member in content["members"]:
        member["backbone"] = f"open_clip:{workshop / member['backbone'].removeprefix('open_clip:./')}"
    for override in ("finetune.epochs=1", "runtime.precision=fp32", *overrides):
        content = apply_override(content, override)
    return parse_recipe(content)


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def methods(run: RunDirectory) -> set[str]:
    with open(run.adjusted.export("methods")) as file:
        return {row["method"] for row in csv.DictReader(file)}


def test_plain_cross_entropy_leaves_the_source_prior_to_the_adjustments(workshop: Path, tmp_path: Path):
    run = run_pipeline(recipe_of(workshop, "finetune.loss.name=ce", "adjust.weights=fitted"), tmp_path)
    assert {"member", "gla_ft", "gla", "backdoor", "backdoor_gla"} <= methods(run)
    weights = json.loads((run.adjusted.weights).read_text())
    assert sum(weights["weights"]) == pytest.approx(1)
    assert weights["nll"] <= weights["uniform_nll"] + 1e-9


def test_la_takes_the_source_prior_so_no_method_does_again(workshop: Path, tmp_path: Path):
    assert "gla_ft" not in methods(run_pipeline(recipe_of(workshop), tmp_path))


def test_a_prior_from_train_a_loss_with_it_and_no_val(workshop: Path, tmp_path: Path):
    for split in ("train", "test"):
        shutil.copytree(workshop / "images" / split, tmp_path / "images" / split)
    recipe = recipe_of(
        workshop, f"data.root={tmp_path / 'images'}", "data.val_per_class=0", "prior={split: train, per_class: 3}",
        "finetune.loss.name=gla_train",
    )  # fmt: skip
    run = run_pipeline(recipe, tmp_path / "run")
    prior = json.loads((run.backbone("tiny_a").prior).read_text())
    assert prior["num_samples"] == 9
    assert not (run.adjusted.neighbors).exists()
    assert json.loads((run.adjusted.metrics).read_text())["split"] == "test"


def test_a_backbone_without_text_tower_goes_along(workshop: Path, tmp_path: Path):
    seen = Notes()
    recipe = recipe_of(
        workshop, 'members.1={name: plain, backbone: "timm:test_vit", weights: random, image_size: 32}'
    )  # fmt: skip
    run = run_pipeline(recipe, tmp_path, observer=seen)
    assert any("plain has no text tower" in note for note in seen.notes)
    assert not (run.backbone("plain").prior).exists()
    assert json.loads((run.member("plain").metrics).read_text())["n"] == 24
    # The ensemble's prior is that of the one member which has one.
    own = json.loads((run.backbone("tiny_a").prior).read_text())["log_prob"]
    assert json.loads((run.adjusted.prior).read_text())["log_prob"] == pytest.approx(own)
    asks = recipe_of(workshop, "finetune.loss.name=gla_train").finetune
    with pytest.raises(RecipeError, match="plain has none"):
        run_pipeline(recipe.model_copy(update={"finetune": asks}), tmp_path, update=True)


def test_a_second_stage_and_the_best_epoch(workshop: Path, tmp_path: Path):
    recipe = recipe_of(
        workshop, "finetune.keep=best", "finetune.second_stage={epochs: 2}", "finetune.epochs=2"
    )
    run = run_pipeline(recipe, tmp_path)
    training = json.loads((run.member("tiny_b").training).read_text())
    assert training["best_epoch"] in (1, 2)
    assert [epoch["epoch"] for epoch in training["second_stage"]["history"]] == [1, 2]
    assert training["second_stage"]["num_parameters"] < training["num_parameters"]  # the head alone
    assert not (run.member("tiny_b").checkpoints).exists()


def test_crops_and_seeds(workshop: Path, tmp_path: Path):
    recipe = recipe_of(workshop, "evaluate.crops=5", "members.0.seeds=[0, 1]")
    run = run_pipeline(recipe, tmp_path)
    assert sorted(path.name for path in (run.root / "members").iterdir()) == [
        "tiny_a-seed0",
        "tiny_a-seed1",
        "tiny_b",
    ]
    assert sorted(path.name for path in (run.root / "backbones").iterdir()) == ["tiny_a", "tiny_b"]
    with open(run.adjusted.export("subsets")) as file:
        assert len(list(csv.DictReader(file))) == 7


class Titles(Observer):
    def __init__(self) -> None:
        self.done: list[str] = []

    def stage(self, title: str) -> None:
        self.done.append(title)


def test_an_update_that_stops_in_a_training_costs_nothing_of_what_was_there(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_pipeline(recipe_of(workshop), tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "finetune_phases", stop)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(recipe_of(workshop, "finetune.epochs=2"), tmp_path, update=True)
    heard = Titles()
    run_pipeline(recipe_of(workshop), tmp_path, update=True, observer=heard)
    assert heard.done == []


def test_a_member_whose_record_was_not_written_is_not_trained_again(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune.FinetuneStage, "seconds", stop)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(recipe_of(workshop), tmp_path)
    run = run_pipeline(recipe_of(workshop), tmp_path)
    assert json.loads(run.member("tiny_a").training.read_text())["resumed_from"] is not None


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
    assert not (run.backbone("second").zero_shot).exists()
    assert not (run.backbone("second").prior).exists()
    assert "prior/second" not in run.records.read()
    with open(run.adjusted.export("methods")) as file:
        assert [row["members"] for row in csv.DictReader(file) if row["method"] == "zero_shot"] == ["tiny_a"]


def test_a_backbone_that_the_recipe_dropped_leaves_nothing(workshop: Path, tmp_path: Path):
    run_pipeline(recipe_of(workshop), tmp_path)
    whole = recipe_of(workshop)
    run = run_pipeline(whole.model_copy(update={"members": whole.members[:1]}), tmp_path, update=True)
    assert not run.backbone("tiny_b").folder.exists()
    assert not run.member("tiny_b").folder.exists()
    assert not run.member("tiny_b").events.exists()
    assert not [key for key in run.records.read() if "tiny_b" in key]
    assert json.loads(run.adjusted.weights.read_text())["members"] == ["tiny_a"]


def test_maps_that_the_recipe_no_longer_wants_are_gone(workshop: Path, tmp_path: Path):
    run = run_pipeline(recipe_of(workshop), tmp_path)
    assert run.attribution.maps.exists()
    run = run_pipeline(recipe_of(workshop, "evaluate.attribution=null"), tmp_path, update=True)
    assert not run.attribution.folder.exists()
    assert "attribution" not in run.records.read()


def test_methods_are_called_by_every_loss_that_trained(workshop: Path, tmp_path: Path):
    run = run_pipeline(recipe_of(workshop, "finetune.second_stage={epochs: 1}"), tmp_path)
    labels = {
        row["label"] for row in json.loads(run.adjusted.methods.read_text()) if row["method"] == "member"
    }
    assert labels == {"fine-tuned, la then ce"}


def test_every_model_has_its_accuracy_by_its_own_and_by_the_common_groups(workshop: Path, tmp_path: Path):
    run = run_pipeline(recipe_of(workshop), tmp_path)
    classes = json.loads(run.classes.read_text())
    for files, name in ((run.member("tiny_b"), "tiny_b"), (run.backbone("tiny_b"), "tiny_b")):
        own, common = (json.loads(path.read_text()) for path in (files.metrics, files.common_metrics))
        assert own["per_class"] == common["per_class"]
        groups = json.loads(run.backbone(name).groups.read_text())["p_groups"]
        for metrics, names in ((own, groups), (common, classes["p_groups"])):
            sizes = {group: cell["classes"] for group, cell in metrics["p_groups"].items()}
            assert sizes == {group: names.count(group) for group in ("many", "medium", "few")}


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
    assert len(LogitsFile(run.member("tiny_a").logits, "test").labels) == 25


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
    for module in (attribution, context):
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
    maps, logits = asked[attribution.__name__], asked[context.__name__]
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
    prior = LabelPrior.from_dict(json.loads((halved.backbone("tiny_a").prior).read_text()))
    logits = LogitsFile(halved.backbone("tiny_a").zero_shot, "test")
    expected = evaluate(logits.logits / 2 - prior.log_prob.float(), logits.labels)
    with open(halved.adjusted.export("methods")) as file:
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
        (["finetune.loss={name: la, options: {tau: 0}}"], [40, 16, 4]),
        (["finetune.loss={name: la, options: {tau: 0.5}}"], [40**0.5, 4, 2]),
        (["finetune.loss.name=ldam"], [40, 16, 4]),
        (["finetune.loss.name=gla_train"], None),
        # Of four epochs the last draws three quarters evenly, one quarter as it comes.
        (["finetune={loss: {name: ce}, sampling: progressive, epochs: 4}"], [25, 19, 16]),
    ],
)
def test_what_of_the_source_prior_training_leaves(
    workshop: Path, overrides: list[str], left: list[float] | None
):
    found = remaining_source_prior(recipe_of(workshop, *overrides).finetune, [40, 16, 4])
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
        ("finetune={head: {name: text}, text_tuner: {name: lora, options: {rnk: 2}}}", "did you mean 'rank'"),
        (
            "finetune={head: {name: text}, text_tuner: {name: lora, options: {blocks: all}}}",
            "blocks is 'all'",
        ),
    ],
)
def test_what_would_fail_late_is_refused_first(workshop: Path, tmp_path: Path, override: str, line: str):
    with pytest.raises(DualtailError, match=line):
        run_pipeline(recipe_of(workshop, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()
