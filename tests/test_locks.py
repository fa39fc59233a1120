from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import time
from pathlib import Path

import pytest

from dualtail.errors import RunError
from dualtail.locks import Lock, only_one
from dualtail.runs.directory import RunDirectory
from dualtail.runs.recipe_file import parse_recipe

FORK = multiprocessing.get_context("fork")
RECIPE = parse_recipe({"name": "x", "data": {"root": "/d"}, "members": [{"backbone": "timm:a"}]})


def test_a_lock_is_of_one_and_names_its_holder(tmp_path: Path):
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    assert second.holder().startswith(f"process {os.getpid()} on {platform.node()} since 20")
    first.release()
    assert second.acquire()
    second.release(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        Lock(tmp_path / "lock").acquire()
    assert precious.read_text() == "mine"


def test_who_waited_for_a_removed_lock_holds_the_new_one(tmp_path: Path):
    """Else a third one would make a file of its own and be inside as well."""
    inside, most, done = FORK.Value("i", 0), FORK.Value("i", 0), FORK.Value("i", 0)

    def work() -> None:
        for _ in range(20):
            with only_one(tmp_path / "lock"):
                with inside.get_lock():
                    inside.value += 1
                    most.value = max(most.value, inside.value)
                time.sleep(0.001)
                with inside.get_lock():
                    inside.value -= 1
                    done.value += 1

    processes = [FORK.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert (most.value, done.value) == (1, 80)
    assert list(tmp_path.iterdir()) == []


def test_workers_that_outlive_a_killed_run_do_not_hold_its_directory(tmp_path: Path):
    ready = FORK.Queue()

    def orphan() -> None:
        ready.put(os.getpid())
        time.sleep(60)

    def run() -> None:
        RunDirectory.open(tmp_path, RECIPE)
        worker = FORK.Process(target=orphan)
        worker.start()
        worker.join()

    process = FORK.Process(target=run)
    process.start()
    worker = ready.get(timeout=30)
    try:
        with pytest.raises(
            RunError, match=rf"in use by another run \(process {process.pid} on .* since 20.* UTC\)"
        ):
            RunDirectory.open(tmp_path, RECIPE)
        process.kill()
        process.join()
        os.kill(worker, 0)  # still alive
        RunDirectory.open(tmp_path, RECIPE).close()
    finally:
        os.kill(worker, signal.SIGKILL)
