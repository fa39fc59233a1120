"""A run that was stopped anywhere ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_standins import SyntheticLoader, TinyClassifier, same_bits, state_of
from safetensors.torch import load_file

from dualtail.engine.checkpoint import (
    BEFORE_NAME,
    CHECKPOINT_NAME,
    read_checkpoint,
    read_header,
    write_checkpoint,
)
from dualtail.engine.finetune import finetune
from dualtail.engine.settings import FinetuneSettings
from dualtail.errors import Interrupted, TrainingError
from dualtail.files import write_tensors

PROGRAM = Path(__file__).with_name("killable_run.py")


def start(tmp_path: Path, result: str, pause: float) -> subprocess.Popen[str]:
    arguments = [str(tmp_path / "resume"), str(tmp_path / result), str(pause)]
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments], stdout=subprocess.PIPE, text=True, cwd=PROGRAM.parent
    )


def run_to_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.split() == ["step", str(step)]:
            return
    raise AssertionError(f"the program ended before step {step}")


def test_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = start(tmp_path, "whole.safetensors", 0.0)
    whole.communicate()
    assert whole.returncode == 0
    shutil.rmtree(tmp_path / "resume")

    # 7 batches of 8, two a step: 4 steps an epoch, 16 in all.
    killed = start(tmp_path, "resumed.safetensors", 0.05)
    run_to_step(killed, random.Random().randrange(2, 15))
    killed.kill()
    killed.wait()
    assert not (tmp_path / "resumed.safetensors").exists()
    last = start(tmp_path, "resumed.safetensors", 0.0)
    out, _ = last.communicate()
    assert last.returncode == 0
    assert "step 1\n" not in out, "the last part began afresh"
    assert same_bits(load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "resumed.safetensors"))


def test_a_signal_saves_and_stops(tmp_path: Path) -> None:
    process = start(tmp_path, "result.safetensors", 0.05)
    run_to_step(process, 3)
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == 3
    assert "run the same command again" in out
    assert read_header(tmp_path / "resume")["step"] >= 3


SETTINGS = FinetuneSettings(epochs=3, learning_rate=0.1, precision="fp32", checkpoint_minutes=60)


def train(classifier: TinyClassifier, directory: Path | None = None, **options: object) -> object:
    settings = options.pop("settings", SETTINGS)
    loader = options.pop("loader", None) or SyntheticLoader()
    return finetune(
        classifier,
        loader,
        torch.nn.CrossEntropyLoss(),
        settings,
        checkpoint_dir=directory,
        device="cpu",
        **options,
    )


class Press:
    """Press Ctrl-C when a step is told."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, told: object) -> None:
        if told.step == self.step:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("step", [1, 7, 20])
def test_interrupted_run_ends_with_the_same_bits(tmp_path: Path, optimizer: str, step: int) -> None:
    settings = FinetuneSettings(epochs=3, optimizer=optimizer, schedule_step="step", precision="fp32")
    whole, parted = TinyClassifier(), TinyClassifier()
    expected = train(whole, settings=settings)
    with pytest.raises(Interrupted, match=f"stopped at step {step} "):
        train(parted, tmp_path, settings=settings, progress=Press(step))
    fresh, loader = TinyClassifier(), SyntheticLoader()
    result = train(fresh, tmp_path, settings=settings, loader=loader)
    assert result.resumed_from == step
    assert loader.served == 21 - step, "batches that were used before are not read again"
    assert same_bits(state_of(whole), state_of(fresh))
    for one, two in zip(expected.history, result.history, strict=True):
        assert (one["loss"], one["accuracy"]) == (two["loss"], two["accuracy"])


def test_interrupt_during_evaluation_loses_nothing(tmp_path: Path) -> None:
    def press(_: object) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return {"macro": 0.0}

    whole, fresh = TinyClassifier(), TinyClassifier()
    train(whole)
    with pytest.raises(Interrupted):
        train(TinyClassifier(), tmp_path, evaluate=press)
    loader = SyntheticLoader()
    train(fresh, tmp_path, evaluate=lambda _: {"macro": 0.0}, loader=loader)
    assert loader.served == 14, "the first epoch is not repeated"
    assert same_bits(state_of(whole), state_of(fresh))


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    whole, again, loader = TinyClassifier(), TinyClassifier(), SyntheticLoader()
    first = train(whole, tmp_path)
    second = train(again, tmp_path, loader=loader)
    assert loader.served == 0
    assert second.history == first.history
    assert same_bits(state_of(whole), state_of(again))


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(TinyClassifier(), tmp_path, identity="a")
    other = FinetuneSettings(epochs=5, precision="fp32")
    with pytest.raises(TrainingError, match="epochs 3 there, 5 here"):
        train(TinyClassifier(), tmp_path, settings=other, identity="a")
    with pytest.raises(TrainingError, match="data, model or loader"):
        train(TinyClassifier(), tmp_path, identity="b")
    with pytest.raises(TrainingError, match="7 batches an epoch there, 4 here"):
        train(TinyClassifier(), tmp_path, identity="a", loader=SyntheticLoader(batch_size=16))


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(TinyClassifier(), tmp_path)
    with pytest.raises(TrainingError, match=r"weight\.norm\.weight is absent"):
        train(TinyClassifier(norm=True), tmp_path)


