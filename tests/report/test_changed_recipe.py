"""What an earlier recipe left in a run directory shows nowhere; figures of other images are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dualtail.errors import RunError
from dualtail.report.export import collect_tables
from dualtail.report.formats import to_json
from dualtail.report.maps import read_maps
from dualtail.report.model_styles import backbone_colors
from dualtail.report.page import write_page
from dualtail.report.provenance import describe_provenance
from dualtail.report.samples import read_samples
from dualtail.report.sentences import describe_run
from dualtail.runs.directory import RunDirectory
from dualtail.runs.finished import read_results
from dualtail.runs.logits_file import LogitsFile, SplitLogits, write_logits

MakeRun = Callable[..., Path]
MAPS = '<section id="r0-maps">'


@pytest.mark.parametrize("test_per_class", [4, 3])
def test_backbone_that_was_dropped_shows_nowhere(
    make_run: MakeRun, tmp_path: Path, test_per_class: int
) -> None:
    make_run(tmp_path / "run", backbones=["a", "b", "gone"], test_per_class=4)
    run = make_run(tmp_path / "run", backbones=["a", "b"], test_per_class=test_per_class)
    assert (run / "backbones/gone/prior.json").is_file()
    results = read_results(run)
    assert [backbone.name for backbone in results.backbones] == ["a", "b"]
    assert not [line for line in describe_run(results) if "gone" in str(line)]
    assert "gone" not in to_json(collect_tables([run]))
    page = write_page([run], tmp_path / "page.html").read_text()
    charts = page[page.index('id="data"') : page.index('id="images-r0"')]
    assert "gone" not in charts


def test_maps_that_the_recipe_does_not_want_are_not_shown(make_run: MakeRun, tmp_path: Path) -> None:
    where = {"images": tmp_path / "images", "backbones": ["a"], "test_per_class": 3}
    run = make_run(tmp_path / "run", **where, attribution=True)
    assert MAPS in write_page([run], tmp_path / "page.html").read_text()
    make_run(run, **where, changes={"evaluate": {"attribution": None}})
    assert (run / "attribution/maps.safetensors").is_file()
    assert MAPS not in write_page([run], tmp_path / "page.html").read_text()


def test_maps_of_other_members_are_not_shown(make_run: MakeRun, tmp_path: Path) -> None:
    where = {"images": tmp_path / "images", "test_per_class": 3}
    run = make_run(tmp_path / "run", **where, backbones=["a", "b"], attribution=True)
    make_run(run, **where, backbones=["a", "c"])
    results = read_results(run)
    assert read_maps(results, backbone_colors([results])) is None


def test_other_images_of_the_same_number_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", backbones=["a", "b"], test_per_class=3)
    path = RunDirectory.read(run).member("b").logits
    stored = LogitsFile(path, "test")
    others = tuple(f"elsewhere/{name}" for name in stored.sample_ids)
    write_logits(path, {"test": SplitLogits(stored.logits, stored.labels, others)})
    with pytest.raises(RunError, match="its test images are not those of the other members"):
        read_samples(read_results(run))


def test_no_number_is_read_from_an_export(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", backbones=["a", "b"], test_per_class=3)
    before = to_json(collect_tables([run]))
    for path in run.rglob("*.csv"):
        path.unlink()
    assert to_json(collect_tables([run])) == before


def test_damaged_results_are_one_clear_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", backbones=["a", "b"], test_per_class=3)
    path = RunDirectory.read(run).adjusted.metrics
    content = json.loads(path.read_text())
    del content["overall"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"adjusted/metrics.json: does not hold what the run wrote"):
        read_results(run)
    (run / "stages.json").unlink()  # which knows what the file held
    with pytest.raises(RunError, match=r"adjusted/metrics.json: cannot be read \(.*overall"):
        read_results(run)


def test_durations_are_summed_by_the_shares_of_each_unit(run_dir: Path) -> None:
    results = read_results(run_dir)
    record = results.stages["adjust"]
    shares = {f"logits/{name}": replace(record, seconds=2.0, units=3) for name in ("a", "b", "c")}
    stages = describe_provenance(replace(results, stages={"adjust": record, **shares})).stages
    assert stages.rows[-1]["stage"] == "all"
    assert stages.rows[-1]["seconds"] == pytest.approx(7.5)
    assert not stages.note
