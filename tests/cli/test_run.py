"""The installed program, used as a person would use it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file


def files_under(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_run_leaves_everything_that_the_layout_promises(finished_run: Path):
    expected = {"recipe.yaml", "provenance.json", "stages.json", "classes.json", "report.html"}
    for name in ("tiny_a", "tiny_b"):
        expected |= {
            f"backbones/{name}/{file}" for file in ("zero_shot.safetensors", "prior.json", "metrics.json")
        }
        expected |= {
            f"members/{name}/{file}"
            for file in (
                "trainable.safetensors",
                "config.json",
                "training.json",
                "logits.safetensors",
                "metrics.json",
            )
        }
    expected |= {
        f"adjusted/{file}"
        for file in (
            "weights.json",
            "metrics.json",
            "methods.csv",
            "subsets.csv",
            "per_class.csv",
            "comparisons.json",
        )
    }
    found = files_under(finished_run)
    assert expected <= found
    assert any(name.startswith("events/tiny_a/") for name in found)
    assert not any("resume" in name or name.endswith((".pkl", ".pt", ".bin", ".tmp")) for name in found)


def test_the_resolved_recipe_and_provenance_say_what_was_done(finished_run: Path):
    recipe = yaml.safe_load((finished_run / "recipe.yaml").read_text())
    assert recipe["finetune"]["momentum"] == 0.9  # a default, written out
    assert Path(recipe["data"]["root"]).is_absolute()
    provenance = json.loads((finished_run / "provenance.json").read_text())
    assert provenance["data"]["splits"] == {"train": 60, "val": 18, "test": 24}
    assert provenance["versions"]["torch"]
    assert "run" in provenance["commands"][0]


def test_only_tuner_and_head_are_saved(finished_run: Path):
    tensors = load_file(finished_run / "members" / "tiny_a" / "trainable.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"tuner", "head"}
    assert tensors["head.weight"].shape == (3, 32)
    config = json.loads((finished_run / "members" / "tiny_a" / "config.json").read_text())
    assert config["format_version"] == 1


def test_logits_on_disk_give_the_metrics(finished_run: Path):
    tensors = load_file(finished_run / "members" / "tiny_a" / "logits.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"val", "test"}
    ids = json.loads(bytes(tensors["test.sample_ids"]).decode())
    assert len(ids) == len(tensors["test.labels"]) == 24
    names = json.loads((finished_run / "classes.json").read_text())["names"]
    assert [Path(path).parent.name for path in ids] == [names[label] for label in tensors["test.labels"]]
    right = (tensors["test.logits"].argmax(1) == tensors["test.labels"]).mean()
    metrics = json.loads((finished_run / "members" / "tiny_a" / "metrics.json").read_text())
    assert metrics["overall"] == pytest.approx(float(right))
    assert metrics["d_groups"]["few"]["classes"] == 1
    assert metrics["cross"].keys() == {"many", "medium", "few"}


def test_the_tables_hold_every_subset_and_method(finished_run: Path):
    with open(finished_run / "adjusted" / "subsets.csv") as file:
        subsets = {row["members"]: row for row in csv.DictReader(file)}
    assert set(subsets) == {"tiny_a", "tiny_b", "tiny_a+tiny_b"}
    adjusted = json.loads((finished_run / "adjusted" / "metrics.json").read_text())
    assert float(subsets["tiny_a+tiny_b"]["overall"]) == pytest.approx(adjusted["overall"])
    with open(finished_run / "adjusted" / "methods.csv") as file:
        methods = [row["method"] for row in csv.DictReader(file)]
    assert {"zero_shot", "gla_zs", "member", "gla", "backdoor", "backdoor_probabilities"} <= set(methods)


def test_a_second_run_does_nothing_and_says_so(dualtail, workshop: Path, finished_run: Path):
    before = {name: (finished_run / name).stat().st_mtime_ns for name in files_under(finished_run / "members")
              if (finished_run / name).exists()}  # fmt: skip
    done = dualtail("run", workshop / "recipe.yaml", "--out", finished_run)
    assert done.returncode == 0, done.stderr
    assert "fine-tuning: tiny_a: up to date" in done.stderr
    assert all(line.endswith("up to date") for line in done.stderr.splitlines() if "fine-tuning" in line)
    assert all((finished_run / name).stat().st_mtime_ns == time_ for name, time_ in before.items())


def test_a_changed_rule_redoes_the_arithmetic_only(
    dualtail, workshop: Path, finished_run: Path, tmp_path: Path
):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    done = dualtail(
        "run", workshop / "recipe.yaml", "--out", copy, "--update", "--set", "adjust.rule=probabilities"
    )
    assert done.returncode == 0, done.stderr
    assert "logits: tiny_b: up to date" in done.stderr
    assert "backdoor adjustment" in done.stderr
    assert json.loads((copy / "adjusted" / "weights.json").read_text())["rule"] == "probabilities"


def interrupt(program: Path, arguments: list[str], wait_for: Path, how: signal.Signals) -> int:
    """Start the program, send a signal once ``wait_for`` exists, and return its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(program), *arguments], env=environment, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    limit = time.monotonic() + 200
    while not wait_for.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(how)
    return process.wait(timeout=100)


def test_a_stopped_command_says_so(in_process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from dualtail.runs import predict, recipe_file

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe_file, "read_recipe", stop)
    monkeypatch.setattr(predict, "find_images", stop)
    for arguments, said in (
        (["run", "recipe.yaml", "--out", tmp_path], "stopped; the same command goes on where it was"),
        (["predict", tmp_path, tmp_path], "stopped"),
    ):
        code, _, stderr = in_process(*arguments)
        assert (code, stderr.strip()) == (130, said)


