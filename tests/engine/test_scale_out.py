"""Two processes do what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_standins import SyntheticLoader, TinyClassifier, same_bits, state_of
from safetensors.torch import load_file

from dualtail.engine.finetune import finetune
from dualtail.engine.settings import FinetuneSettings

PROGRAM = Path(__file__).with_name("distributed_run.py")

# The gradient of a batch is summed in another order, and 21 steps of SGD carry the rounding along.
TOLERANCE = 1e-5


def run(out: Path, processes: int) -> None:
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = launcher if processes > 1 else []
    subprocess.run(
        [sys.executable, *launcher, str(PROGRAM), str(out)],
        check=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parent)},
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("scale_out")
    run(root / "one", 1)
    run(root / "two", 2)
    return root / "one", root / "two"


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(runs: tuple[Path, Path]) -> None:
    one, two = (load_file(out / "rank0.safetensors") for out in runs)
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), atol=TOLERANCE, rtol=1e-3), name
    first, second = (json.loads((out / "rank0.json").read_text()) for out in runs)
    assert (first["processes"], second["processes"]) == (1, 2)
    assert first["steps"] == second["steps"]
    assert first["images"] == second["images"] == 153
    for before, after in zip(first["history"], second["history"], strict=True):
        assert before["loss"] == pytest.approx(after["loss"], abs=TOLERANCE)
        assert before["accuracy"] == after["accuracy"]
        assert before["val"] == pytest.approx(after["val"], abs=1e-4)


@pytest.mark.slow
def test_both_processes_hold_everything_once(runs: tuple[Path, Path]) -> None:
    first, second = (load_file(runs[1] / f"rank{rank}.safetensors") for rank in (0, 1))
    assert torch.equal(first["index"], torch.arange(50))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.slow
def test_one_process_of_two_writes_events_and_checkpoints(runs: tuple[Path, Path]) -> None:
    assert len(list((runs[1] / "events").iterdir())) == 1
    assert (runs[1] / "resume" / "state.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_member_on_each_process_is_what_it_is_in_one(runs: tuple[Path, Path], rank: int) -> None:
    classifier = TinyClassifier(rank, dropout=0.0)
    settings = FinetuneSettings(epochs=2, precision="fp32")
    finetune(classifier, SyntheticLoader(seed=rank), torch.nn.CrossEntropyLoss(), settings, device="cpu")
    assert same_bits(load_file(runs[1] / f"alone{rank}.safetensors"), state_of(classifier))
    assert (runs[1] / f"resume{rank}" / "state.safetensors").exists()
    assert len(list((runs[1] / f"events{rank}").iterdir())) == 1
