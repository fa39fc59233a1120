"""Signals and faults of the system, as the command tells them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_outside_training_is_a_line_and_its_code(
    in_process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
):
    from dualtail.lab import demo, world
    from dualtail.report import terminal
    from dualtail.runs import check, predict, recipe_file

    number = getattr(signal, name)

    def send(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    for module, function in ((recipe_file, "read_recipe"), (predict, "find_images"), (terminal, "print_runs"),
                             (demo, "tell_demo"), (world, "read_world"), (check, "check_recipe")):  # fmt: skip
        monkeypatch.setattr(module, function, send)
    before = signal.getsignal(number)
    goes_on = "stopped; the same command goes on where it was"
    for arguments, said in (
        (["run", "recipe.yaml", "--out", tmp_path], goes_on),
        (["demo", tmp_path], goes_on),
        (["lab", "pretrain", "world.yaml", "--out", tmp_path], goes_on),
        (["predict", tmp_path, tmp_path], "stopped"),
        (["report", tmp_path], "stopped"),
        (["check", "recipe.yaml"], "stopped"),
    ):
        code, _, stderr = in_process(*arguments)
        assert (code, stderr.strip()) == (128 + number, said)
    assert signal.getsignal(number) is before


def test_the_code_of_a_stopped_training_is_that_of_its_signal(
    in_process, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    from dualtail.errors import Interrupted
    from dualtail.runs import recipe_file

    def stop(*_: object, **__: object) -> None:
        error = Interrupted("stopped at step 3")
        error.signal = signal.SIGTERM
        raise error

    monkeypatch.setattr(recipe_file, "read_recipe", stop)
    code, _, stderr = in_process("run", "recipe.yaml", "--out", tmp_path)
    assert (code, stderr.strip()) == (128 + signal.SIGTERM, "stopped at step 3")


def test_a_fault_of_the_system_says_what_to_do(in_process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from dualtail.runs import recipe_file

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/runs/a.json")

    monkeypatch.setattr(recipe_file, "read_recipe", full)
    code, _, stderr = in_process("run", "recipe.yaml", "--out", tmp_path)
    assert code == 2
    assert stderr.strip() == (
        "error: /runs/a.json: cannot be used (No space left on device); make room there, or choose a folder on "
        "another disk"
    )


def test_the_end_of_another_process_is_a_line(in_process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from dualtail.runs import recipe_file

    def lose(*_: object, **__: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")

    monkeypatch.setattr(recipe_file, "read_recipe", lose)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, stderr = in_process("run", "recipe.yaml", "--out", tmp_path)
    assert (code, stderr.strip()) == (
        2, "[process 1] error: another process of this run ended; start all of them again to go on",
    )  # fmt: skip
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError):
        in_process("run", "recipe.yaml", "--out", tmp_path)