@pytest.mark.slow
def test_interrupted_twice_and_resumed_it_ends_with_the_same_numbers(
    dualtail, program: Path, workshop: Path, tmp_path: Path
):
    """Ctrl-C in the first member, a kill in the second; then the same weights and metrics, to the bit."""
    base = ["run", str(workshop / "recipe.yaml"), "--set", "finetune.epochs=12", "--set",
            "runtime.checkpoint_minutes=0.001"]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert dualtail(*base, "--out", whole).returncode == 0
    arguments = [*base, "--out", str(parts)]
    assert interrupt(program, arguments, parts / "members" / "tiny_a" / "resume", signal.SIGINT) == 130
    assert not (parts / "members" / "tiny_a" / "trainable.safetensors").exists()
    assert interrupt(program, arguments, parts / "members" / "tiny_b" / "resume", signal.SIGKILL) == -9
    assert not (parts / "members" / "tiny_b" / "trainable.safetensors").exists()
    assert dualtail(*arguments).returncode == 0
    for name in ("members/tiny_a/trainable.safetensors", "members/tiny_b/trainable.safetensors",
                 "adjusted/metrics.json", "adjusted/subsets.csv"):  # fmt: skip
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


def test_check_says_what_a_run_would_take(dualtail, workshop: Path):
    done = dualtail("check", workshop / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "3 classes; images: 60 train, 18 val, 24 test" in done.stdout
    assert "trained (adaptformer and head)" in done.stdout
    assert "2 members x 3 epochs of 60 images" in done.stdout
    assert "stores: about" in done.stdout
    assert "can run: 0 faults" in done.stdout


def test_check_lists_every_fault_at_once(dualtail, workshop: Path, tmp_path: Path):
    content = yaml.safe_load((workshop / "recipe.yaml").read_text())
    content["data"]["root"] = str(tmp_path / "nowhere")
    content["members"][0]["backbone"] = "open_clip:ViT-B-16/no_such_tag"
    content["members"][1]["backbone"] = f"open_clip:{workshop / 'tiny_b'}"
    content["finetune"]["tuner"]["name"] = "adaptfomer"
    content["finetune"]["loss"] = {"name": "la", "options": {"tua": 2.0}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    done = dualtail("check", path)
    assert done.returncode == 2
    faults = [line for line in done.stdout.splitlines() if line.startswith("fault:")]
    for part in (
        "there is no such folder",
        "no_such_tag",
        "did you mean 'adaptformer'?",
        "did you mean 'tau'?",
    ):
        assert sum(part in fault for fault in faults) == 1, done.stdout
    assert "cannot run" in done.stdout.splitlines()[-1]


def test_predict_prints_a_table_json_lines_and_csv(dualtail, workshop: Path, finished_run: Path):
    folder = workshop / "images" / "test" / "red panda"
    single = folder / "0.png"
    table = dualtail("predict", finished_run, single)
    assert table.returncode == 0, table.stderr
    assert " %" in table.stdout

    lines = dualtail("predict", finished_run, single, workshop / "images" / "test" / "blue jay", "--top", "3",
                     "--format", "jsonl")  # fmt: skip
    records = [json.loads(line) for line in lines.stdout.splitlines()]
    assert len(records) == 9
    assert records[0]["path"] == str(single)
    assert {entry["class"] for entry in records[0]["predictions"]} == {"red panda", "blue jay", "green frog"}
    assert sum(entry["probability"] for entry in records[0]["predictions"]) == pytest.approx(1, abs=1e-4)

    rows = list(
        csv.DictReader(dualtail("predict", finished_run, folder, "--format", "csv").stdout.splitlines())
    )
    assert len(rows) == 8
    # The stored logits of the same images lead to the same answers.
    with open(finished_run / "adjusted" / "per_class.csv") as file:
        panda = next(row for row in csv.DictReader(file) if row["name"] == "red panda")
    share = sum(row["class"] == "red panda" for row in rows) / 8
    assert share == pytest.approx(float(panda["adjusted"]))


def test_predict_leaves_out_what_cannot_be_read_and_says_so_once(
    finished_run: Path, workshop: Path, tmp_path: Path
):
    from dualtail.errors import DataError
    from dualtail.runs.observer import Observer
    from dualtail.runs.predict import find_images, predict_images

    notes: list[str] = []
    observer = Observer()
    observer.note = notes.append  # type: ignore[method-assign]
    (tmp_path / "folder.png").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    bad = find_images([tmp_path])
    assert bad == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    good = str(workshop / "images" / "test" / "blue jay" / "0.png")
    options = {"device": "cpu", "on_bad_image": "skip", "observer": observer}
    answers = predict_images(finished_run, [bad[0], good, bad[1]], **options)
    assert [answer.path for answer in answers] == [good]
    assert notes == [f"2 images could not be read and were left out, the first {bad[0]}"]
    with pytest.raises(DataError, match=r"a\.png: none of 2 images can be read"):
        predict_images(finished_run, bad, **options)


def test_predict_refuses_what_is_no_image(dualtail, finished_run: Path, tmp_path: Path):
    (tmp_path / "a.png").write_text("not an image")
    done = dualtail("predict", finished_run, tmp_path / "a.png")
    assert done.returncode == 2
    assert str(tmp_path / "a.png") in done.stderr
    done = dualtail("predict", finished_run, tmp_path / "b.png")
    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_help_is_quick_to_load(program: Path):
    """The help must not import the heavy packages; a wall time would depend on the machine."""
    code = "import sys, dualtail.cli.main; print([m for m in ('torch', 'open_clip', 'plotly') if m in sys.modules])"
    done = subprocess.run(
        [str(program.parent / "python"), "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
