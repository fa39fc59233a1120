from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).parent / "dualtail"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def program() -> Path:
    """The installed command."""
    return PROGRAM


@pytest.fixture(scope="session")
def dualtail() -> Run:
    """Run the installed program as a person would, without a terminal."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "NO_COLOR": "1"}
        return subprocess.run(
            [str(PROGRAM), *map(str, arguments)],
            capture_output=True, text=True, cwd=cwd, env=environment, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture
def in_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Call the program's entry point in this process, which spares the imports of a new one."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from dualtail.cli.main import run as entry

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["dualtail", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            entry()
        out, err = capfd.readouterr()
        return int(done.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def finished_run(workshop: Path, dualtail: Run) -> Path:
    """A run directory of the workshop's recipe."""
    out = workshop / "run"
    done = dualtail("run", workshop / "recipe.yaml", "--out", out)
    assert done.returncode == 0, done.stderr
    return out
