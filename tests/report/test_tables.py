from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dualtail.errors import RunError
from dualtail.report.formats import to_csv, to_json, to_latex, to_markdown
from dualtail.report.report_table import Column, Estimate, ReportTable, group_estimates
from dualtail.report.tables import run_tables
from dualtail.report.tables.groups import groups_table
from dualtail.report.tables.members import members_table
from dualtail.report.tables.methods import methods_table, subset_sizes_table, subsets_table
from dualtail.report.terminal import print_runs
from dualtail.runs.finished import read_results

MakeRun = Callable[..., Path]
NASTY = "<script>alert(1)</script>"


def printed(root: Path, width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    print_runs([root], console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_terminal_shows_methods_and_subsets(run_dir: Path) -> None:
    text = printed(run_dir)
    metrics = json.loads((run_dir / "adjusted/metrics.json").read_text())
    low, high = (f"{100 * bound:.1f}" for bound in metrics["overall_ci"])
    assert f"{100 * metrics['overall']:.1f} ({low}–{high})" in text
    assert "tail-tail" in text
    assert "clip, openclip, metaclip" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_terminal_never_cuts_a_number(run_dir: Path, width: int) -> None:
    metrics = json.loads((run_dir / "adjusted/metrics.json").read_text())
    low, high = metrics["overall_ci"]
    cell = f"{100 * metrics['overall']:.1f} ({100 * low:.1f}–{100 * high:.1f})"
    table = printed(run_dir, width).split("Methods")[1].split("The ensemble")[0]
    row = next(line for line in table.splitlines() if cell in line)
    assert row.rstrip().split()[-1].replace(".", "").isdigit()
    assert "tail-tail" in table


def test_groups_are_those_of_metrics(run_dir: Path) -> None:
    row = groups_table(read_results(run_dir)).rows[-1]
    metrics = json.loads((run_dir / "adjusted/metrics.json").read_text())
    assert row["model"] == "ensemble"
    for kind in ("d", "p"):
        for name in ("many", "medium", "few"):
            expected = metrics[f"{kind}_groups"][name]
            assert row[f"{kind}_{name}"] == Estimate(
                expected["accuracy"], *expected["ci"], expected["n"], expected["classes"]
            )
    assert row["tail_tail"].value == metrics["tail_tail"]["accuracy"]


def test_single_member_without_text(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", backbones=["resnet"], text=False)
    results = read_results(run)
    assert not subsets_table(results)
    assert "tail_tail" not in [column.key for column in methods_table(results).columns]
    assert "no pre-training prior" in printed(run)


def test_seeds_stand_beside_different_models(make_run: MakeRun, tmp_path: Path) -> None:
    results = read_results(make_run(tmp_path / "seeds", backbones=["a", "b"], seeds=[0, 1], test_per_class=4))
    kinds = {(row["m"], row["kind"]): row["subsets"] for row in subset_sizes_table(results).rows}
    assert kinds == {
        (1, "one model"): 4, (2, "seeds of one model"): 2, (2, "different models"): 4, (3, "mixed"): 4, (4, "mixed"): 1,
    }  # fmt: skip


def test_unfinished_run_is_one_clear_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "half", test_per_class=2)
    (run / "adjusted/metrics.json").unlink()
    with pytest.raises(
        RunError, match=r"half: the run has not finished: adjusted/metrics.json is missing; 'dualtail run'"
    ):
        print_runs([run])


def test_optional_files_may_be_missing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", test_per_class=2)
    for path in run.glob("adjusted/*"):
        if path.name not in ("metrics.json", "weights.json"):
            path.unlink()
    for path in [run / "provenance.json", run / "stages.json", *run.glob("backbones/*/*")]:
        path.unlink()
    assert "bare" in printed(run)


def test_names_are_escaped_everywhere(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "nasty", names=[NASTY, "[bold]x", "a|b_c%$\\"], test_per_class=3)
    tables = run_tables(read_results(run))
    markdown, latex = to_markdown(tables), to_latex(tables)
    assert NASTY not in markdown
    assert NASTY not in latex
    priors = next(table for table in tables if table.key == "priors")
    assert any(NASTY in str(row.values()) for row in priors.rows) or r"a\|b" in markdown
    printed(run)


def test_csv_and_json_keep_fractions(run_dir: Path) -> None:
    table = methods_table(read_results(run_dir))
    metrics = json.loads((run_dir / "adjusted/metrics.json").read_text())
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(to_csv([table])))}
    assert float(rows["backdoor, logits"]["overall"]) == metrics["overall"]
    assert float(rows["backdoor, logits"]["overall_low"]) == metrics["overall_ci"][0]
    content = {row["label"]: row for row in json.loads(to_json([table]))["methods"]["rows"]}
    assert content["backdoor, logits"]["tail_tail"] == metrics["tail_tail"]["accuracy"]


def test_best_is_marked_by_what_is_printed_and_published_rows_stay_out() -> None:
    rows = [{"x": 0.5001}, {"x": 0.5002}, {"x": 0.4}, {"x": 0.9, "mark": "published"}]
    table = ReportTable(
        "s", "s", [Column("x", "x", "percent", "high")], rows, marks={"published": "published"}
    )
    assert table.best_rows(table.columns[0]) == {0, 1}
    assert to_markdown([table]).count("**50.0**") == 2


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_table_is_wider_than_the_terminal(run_dir: Path, width: int) -> None:
    tables = printed(run_dir, width).split("Methods")[1]
    notes = ("An interval", "Methods")
    assert all(len(line.rstrip()) <= width for line in tables.splitlines() if not line.startswith(notes))


def test_all_models_have_the_same_p_groups(run_dir: Path) -> None:
    """Every row has as many classes and images in each group as the ensemble's."""
    results = read_results(run_dir)
    ensemble = group_estimates(results.metrics)
    for row in groups_table(results).rows:
        for key, cell in ensemble.items():
            assert (row[key].n, row[key].classes) == (cell.n, cell.classes)


def test_published_rows_stand_beside_ours_for_a_benchmark_only(run_dir: Path) -> None:
    results = read_results(run_dir)
    assert not any(row.get("mark") for row in methods_table(results).rows)
    counts = {**results.classes.counts, "train": [116] * 999 + [115_846 - 116 * 999]}
    classes = replace(results.classes, names=[str(index) for index in range(1000)], counts=counts)
    table = methods_table(replace(results, classes=classes))
    published = [row for row in table.rows if row.get("mark") == "published"]
    assert {row["label"]: row["overall"] for row in published}[
        "backdoor adjustment, M = 3, 10 epochs"
    ] == 0.7957
    assert table.marks == {"published": "published for ImageNet-LT"}
    assert "published for ImageNet-LT" in to_latex([table])
    held_out = {"train": [115] * 1000, "val": [0] * 154 + [1] * 846, "test": counts["test"]}
    smaller = methods_table(replace(results, classes=replace(classes, counts=held_out)))
    assert smaller.marks["published"].endswith("trained on all of train (here val is held out of it)")


def test_members_say_what_they_cost(run_dir: Path) -> None:
    table = members_table(read_results(run_dir))
    assert [row["trained"] for row in table.rows] == [4567] * 3
    assert [column.key for column in table.columns] == [
        "member", "backbone", "parameters", "trained", "seed", "seconds", "speed", "loss", "weight", "overall",
    ]  # fmt: skip
