"""Each mistake gets one clear line on stderr, exit code 2, and nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml


def edited(workshop: Path, folder: Path, **changes: object) -> Path:
    """Return a copy of the workshop's recipe, in a folder of its own, with top-level sections replaced."""
    content = yaml.safe_load((workshop / "recipe.yaml").read_text())
    content["data"]["root"] = str(workshop / "images")
    for member in content["members"]:
        member["backbone"] = f"open_clip:{workshop / member['backbone'].removeprefix('open_clip:./')}"
    content.update(changes)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "nowhere.yaml", "--out", "o"], "error: nowhere.yaml: no such file"),
        (["run", "{recipe}", "--out", "o", "--set", "finetune.epohcs=3"], "did you mean finetune.epochs?"),
        (["run", "{recipe}", "--out", "o", "--set", "finetune.epochs"], "is not of the form key=value"),
        (["run", "{recipe}", "--out", "o", "--set", "data.reader=foldr"], "did you mean 'folder'?"),
        (["run", "{recipe}", "--out", "o", "--set", "data.root=nowhere"], "there is no such folder"),
        (
            ["run", "{recipe}", "--out", "o", "--set", "finetune.tuner.name=adaptfomer"],
            "did you mean 'adaptformer'?",
        ),
        (["run", "{recipe}", "--out", "o", "--set", "finetune.loss.name=laa"], "unknown loss 'laa'"),
        (["run", "{recipe}", "--out", "o", "--set", "members.0.weights=null"], "tiny_a"),
        (["run", "{recipe}", "--out", "o", "--set", "members.0.backbone=open_clip:ViT-B-16/opnai"], "openai"),
        (["run", "{recipe}", "--out", "o", "--set", "members.0.backbone=tim:x"], "unknown backbone 'tim:x'"),
        (["run", "{recipe}"], "Missing option '--out'"),
        (["rum"], "No such command 'rum'"),
        (["report", "nowhere"], "nowhere: no such run directory"),
        (["predict", "{recipe}", "{image}"], "is not a run directory"),
        (["data", "digits", "{recipe}"], "is a file"),
    ],
)
def test_one_line_and_exit_code_two(
    in_process, workshop: Path, tmp_path: Path, arguments: list[str], line: str
):
    recipe = edited(workshop, tmp_path)
    image = workshop / "images" / "test" / "blue jay" / "0.png"
    code, _, stderr = in_process(*(argument.format(recipe=recipe, image=image) for argument in arguments))
    assert code == 2, stderr
    assert "Traceback" not in stderr
    errors = [text for text in stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1
    assert line in errors[0]


def test_a_bad_image_is_named_or_skipped(dualtail, workshop: Path, tmp_path: Path):
    shutil.copytree(workshop / "images", tmp_path / "images")
    bad = tmp_path / "images" / "test" / "blue jay" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    recipe = edited(workshop, tmp_path, data={"root": str(tmp_path / "images")})

    done = dualtail("run", recipe, "--out", tmp_path / "out", "--set", "finetune.epochs=1")
    assert done.returncode == 2
    assert str(bad) in done.stderr.splitlines()[-1]

    again = dualtail(
        "run", recipe, "--out", tmp_path / "out", "--update", "--set", "finetune.epochs=1", "--set",
        "data.on_bad_image=skip",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "1 image of test could not be read and was left out" in again.stderr
    metrics = yaml.safe_load((tmp_path / "out" / "adjusted" / "metrics.json").read_text())
    assert metrics["n"] == 23


def test_a_class_without_training_images_is_refused(dualtail, workshop: Path, tmp_path: Path):
    shutil.copytree(workshop / "images", tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "train" / "green frog")
    recipe = edited(workshop, tmp_path, data={"root": str(tmp_path / "images")})
    done = dualtail("run", recipe, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "class 'green frog': no training image" in done.stderr


def test_an_unknown_label_and_a_missing_column_are_named(dualtail, workshop: Path, tmp_path: Path):
    table = tmp_path / "images.csv"
    image = workshop / "images" / "train" / "blue jay" / "0.png"
    table.write_text(f"path,label,split\n{image},blue jay,train\n{image},blue jai,test\n")
    options = {"file": str(table), "class_names": ["blue jay", "green frog", "red panda"]}
    data = {"reader": "table", "root": str(tmp_path), "options": options}
    done = dualtail("run", edited(workshop, tmp_path, data=data), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "'blue jai'" in done.stderr
    assert "did you mean 'blue jay'?" in done.stderr

    table.write_text(f"path,class,split\n{image},blue jay,train\n")
    done = dualtail("run", edited(workshop, tmp_path, data=data), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "'label'" in done.stderr


def test_a_directory_of_another_recipe_keeps_its_results(dualtail, workshop: Path, finished_run: Path):
    before = (finished_run / "adjusted" / "metrics.json").read_bytes()
    done = dualtail(
        "run", workshop / "recipe.yaml", "--out", finished_run, "--set", "finetune.learning_rate=0.5"
    )
    assert done.returncode == 2
    assert (
        "belongs to another recipe (finetune.learning_rate); choose another --out, or add --update"
        in done.stderr
    )
    assert (finished_run / "adjusted" / "metrics.json").read_bytes() == before


def test_a_foreign_directory_is_refused(dualtail, workshop: Path, tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    done = dualtail("run", workshop / "recipe.yaml", "--out", tmp_path)
    assert done.returncode == 2
    assert "is not empty and is not a run directory" in done.stderr
