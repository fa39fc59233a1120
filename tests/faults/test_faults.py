"""Runs survive what the harness does to them; and the harness sees defects that are planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.__main__ import LONG, SHORT
from faults.plants import PLANTS

TESTS = Path(__file__).parents[1]


def run_harness(*arguments: object, timeout: float) -> dict[str, Any]:
    """Run the harness in a process of its own, which must not have used threads before it forks."""
    file = Path(str(arguments[-1]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "faults", *map(str, arguments)],
        cwd=TESTS, env=environment, stdout=subprocess.PIPE, text=True, timeout=timeout,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode in (0, 1), done.stdout
    return json.loads(file.read_text())


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_harness("--plants", "--json", tmp_path_factory.mktemp("faults") / "short.json", timeout=600)


@pytest.mark.parametrize("kind", [kind for kind, number in SHORT.items() if number])
def test_no_fault_is_more_than_a_line(short: dict[str, Any], kind: str) -> None:
    assert sum(short["counts"][kind].values()) == SHORT[kind]
    assert [row for row in short["bad"] if row["trial"].startswith(f"{kind}/")] == []


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_defect_is_seen(short: dict[str, Any], name: str) -> None:
    verdicts = {row["plant"]: row["verdict"] for row in short["plants"]}
    assert verdicts[f"{name}, not"] in ("equal", "refused", "read")
    assert verdicts[name] == PLANTS[name].seen_as


@pytest.mark.faults_long
def test_long(tmp_path: Path) -> None:
    found = run_harness(
        "--long", "--json", os.environ.get("FAULTS_JSON", tmp_path / "long.json"), timeout=7200
    )
    assert {kind: sum(counts.values()) for kind, counts in found["counts"].items()} == LONG
    assert found["bad"] == []
