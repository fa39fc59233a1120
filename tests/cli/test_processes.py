"""Runs of two processes: the same figures as one, whether they share batches or members."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_together(command: Path, *arguments: object, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Run two processes of a program of the environment that ``command`` lies in."""
    launcher = [
        command.parent / "torchrun",
        "--nproc-per-node",
        2,
        "--master-port",
        free_port(),
        "--no-python",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, launcher), str(command), *map(str, arguments)], capture_output=True, text=True,
                          env=environment, timeout=timeout)  # fmt: skip


@pytest.mark.slow
def test_members_side_by_side_are_what_they_would_be_alone(
    program: Path, workshop: Path, finished_run: Path, tmp_path: Path
):
    done = run_together(
        program, "run", workshop / "recipe.yaml", "--out", tmp_path / "run", "--set", "runtime.share=members"
    )
    assert done.returncode == 0, done.stderr
    for name in ("tiny_a", "tiny_b"):
        file = Path("members") / name / "trainable.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (finished_run / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "run" / "members" / "tiny_a").iterdir()) == [
        "common_metrics.json", "config.json", "logits.safetensors", "metrics.json", "trainable.safetensors",
        "training.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_shared_batches_give_the_same_figures(
    program: Path, workshop: Path, finished_run: Path, tmp_path: Path
):
    done = run_together(program, "run", workshop / "recipe.yaml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1  # one process speaks
    ours, theirs = (
        json.loads((root / "adjusted" / "metrics.json").read_text())
        for root in (tmp_path / "run", finished_run)
    )
    assert ours["n"] == theirs["n"]
    # bf16 on some CPUs rounds the cut batch differently; one image of 24 may turn.
    assert abs(ours["overall"] - theirs["overall"]) <= 1 / 24 + 1e-9
    assert ours["nll"] == pytest.approx(theirs["nll"], rel=0.05)


@pytest.mark.slow
def test_processes_part_without_an_abort(program: Path, tmp_path: Path):
    # Gloo's threads drop tensors late; one that did so in a dying interpreter aborted about every third such run.
    script = tmp_path / "part.py"
    script.write_text(PART)
    for _ in range(4):
        done = run_together(program.parent / "python", script, timeout=200)
        assert done.returncode == 0, done.stderr


PART = """
import torch
from dualtail.process_group import join_processes

join_processes("cpu")
for step in range(300):
    torch.distributed.all_reduce(torch.ones(20_000), async_op=True)
    if step % 10 == 0:
        torch.distributed.barrier()
torch.distributed.barrier()
"""


@pytest.mark.slow
def test_a_process_that_fails_ends_them_all(program: Path, tmp_path: Path):
    script = tmp_path / "fail.py"
    script.write_text(FAIL)
    done = run_together(program.parent / "python", script, timeout=120)
    assert done.returncode != 0


FAIL = """
import sys
import torch
from dualtail.process_group import join_processes

state = join_processes("cpu")
torch.distributed.barrier()
if state.process_index == 0:
    sys.exit(2)
torch.distributed.all_reduce(torch.ones(1000))  # what the first one will never join
"""
