from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dualtail.errors import RunError
from dualtail.report.explorer import confusions
from dualtail.report.page import embed_json, write_page
from dualtail.report.samples import Samples, read_samples, reliability
from dualtail.report.thumbnails import make_thumbnails, worst_images
from dualtail.runs.directory import RunDirectory
from dualtail.runs.finished import read_results
from dualtail.runs.logits_file import LogitsFile

MakeRun = Callable[..., Path]
NASTY = "<script>alert(1)</script>"
QUOTES = "\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its text, and its scripts' content."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id") or "code"

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.words.append(data)

    def json(self, name: str) -> Any:
        return json.loads(self.scripts[name])


@pytest.fixture(scope="module")
def page(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_page([run_dir], tmp_path_factory.mktemp("page") / "report.html").read_text())


def test_asks_nothing_of_the_network(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, attributes)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy


def test_tables_hold_the_numbers_of_metrics(page: Page, run_dir: Path) -> None:
    metrics = json.loads((run_dir / "adjusted/metrics.json").read_text())
    figures = {
        a["data-figure"]: float(a["data-value"] or "nan") for _, a in page.elements if "data-figure" in a
    }
    assert figures == {
        "All images": metrics["overall"],
        "D-Few": metrics["d_groups"]["few"]["accuracy"],
        "P-Few": metrics["p_groups"]["few"]["accuracy"],
        "Tail-tail": metrics["tail_tail"]["accuracy"],
    }
    assert f"{100 * metrics['overall']:.1f}" in " ".join(page.words)


def test_every_section_is_there(page: Page) -> None:
    sections = {a["id"] for t, a in page.elements if t == "section" and "id" in a}
    names = ("overview", "imbalances", "groups", "helped", "classes", "reliability", "provenance")
    assert sections == {f"r0-{name}" for name in names}
    ids = {a["id"] for _, a in page.elements if "id" in a}
    links = {str(a["href"])[1:] for t, a in page.elements if t == "a" and str(a.get("href")).startswith("#")}
    assert {link for link in links if "-class-" not in link} <= ids


def test_every_chart_has_its_figure(page: Page) -> None:
    charts = page.json("data")["runs"]["r0"]["charts"]
    places = [a["data-chart"] for t, a in page.elements if t == "figure" and "data-chart" in a]
    assert sorted(places) == sorted(charts)  # type: ignore[type-var]


def test_class_data_is_that_of_the_run(page: Page, run_dir: Path) -> None:
    classes = page.json("data")["runs"]["r0"]["classes"]
    results = read_results(run_dir)
    assert classes["names"] == results.classes.names
    assert classes["train"] == results.classes.counts["train"]
    for model in classes["models"]:
        if model["kind"] == "member":
            expected = json.loads((run_dir / "members" / model["name"] / "metrics.json").read_text())
            assert model["correct"] == expected["per_class"]["correct"]
    colors = {model["name"]: model["color"] for model in classes["models"] if model["kind"] == "member"}
    assert len(set(colors.values())) == 3
    before = {model["name"]: model["color"] for model in classes["models"] if model["kind"] == "zero_shot"}
    assert before == colors


def test_worst_images_are_pictures(page: Page, run_dir: Path) -> None:
    content = page.json("images-r0")
    assert content["models"] == ["clip", "openclip", "metaclip"]
    labels = LogitsFile(RunDirectory.read(run_dir).member("clip").logits, "test")
    of_file = dict(zip(labels.sample_ids, labels.labels.tolist(), strict=True))
    for index, images in content["classes"].items():
        truths = [truth for _, _, truth, _, _ in images]
        wrong = [predictions[0] != int(index) for *_, predictions in images]
        assert wrong == sorted(wrong, reverse=True)
        assert truths[: sum(wrong)] == sorted(truths[: sum(wrong)])
        for picture, file, *_ in images:
            assert of_file[file] == int(index)
            image = Image.open(io.BytesIO(base64.b64decode(picture)))
            assert image.format == "JPEG"
            assert max(image.size) <= 96


def test_hostile_names_do_no_harm(make_run: MakeRun, tmp_path: Path) -> None:
    names = [NASTY, QUOTES, "{{ 7 * 7 }}", "</script>"]
    run = make_run(
        tmp_path / "run<b>&", names=names, backbones=["a", "b"], test_per_class=4,
        images=tmp_path / "images", file_name="{label:04d}/<img src=x onerror=alert(3)>{number}.png",
    )  # fmt: skip
    text = write_page([run], tmp_path / "page.html").read_text()
    found = Page(text)
    assert found.json("data")["runs"]["r0"]["classes"]["names"] == names
    assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]
    assert {t for t, _ in found.elements} & {"img", "b"} == {"b"}
    assert all(a.get("data-figure") for t, a in found.elements if t == "b")
    # Three data blocks, the charts' packed library, and one script; no more.
    assert len([t for t, _ in found.elements if t == "script"]) == 4
    assert any(NASTY in words for words in found.words)
    assert "49" not in [words.strip() for words in found.words]


