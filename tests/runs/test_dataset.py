from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dualtail.data.problems import Problem
from dualtail.errors import RecipeError
from dualtail.runs.check import check_recipe
from dualtail.runs.dataset import build_manifest, evaluation_split, find_problems, prior_sample
from dualtail.runs.members import plan_backbones, plan_members
from dualtail.runs.pipeline import run_pipeline
from dualtail.runs.recipe import Data, LongTail
from dualtail.runs.recipe_file import parse_recipe


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 24 training images each, and a test split; no val."""
    root = tmp_path_factory.mktemp("images")
    for name in ("cat", "dog"):
        for split, size in (("train", 24), ("test", 3)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(size):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return root


def test_a_missing_val_is_held_out_balanced_and_said(images: Path):
    manifest = build_manifest(Data(root=str(images), val_per_class=4), seed=0)
    assert manifest.counts("val").tolist() == [4, 4]
    assert manifest.counts("train").tolist() == [20, 20]
    assert "held out of train" in manifest.notes[0]
    again = build_manifest(Data(root=str(images), val_per_class=4), seed=0)
    assert again.fingerprint() == manifest.fingerprint()
    assert (
        build_manifest(Data(root=str(images), val_per_class=4), seed=1).fingerprint()
        != manifest.fingerprint()
    )


def test_a_long_tail_keeps_val_and_test_balanced(images: Path):
    data = Data(root=str(images), val_per_class=4, long_tail=LongTail(ratio=10.0))
    manifest = build_manifest(data, seed=0)
    assert manifest.counts("train").tolist() == [20, 2]
    assert manifest.counts("val").tolist() == [4, 4]
    assert manifest.counts("test").tolist() == [3, 3]
    assert evaluation_split(manifest) == "test"


def test_val_may_be_gone_without(images: Path):
    data = Data(root=str(images), val_per_class=0)
    manifest = build_manifest(data, seed=0)
    assert "val" not in manifest.split_sizes
    assert find_problems(manifest, data) == []


def test_without_val_what_needs_it_is_refused(images: Path, tmp_path: Path):
    content = {
        "name": "x",
        "data": {"root": str(images), "val_per_class": 0},
        "members": [{"backbone": "timm:test_vit"}],
    }
    with pytest.raises(RecipeError, match=r"prior.split needs a val split.*set prior.split to train"):
        run_pipeline(parse_recipe(content), tmp_path / "a")
    content |= {"prior": {"split": "train"}, "adjust": {"weights": "fitted"}}
    with pytest.raises(RecipeError, match=r"adjust.weights needs a val split"):
        run_pipeline(parse_recipe(content), tmp_path / "b")


def test_without_test_results_are_measured_on_val(images: Path, tmp_path: Path):
    import shutil

    shutil.copytree(images / "train", tmp_path / "train")
    manifest = build_manifest(Data(root=str(tmp_path)), seed=0)
    assert evaluation_split(manifest) == "val"
    assert "measured on val" in manifest.notes[-1]


def test_a_missing_file_is_an_error_or_a_warning_by_policy(images: Path, tmp_path: Path):
    import shutil

    shutil.copytree(images, tmp_path / "images")
    data = Data(root=str(tmp_path / "images"), val_per_class=2)
    manifest = build_manifest(data, seed=0)
    (tmp_path / "images" / manifest.paths[0]).unlink()

    def severities(policy: Data) -> list[str]:
        problems: list[Problem] = find_problems(manifest, policy)
        return [problem.severity for problem in problems]

    assert severities(data) == ["error"]
    assert severities(data.model_copy(update={"on_bad_image": "skip"})) == ["warning"]


@pytest.mark.parametrize(("per_class", "expected"), [(None, [24, 24]), (5, [5, 5]), (99, [24, 24])])
def test_the_images_of_a_prior_from_train(images: Path, per_class: int | None, expected: list[int]):
    manifest = build_manifest(Data(root=str(images), val_per_class=0), seed=0)
    sample = prior_sample(manifest, per_class, seed=0)
    assert sample.counts().tolist() == expected
    assert len(set(sample.paths)) == len(sample)
    assert np.array_equal(sample.labels, prior_sample(manifest, per_class, seed=0).labels)


def test_seeds_of_one_backbone_are_members_that_share_it():
    members = [{"backbone": "timm:a", "seeds": [0, 1], "name": "a"}, {"backbone": "timm:b"}]
    recipe = parse_recipe({"name": "x", "data": {"root": "."}, "members": members})
    plans = plan_members(recipe)
    assert [(plan.name, plan.seed) for plan in plans] == [("a-seed0", 0), ("a-seed1", 1), ("b", 0)]
    assert [plan.name for plan in plan_backbones(plans)] == ["a", "b"]


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([{"backbone": "timm:a"}, {"backbone": "timm:a"}], "two different backbones are called 'a'"),
        ([{"backbone": "timm:a", "name": "../a"}], "cannot name a folder"),
    ],
)
def test_members_need_names_that_are_folders(members: list[dict], line: str):
    with pytest.raises(RecipeError, match=line):
        plan_members(parse_recipe({"name": "x", "data": {"root": "."}, "members": members}))


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ({"reader": "foldr"}, ["data.reader: unknown reader 'foldr'; did you mean 'folder'?"]),
        (
            {"options": {"trian": "a"}},
            ["data.options: the reader 'folder' has no option 'trian'; did you mean 'train'?"],
        ),
        ({"reader": "table"}, ["data.options: the reader 'table' needs the option 'file'"]),
    ],
)
def test_a_fault_of_the_reader_is_said_once(workshop: Path, tmp_path: Path, data: dict, lines: list[str]):
    members = [
        {"backbone": f"open_clip:{workshop / name}", "weights": "random"} for name in ("tiny_a", "tiny_b")
    ]
    tuned = {"tuner": {"name": "adaptformer", "options": {"width": -3}}}
    recipe = {
        "name": "x",
        "data": {"root": str(workshop / "images"), **data},
        "members": members,
        "finetune": tuned,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    faults = check_recipe(tmp_path / "recipe.yaml").faults
    assert [fault for fault in faults if "reader" in fault] == lines
    assert len(faults) == len(set(faults))