def test_half_a_file_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"weight": torch.zeros(100)}, {})
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TrainingError, match=r"cannot be read.*delete"):
        train(TinyClassifier(), tmp_path)


def test_the_previous_checkpoint_stands_until_the_next_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, {"weight": torch.zeros(1)}, {"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dualtail.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, {"weight": torch.ones(1)}, {"step": 2})
    assert read_header(tmp_path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [CHECKPOINT_NAME], "nothing half-written stays"


def test_the_checkpoint_keeps_its_form(tmp_path: Path) -> None:
    """Runs that earlier versions stopped go on: names in the file do not change."""
    settings = FinetuneSettings(epochs=1, precision="fp32", keep="best", ema_decay=0.9)
    with pytest.raises(Interrupted):
        train(
            TinyClassifier(norm=True),
            tmp_path,
            settings=settings,
            progress=Press(3),
            evaluate=lambda _: {"macro": 0.0},
        )
    tensors, header, _ = read_checkpoint(tmp_path)
    assert set(header) == {
        *(
            "format_version",
            "settings",
            "identity",
            "batches",
            "epoch",
            "batch",
            "step",
            "unit",
            "ema_updates",
        ),
        *("loss_sum", "right", "images", "images_before", "seconds", "seconds_before", "history"),
        *("best_value", "best_epoch", "finished"),
    }
    assert (header["step"], header["batch"], header["images"], header["unit"]) == (3, 3, 24, 8)
    assert {name for name in tensors if name.endswith("head.bias") or name.startswith("buffer.")} == {
        *("weight.head.bias", "optimizer.momentum_buffer.head.bias", "average.head.bias"),
        *("buffer.norm.running_mean", "buffer.norm.running_var", "buffer.norm.num_batches_tracked"),
    }


# Two checkpoints with checksums.


def two_checkpoints(directory: Path) -> None:
    for step in (1, 2):
        tensors = {
            "weight": torch.full((5, 3), float(step)),
            "unit": torch.tensor(step),
            "none": torch.empty(0),
        }
        write_checkpoint(directory, tensors, {"step": step, "identity": "a"})


def test_any_bit_that_changes_is_found_and_the_one_before_is_read(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    path = tmp_path / CHECKPOINT_NAME
    whole = path.read_bytes()
    assert read_checkpoint(tmp_path).header["step"] == 2
    wrong = []
    for place in range(len(whole)):
        bit = place % 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        kept = read_checkpoint(tmp_path)
        if (kept.header["step"], kept.tensors["weight"][0, 0].item()) != (1, 1.0) or str(
            path
        ) not in kept.note:
            wrong.append((place, bit))
    assert wrong == []
    assert len(whole) > 400


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"{" * 100, None])
def test_two_damaged_checkpoints_are_one_line(tmp_path: Path, damage: bytes | None) -> None:
    two_checkpoints(tmp_path)
    for name in (CHECKPOINT_NAME, BEFORE_NAME):
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir() if damage is None else (tmp_path / name).write_bytes(damage)
    with pytest.raises(TrainingError, match=r"the checkpoint cannot be read .*; delete .* to start over"):
        read_checkpoint(tmp_path)


def test_a_run_goes_on_from_the_one_before_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, fresh = TinyClassifier(), TinyClassifier()
    settings = SETTINGS.changed(checkpoint_steps=2)
    train(whole, settings=settings)
    with pytest.raises(Interrupted):
        train(TinyClassifier(), tmp_path, settings=settings, progress=Press(9))
    path = tmp_path / CHECKPOINT_NAME
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(Interrupted):  # stopped at once: what is saved then must not push the good one out
        train(TinyClassifier(), tmp_path, settings=settings, progress=Press(10))
    for name in (CHECKPOINT_NAME, BEFORE_NAME):
        if (tmp_path / name).exists():
            assert read_checkpoint(tmp_path).note == ""
    result = train(fresh, tmp_path, settings=settings)
    assert result.resumed_from == 10
    assert same_bits(state_of(whole), state_of(fresh))


def test_a_checkpoint_without_a_checksum_goes_on(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    whole, fresh = TinyClassifier(), TinyClassifier()
    train(whole)
    with pytest.raises(Interrupted):
        train(TinyClassifier(), tmp_path, progress=Press(5))
    tensors, header, _ = read_checkpoint(tmp_path)
    text = json.dumps({**header, "format_version": 1})
    write_tensors(tmp_path / CHECKPOINT_NAME, tensors, {"dualtail": text})
    result = train(fresh, tmp_path)
    assert result.resumed_from == 5
    assert same_bits(state_of(whole), state_of(fresh))


def test_a_checkpoint_of_another_version_is_refused_not_taken_for_damaged(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    write_tensors(tmp_path / CHECKPOINT_NAME, {}, {"dualtail": json.dumps({"format_version": 3})})
    with pytest.raises(TrainingError, match="has format version 3, not 2; delete"):
        read_checkpoint(tmp_path)


def test_a_kill_between_the_two_renames_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    two_checkpoints(tmp_path)
    replace, calls = os.replace, []

    def killed(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("dualtail.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, {"weight": torch.ones(1)}, {"step": 3})
    assert read_checkpoint(tmp_path).header["step"] == 2
    assert read_checkpoint(tmp_path).note == ""
