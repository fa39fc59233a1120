"""``dualtail report`` as a person uses it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def report() -> Command:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("dualtail")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        return subprocess.run(
            [program, "report", *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120
        )  # fmt: skip

    return call


def test_prints_and_writes_beside_the_run(report: Command, run_dir: Path) -> None:
    done = report(run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((run_dir / "adjusted/metrics.json").read_text())
    assert f"{100 * metrics['overall']:.1f}" in done.stdout
    assert done.stdout.rstrip().endswith(f"report: {run_dir / 'report.html'}")
    assert (run_dir / "report.html").read_text().lstrip().startswith("<!doctype html>")


def test_several_runs_on_one_page(
    report: Command, run_dir: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", test_per_class=3)
    done = report(run_dir, other, "--out", tmp_path / "both.html", "--no-images")
    assert done.returncode == 0, done.stderr
    assert "2 runs compared" in done.stdout
    assert (tmp_path / "both.html").is_file()


@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "json"])
def test_tables_in_every_format(report: Command, run_dir: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "tables"
    done = report(run_dir, "--format", form, "--table", "methods", "--out", out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = out.read_text()
    if form == "csv":
        assert {row["label"] for row in csv.DictReader(io.StringIO(text))} >= {
            "zero-shot",
            "backdoor, logits",
        }
    elif form == "json":
        assert list(json.loads(text)) == ["methods"]
    else:
        assert "backdoor, logits" in text


def test_every_table_goes_to_stdout(report: Command, run_dir: Path) -> None:
    done = report(run_dir, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert {"members", "priors", "cross", "groups", "methods", "subsets", "neighbors"} <= set(
        json.loads(done.stdout)
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--format", "csv", "--table", "metods"], "unknown table 'metods'; did you mean 'methods'?"),
        (["--table", "methods"], "--table: chooses among the tables that --format writes"),
        (["--format", "pdf"], "'pdf' is not one of 'markdown', 'latex', 'csv', 'json'"),
        (["--out", "/dev/null/x.html"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(report: Command, run_dir: Path, arguments: list[str], line: str) -> None:
    done = report(run_dir, *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
