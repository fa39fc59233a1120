"""Defects planted in the package, each with the trials that must see it: tests of the judge."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faults import changes, damage, fuzz, kills
from faults.operations import Operation
from faults.shop import Shop, Verdict

Trial = Callable[[Shop, int], Verdict]


@dataclass(frozen=True)
class Plant:
    """A defect: what plants it, the trial and its seed, and the verdict that it must then have."""

    plant: Callable[[], None]
    trial: Trial
    seed: int
    seen_as: str


def _no_withdrawal() -> None:
    """The driver vouches for files while it overwrites them, and what they hold is not looked at."""
    from dualtail.runs.records import StageRecords

    def is_done(self: StageRecords, key: str, inputs: str, *_: object, **__: object) -> bool:
        return self.inputs_of(key) == inputs

    StageRecords.withdraw = lambda self, *_: None  # type: ignore[method-assign, assignment]
    StageRecords.is_done = is_done  # type: ignore[method-assign, assignment]


def _not_atomic() -> None:
    """Files are written in their final place."""
    from dualtail import files

    @contextlib.contextmanager
    def atomic_path(path: str | Path, *, flush: bool = False) -> Iterator[Path]:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)

    files.atomic_path = atomic_path  # type: ignore[assignment]


def _swallows() -> None:
    """The report takes a damaged file for one that is not there."""
    from dualtail.errors import DualtailError
    from dualtail.runs import finished
    from dualtail.runs.directory import RunDirectory

    plain = finished._if_there

    def if_there(run: RunDirectory, path: Path, parse: Callable[[object], object]) -> object:
        with contextlib.suppress(DualtailError):
            return plain(run, path, parse)
        return None

    finished._if_there = if_there  # type: ignore[assignment]


def _stale() -> None:
    """What was done once is up to date for ever."""
    from dualtail.runs.records import StageRecords

    StageRecords.is_done = lambda self, key, *_, **__: key in self.read()  # type: ignore[method-assign, assignment]


def _escapes() -> None:
    """An error of the operating system leaves the command line as it is."""
    from dualtail.cli import main

    plain = main.run

    def run() -> None:
        try:
            plain()
        except SystemExit as done:
            if done.code == 2:
                raise RuntimeError("planted") from None
            raise

    main.run = run


def _hangs() -> None:
    """A reader never ends."""
    from dualtail.data import images

    images.decode_image = lambda *_: time.sleep(3600)  # type: ignore[assignment]


def _forgets() -> None:
    """A run starts by deleting what an earlier one trained."""
    from dualtail.runs import directory

    plain = directory.sweep_temporaries

    def sweep(folder: str | Path) -> None:
        plain(folder)
        for path in Path(folder).rglob("trainable.safetensors"):
            path.unlink()

    directory.sweep_temporaries = sweep


_TRAINING_AND_BACK = kills.Scene("recipe", "update_training", "recipe", ("--update",))


def _records(operation: Operation) -> bool:
    return operation.kind == "write" and "stages.json" in operation.file


def _after_weights(operation: Operation) -> bool:
    return (
        operation.kind == "rename"
        and operation.file.startswith("members/a/")
        and operation.file.endswith("config.json")
    )


def _damage(name: str, shop: Shop, seed: int) -> Verdict:
    return damage.damage_file(shop, name, "emptied", seed)


def _image(shop: Shop, seed: int) -> Verdict:
    fuzz.SECONDS = 1
    return fuzz.fuzz_one(shop, "image", seed)


def _change(name: str, shop: Shop, _seed: int) -> Verdict:
    return changes.change(shop, changes.CASES.index(("recipe", name)))


_AT_RECORDS = partial(kills.kill_where_chosen, kills.SCENES[0], _records)

PLANTS: dict[str, Plant] = {
    "no withdrawal": Plant(
        _no_withdrawal,
        partial(kills.kill_where_chosen, _TRAINING_AND_BACK, _after_weights),
        0,
        "silently other",
    ),
    "not atomic": Plant(_not_atomic, _AT_RECORDS, 3, "lost"),
    "forgets": Plant(_forgets, _AT_RECORDS, 6, "lost"),
    "swallows": Plant(_swallows, partial(_damage, "adjusted/disagreement.json"), 0, "silently other"),
    "stale": Plant(_stale, partial(_change, "learning_rate"), 0, "silently other"),
    "escapes": Plant(_escapes, kills.full, 0, "traceback"),
    "hangs": Plant(_hangs, _image, 0, "hung"),
}
