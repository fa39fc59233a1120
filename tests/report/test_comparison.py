from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dualtail.logits.comparison import paired_test
from dualtail.report.comparison import Comparison, compare_runs, pair_images
from dualtail.report.export import collect_tables
from dualtail.report.report_table import Estimate
from dualtail.report.samples import Samples, read_samples
from dualtail.report.terminal import print_runs
from dualtail.runs.finished import RunResults, read_results

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def three(make_run: MakeRun, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The run, one that differs in its seed, and one of a single member and another rule."""
    base = tmp_path_factory.mktemp("three")
    root = Path(read_results(run_dir).recipe.data.root)
    again = make_run(base / "again", images=root, seed=1)
    single = make_run(
        base / "single", images=root, backbones=["clip"], changes={"adjust": {"rule": "median"}}
    )
    return [run_dir, again, single]


def compared(roots: list[Path]) -> tuple[Comparison, list[RunResults], list[Samples]]:
    runs = [read_results(root) for root in roots]
    samples = [found for run in runs if (found := read_samples(run)) is not None]
    return compare_runs(runs, samples), runs, samples


def test_differences_are_paired(three: list[Path]) -> None:
    found, _, samples = compared(three)
    row = next(row for row in found.differences.rows if row["run"] == "single" and row["measure"] == "all")
    expected = paired_test(samples[2].ensemble.prediction, samples[0].ensemble.prediction, samples[0].labels)
    assert row["difference"] == Estimate(expected.difference, *expected.ci, expected.n)
    assert row["p_value"] == expected.p_value
    assert "single is worse than small by 22.5 points (14.1 to 30.2)" in found.sentence
    assert {row["measure"] for row in found.differences.rows} == {"all", "D-Few", "tail-tail"}


def test_settings_that_differ_and_no_others(three: list[Path]) -> None:
    found, *_ = compared(three)
    rows = {row["key"]: (row["run0"], row["run1"], row["run2"]) for row in found.settings.rows}
    assert rows["adjust.rule"] == ("logits", "logits", "median")
    assert rows["seed"] == ("0", "1", "0")
    assert rows["members.1.name"] == ("openclip", "openclip", "")
    assert "name" not in rows
    assert "finetune.epochs" not in rows


def test_runs_of_another_precision_are_no_seeds_of_one_recipe(
    make_run: MakeRun, run_dir: Path, tmp_path: Path
) -> None:
    root = Path(read_results(run_dir).recipe.data.root)
    other = make_run(tmp_path / "other", images=root, seed=1, changes={"runtime": {"precision": "fp32"}})
    assert not compared([run_dir, other])[0].seeds


def test_seeds_are_aggregated(three: list[Path]) -> None:
    found, runs, _ = compared(three)
    assert len(found.seeds.rows) == 1
    row = found.seeds.rows[0]
    assert (row["runs"], row["n"]) == ("small and again", 2)
    values = [run.metrics.overall for run in runs[:2]]
    assert row["overall"].value == pytest.approx(np.mean(values))
    assert row["overall_std"] == pytest.approx(np.std(values, ddof=1))
    assert 0 <= row["overall"].low <= row["overall"].high <= 1


def test_other_images_are_not_paired(three: list[Path], make_run: MakeRun, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", test_per_class=4)
    found, *_ = compared([three[0], other])
    assert not found.differences
    assert "cannot be paired" in found.sentence


def test_images_are_matched_by_name(three: list[Path]) -> None:
    samples = read_samples(read_results(three[0]))
    assert samples is not None
    order = np.random.default_rng(0).permutation(len(samples))
    shuffled = replace(
        samples, labels=samples.labels[order], sample_ids=tuple(samples.sample_ids[place] for place in order)
    )
    rows = pair_images(samples, shuffled)
    assert rows is not None
    assert [shuffled.sample_ids[row] for row in rows] == list(samples.sample_ids)
    other_labels = replace(shuffled, labels=(shuffled.labels + 1) % 12)
    assert pair_images(samples, other_labels) is None


def test_same_names_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    roots = [make_run(tmp_path / name / "run", test_per_class=2) for name in ("a", "b")]
    found, *_ = compared(roots)
    assert found.names == ["a/run", "b/run"]


def test_terminal_and_files_show_the_comparison(three: list[Path]) -> None:
    console = Console(width=120, file=io.StringIO(), highlight=False)
    print_runs(three, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 runs compared" in text
    assert "Settings that differ" in text
    assert [table.key for table in collect_tables(three)] == ["runs", "differences", "seeds", "settings"]
    overall = json.loads((three[0] / "adjusted/metrics.json").read_text())["overall"]
    assert f"{100 * overall:.1f}" in text
