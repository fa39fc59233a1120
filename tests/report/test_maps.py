"""From the models of a run to the maps on its page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dualtail.errors import RunError
from dualtail.report.maps import read_maps
from dualtail.report.model_styles import backbone_colors
from dualtail.report.page import write_page
from dualtail.runs.directory import RunDirectory
from dualtail.runs.finished import RunResults, read_results
from dualtail.runs.logits_file import LogitsFile
from dualtail.runs.stages.attribution import choose_images

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def results(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    base = tmp_path_factory.mktemp("maps")
    run = make_run(
        base / "run",
        images=base / "images",
        backbones=["a", "b"],
        seeds=[0, 1],
        test_per_class=4,
        attribution=True,
    )
    return read_results(run)


def test_files_hold_a_map_of_every_model_and_image(results: RunResults) -> None:
    content = json.loads((results.root / "attribution/attribution.json").read_text())
    tensors = load_file(results.root / "attribution/maps.safetensors")
    assert [(item["kind"], item["name"]) for item in content["models"]] == [
        ("zero_shot", "a"), ("zero_shot", "b"),
        ("member", "a-seed0"), ("member", "a-seed1"), ("member", "b-seed0"), ("member", "b-seed1"),
    ]  # fmt: skip
    assert content["chosen"] == ["worst"] * 12 + ["random"] * 10
    assert len(set(content["images"])) == 22
    stored = LogitsFile(results.run.member("a-seed0").logits, "test")
    of_file = dict(zip(stored.sample_ids, stored.labels.tolist(), strict=True))
    assert [of_file[name] for name in content["images"]] == content["labels"]
    assert tensors["images"].shape == (22, 3, 28, 28)
    for item in content["models"]:
        assert tensors[f"{item['kind']}.{item['name']}"].shape == (22, 14, 14)
    assert len(content["similarity"]) == 15
    for row in content["similarity"]:
        assert row["n"] <= 10
        assert -1 <= row["ci"][0] <= row["correlation"] <= row["ci"][1] <= 1


def test_worst_images_of_the_weakest_classes_come_first() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(20)
    scores = torch.randn(200, 10, generator=generator)
    scores[torch.arange(200), labels] += torch.linspace(0, 5, 10)[labels]
    rows, chosen = choose_images(scores, labels, 30, seed=0)
    right = (scores.argmax(1) == labels).double().reshape(10, 20).mean(1)
    weakest = right.argsort(stable=True)[:6].tolist()
    assert labels[rows[:12]].tolist() == [index for index in weakest for _ in range(2)]
    truth = scores.log_softmax(1)[torch.arange(200), labels]
    for place, index in enumerate(weakest):
        lowest = truth[labels == index].sort().values[:2]
        torch.testing.assert_close(truth[rows[2 * place : 2 * place + 2]], lowest)
    assert chosen == ["worst"] * 12 + ["random"] * 30
    assert len(set(rows.tolist())) == 42
    again, _ = choose_images(scores, labels, 30, seed=0)
    other, _ = choose_images(scores, labels, 30, seed=1)
    assert rows.tolist() == again.tolist() != other.tolist()


def test_page_has_the_maps(results: RunResults) -> None:
    found = read_maps(results, backbone_colors([results]))
    assert found is not None
    kinds = [row["what"] for row in found.similarity.rows]
    assert kinds.count("two backbones before tuning") == 1
    assert kinds.count("two members after tuning") == 6
    # Each member beside its own backbone alone.
    assert kinds.count("a member before and after tuning") == 4
    assert "Over 10 images drawn at random, the maps of two backbones" in found.sentence
    tensors = load_file(results.root / "attribution/maps.safetensors")
    model = next(model for model in found.data["models"] if model["name"] == "b-seed1")
    shown = np.frombuffer(base64.b64decode(model["maps"][3]), dtype=np.int8).reshape(14, 14)
    stored = tensors["member.b-seed1"][3]
    np.testing.assert_allclose(shown / 127, stored / np.abs(stored).max(), atol=0.5 / 127)
    colors = {model["backbone"]: model["color"] for model in found.data["models"]}
    assert len(set(colors.values())) == 2
    text = write_page([results.root], results.root / "page.html").read_text()
    assert '<section id="r0-maps">' in text


def elsewhere(results: RunResults, root: Path) -> RunResults:
    return replace(results, run=RunDirectory(root, results.recipe))


def test_run_without_maps(results: RunResults, tmp_path: Path) -> None:
    assert read_maps(elsewhere(results, tmp_path), {}) is None


def test_damaged_maps_are_one_clear_line(results: RunResults, tmp_path: Path) -> None:
    folder = tmp_path / "attribution"
    folder.mkdir()
    for name in ("attribution.json", "maps.safetensors"):
        (folder / name).write_text("{}")
    with pytest.raises(RunError, match="attribution: cannot be read"):
        read_maps(elsewhere(results, tmp_path), {})
