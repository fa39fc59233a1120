from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dualtail.data.problems import DataFaults, Problem
from dualtail.errors import RecipeError
from dualtail.process_group import ProcessGroup
from dualtail.runs.check import check_recipe
from dualtail.runs.context import RunContext
from dualtail.runs.dataset import build_manifest, evaluation_split, find_problems, prior_sample
from dualtail.runs.directory import RunDirectory
from dualtail.runs.members import plan_backbones, plan_members
from dualtail.runs.observer import Observer, PatientProgress
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
    shutil.copytree(images / "train", tmp_path / "train")
    manifest = build_manifest(Data(root=str(tmp_path)), seed=0)
    assert evaluation_split(manifest) == "val"
    assert "measured on val" in manifest.notes[-1]


def test_a_missing_file_is_an_error_or_a_warning_by_policy(images: Path, tmp_path: Path):
    shutil.copytree(images, tmp_path / "images")
    data = Data(root=str(tmp_path / "images"), val_per_class=2)
    manifest = build_manifest(data, seed=0)
    (tmp_path / "images" / manifest.paths[0]).unlink()

    def severities(policy: Data) -> list[str]:
        problems: list[Problem] = find_problems(manifest, policy)
        return [problem.severity for problem in problems]

    assert severities(data) == ["error"]
    assert severities(data.model_copy(update={"on_bad_image": "skip"})) == ["warning"]


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Two, ten and two training images, seven of the ten without pixels, and two of each class in val and test."""
    for name, sizes in {"ant": (2, 2, 2), "bee": (10, 2, 2), "cow": (2, 2, 2)}.items():
        for split, size in zip(("train", "val", "test"), sizes, strict=True):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(size):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    for number in range(7):
        spoil(tmp_path / "images/train/bee" / f"{number}.png")
    return tmp_path / "images"


def spoil(path: Path) -> None:
    """Keep an image's header and leave out its pixels."""
    path.write_bytes(path.read_bytes()[:40])


def context_of(data: Data, out: Path) -> RunContext:
    """Return a run of the data that has not begun."""
    members = [{"backbone": "timm:test_vit", "weights": "random"}]
    recipe = parse_recipe({"name": "x", "data": data.model_dump(), "members": members})
    return RunContext(
        RunDirectory(out, recipe), build_manifest(data, 0), ProcessGroup(), Observer(), torch.device("cpu")
    )


def test_everything_is_counted_without_the_images_that_are_skipped(spoilt: Path):
    assert build_manifest(Data(root=str(spoilt)), seed=0).counts().tolist() == [2, 10, 2]
    data = Data(root=str(spoilt), on_bad_image="skip")
    manifest = build_manifest(data, seed=0)
    assert manifest.counts().tolist() == [2, 3, 2]
    (note,) = manifest.notes
    assert note.startswith(
        "7 images of train could not be read and were left out, the first train/bee/0.png: "
    )
    assert find_problems(manifest, data) == []
    assert [problem.severity for problem in find_problems(manifest, data, deep=True)] == []


def test_val_is_held_out_of_images_that_can_be_read(spoilt: Path):
    shutil.rmtree(spoilt / "val")
    manifest = build_manifest(Data(root=str(spoilt), on_bad_image="skip", val_per_class=1), seed=0)
    assert manifest.counts("val").tolist() == [1, 1, 1]
    assert manifest.counts("train").tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("gone", "line"),
    [
        (
            ["train/cow"],
            "class 'cow', split 'train': none of 2 images can be read, the first {}/train/cow/0.png: ",
        ),
        (
            ["test/ant"],
            "class 'ant', split 'test': none of 2 images can be read, the first {}/test/ant/0.png: ",
        ),
        (
            ["val/ant", "val/bee", "val/cow"],
            "split 'val': none of 6 images can be read, the first {}/val/ant/0.png: ",
        ),
        (["test/ant", "test/bee", "test/cow"], "split 'test': none of 6 images can be read, the first "),
        (["train/ant", "test/cow"], "class 'ant', split 'train': none of 2 images can be read, the first "),
    ],
)
@pytest.mark.parametrize("how", [spoil, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_class_or_split_that_loses_all_its_images_is_refused(spoilt: Path, gone, line, how):
    if how is Path.unlink:  # the reader of folders would not see them at all
        manifest = build_manifest(Data(root=str(spoilt)), seed=0)
        manifest.to_table(spoilt / "all.csv")
        data = Data(root=str(spoilt), reader="table", options={"file": "all.csv"}, on_bad_image="skip")
    else:
        data = Data(root=str(spoilt), on_bad_image="skip")
    for folder in gone:
        for path in (spoilt / folder).iterdir():
            how(path)
    with pytest.raises(DataFaults) as caught:
        build_manifest(data, seed=0)
    assert str(caught.value).startswith(line.format(spoilt))
    assert len(caught.value.problems) == (2 if gone == ["train/ant", "test/cow"] else 1)


def test_the_policy_redoes_nothing_and_the_list_of_the_skipped_does(
    spoilt: Path, images: Path, tmp_path: Path
):
    def inputs(root: Path, policy: str) -> list[str]:
        data = Data(root=str(root), on_bad_image=policy, val_per_class=2)
        context = context_of(data, tmp_path / "run")
        return [context.data_inputs(split) for split in ("train", "val", "test")]

    assert inputs(images, "skip") == inputs(images, "error")
    before = inputs(spoilt, "skip")
    spoil(spoilt / "test/ant/0.png")
    after = inputs(spoilt, "skip")
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, True, False]
    (spoilt / "test/ant/0.png").unlink()
    assert inputs(spoilt, "skip") == after, "a skipped image may as well be gone"


def test_an_image_that_turns_bad_after_the_check_is_told_in_one_line(spoilt: Path, tmp_path: Path):
    context = context_of(Data(root=str(spoilt), on_bad_image="skip"), tmp_path / "run")
    (spoilt / "test/ant/0.png").unlink()
    with pytest.raises(DataFaults, match=r"^\S*test/ant/0.png: there is no such file; "):
        _ = context.split_fingerprints


def test_other_pixels_of_the_same_size_and_time_are_other_inputs(images: Path, tmp_path: Path):
    root = shutil.copytree(images, tmp_path / "images")
    data = Data(root=str(root), val_per_class=2)
    before = context_of(data, tmp_path / "run").split_fingerprints
    file = root / "test/dog/1.png"
    state = file.stat()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = context_of(data, tmp_path / "run").split_fingerprints
    assert {name for name in before if before[name] != after[name]} == {"test"}


def test_reading_that_takes_long_is_told(monkeypatch):
    heard: list[object] = []

    class Listener(Observer):
        def stage(self, title: str) -> None:
            heard.append(title)

        def progress(self, done: int, total: int, text: str = "") -> None:
            heard.append((done, total))

        def finished(self, title: str, seconds: float) -> None:
            heard.append("finished")

    quick = PatientProgress(Listener(), "reading")
    quick(1, 2)
    quick(2, 2)
    assert heard == []
    monkeypatch.setattr("dualtail.runs.observer.PATIENCE", -1.0)
    slow = PatientProgress(Listener(), "reading")
    slow(1, 2)
    slow(2, 2)
    assert heard == ["reading", (1, 2), (2, 2), "finished"]


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