def test_json_cannot_end_its_element() -> None:
    content = {"a": "</script><!--", "b": "\u2028&"}
    text = embed_json(content)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == content


def test_run_without_text_tower_or_images(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", backbones=["resnet"], text=False, test_per_class=4)
    found = Page(write_page([run], tmp_path / "page.html").read_text())
    words = " ".join(found.words)
    assert "no pre-training prior" in words
    assert "were not found under" in words
    assert "P-Few" not in {a.get("data-figure") for _, a in found.elements}
    assert found.json("images-r0")["classes"] == {}


def test_run_without_optional_files(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "old", test_per_class=3)
    keep = ("metrics.json", "weights.json", "recipe.yaml", "classes.json")
    for path in run.rglob("*"):
        if path.is_file() and path.name not in keep:
            path.unlink()
    found = Page(write_page([run], tmp_path / "page.html").read_text())
    assert "r0-reliability" not in {a.get("id") for _, a in found.elements}
    assert "cannot be ranked" in " ".join(found.words)


def test_images_can_be_left_out(run_dir: Path, tmp_path: Path) -> None:
    found = Page(write_page([run_dir], tmp_path / "page.html", images=False).read_text())
    assert found.json("images-r0")["classes"] == {}


def test_unfinished_run(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "half", test_per_class=2)
    (run / "classes.json").unlink()
    with pytest.raises(RunError, match="has not finished"):
        write_page([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_page_that_cannot_be_written(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_page([run_dir], tmp_path / "file" / "page.html")


def test_samples_are_the_logits_answers(run_dir: Path) -> None:
    results = read_results(run_dir)
    samples = read_samples(results)
    assert samples is not None
    stored = LogitsFile(RunDirectory.read(run_dir).member("clip").logits, "test")
    assert (samples.members["clip"].prediction == stored.logits.argmax(1).numpy()).all()
    probabilities = stored.logits.softmax(1)
    np.testing.assert_allclose(samples.members["clip"].confidence, probabilities.max(1).values, rtol=1e-5)
    right = (samples.ensemble.prediction == samples.labels).mean()
    assert right == pytest.approx(results.metrics.overall, abs=1e-12)
    curve = reliability(samples.ensemble, samples.labels, bins=15)
    assert curve.ece == pytest.approx(results.metrics.ece, abs=1e-5)


def test_confusions_count_errors_alone() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 2, 1, 0, 2])
    assert confusions(labels, predictions, 3) == [[1, 2, 2, 1], [0, 1], []]
    assert confusions(labels, predictions, 3, most=1) == [[1, 2], [0, 1], []]


def test_a_small_budget_shows_every_class_first(run_dir: Path) -> None:
    results = read_results(run_dir)
    samples = read_samples(results)
    assert isinstance(samples, Samples)
    rows = worst_images(samples, 12)
    assert all(3 <= len(row) <= 12 for row in rows)
    root = Path(results.recipe.data.root)
    everything = make_thumbnails(rows, samples, root, 10**7)
    assert len(everything.pictures) == everything.wanted
    largest = max(len(picture) for picture in everything.pictures.values())
    few = make_thumbnails(rows, samples, root, 12 * (largest + 100))
    assert sum(len(picture) + 100 for picture in few.pictures.values()) <= 12 * (largest + 100)
    assert {int(samples.labels[row]) for row in few.pictures} == set(range(12))
    assert few.left_out == few.wanted - len(few.pictures)


def test_unreadable_images_are_counted(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", images=tmp_path / "images", test_per_class=3)
    for path in (tmp_path / "images/test").glob("*/000.png"):
        path.write_bytes(b"no image")
    text = write_page([run], tmp_path / "page.html").read_text()
    assert re.search(r"12 of the worst images could not be read", text)


def test_published_rows_are_set_apart(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", classes=100, test_per_class=1, val_per_class=1, backbones=["a", "b"])
    content = json.loads((run / "classes.json").read_text())
    content["counts"]["train"][0] += 10_847 - sum(content["counts"]["train"])
    (run / "classes.json").write_text(json.dumps(content))
    (run / "stages.json").unlink()  # which knows what the file held
    found = Page(write_page([run], tmp_path / "page.html").read_text())
    assert "published for CIFAR-100-LT, ratio 100" in found.words
    assert [a.get("class") for t, a in found.elements if t == "tbody"].count("mark") == 1
    # No markup of ours is shown as text.
    assert not [words for words in found.words if "</" in words]


def test_two_runs_on_one_page(make_run: MakeRun, run_dir: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", images=Path(read_results(run_dir).recipe.data.root), seed=1)
    found = Page(write_page([run_dir, other], tmp_path / "page.html").read_text())
    assert set(found.json("data")["runs"]) == {"r0", "r1"}
    assert "2 runs compared" in " ".join(found.words)
    assert "differences" in found.json("data")["shared"]
