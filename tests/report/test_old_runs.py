"""A run directory of format 1, as it was written before its results were typed, reads as it did then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dualtail.report.export import collect_tables
from dualtail.report.formats import to_json
from dualtail.report.page import write_page
from dualtail.report.provenance import describe_provenance
from dualtail.runs.finished import read_results

DATA = Path(__file__).with_name("data")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(DATA / "run_v1", tmp_path / "run_v1")


def test_tables_are_those_of_then(old: Path) -> None:
    shown = json.loads(to_json(collect_tables([old])))
    stored = json.loads((DATA / "tables_v1.json").read_text())
    assert list(shown) == list(stored)
    for key, table in stored.items():
        for row, then in zip(shown[key].pop("rows"), table.pop("rows"), strict=True):
            assert list(row) == list(then)
            for column, value in then.items():
                # Another processor may add fractions in another order.
                close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
                assert row[column] == close, (key, column)
        assert shown[key] == table


def test_it_has_everything_that_a_run_has_now(old: Path) -> None:
    results = read_results(old)
    assert results.groups is not None
    assert results.neighbors is not None
    assert len(results.subsets) == 3
    for model in (*results.backbones, *results.members):
        assert model.common_metrics is not None
        assert model.metrics is not None
        assert model.common_metrics.d_groups == model.metrics.d_groups
    text = write_page([old], old / "page.html").read_text()
    assert f"{100 * results.metrics.overall:.1f}" in text


def test_without_logits_what_follows_from_them_is_left_out(old: Path) -> None:
    (old / "members/clip/logits.safetensors").unlink()
    results = read_results(old)
    assert (results.methods, results.subsets) == ([], [])
    assert "methods" not in [table.key for table in collect_tables([old])]
    assert "cannot be ranked" in write_page([old], old / "page.html").read_text()


def test_passes_that_were_recorded_for_each_of_their_units_are_not_summed(old: Path) -> None:
    stages = describe_provenance(read_results(old)).stages
    seconds = {row["stage"]: row["seconds"] for row in stages.rows}
    assert seconds["logits/clip"] == 6.0
    assert "all" not in seconds
    assert "zero_shot and logits" in stages.note
