"""What the driver does for every stage: skip, withdraw, record, forget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dualtail.data.manifest import Manifest
from dualtail.files import write_json
from dualtail.process_group import ProcessGroup
from dualtail.runs.context import RunContext
from dualtail.runs.directory import RunDirectory
from dualtail.runs.driver import run_stage
from dualtail.runs.observer import Observer
from dualtail.runs.recipe_file import parse_recipe
from dualtail.runs.stages import STAGES, Stage
from dualtail.runs.stages.base import ONCE


class Heard(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, title: str) -> None:
        self.lines.append(title)

    def skipped(self, title: str) -> None:
        self.lines.append(f"({title})")


class Squares(Stage):
    """Writes a file for each unit; what it depends on is set from outside."""

    name, title = "squares", "squaring"
    asked: Sequence[str] = ("a", "b", "c")
    seen = "1"
    extra = False

    def units(self) -> Sequence[str]:
        return self.asked

    def inputs(self, unit: str) -> str:
        return f"{unit}{self.seen}"

    def outputs(self, unit: str) -> Sequence[Path]:
        return [self.context.run.root / "squares" / f"{unit}.json"]

    def compute(self, units: Sequence[str]) -> list[str]:
        return list(units)

    def write(self, unit: str, computed: Any) -> Sequence[Path]:
        paths = list(self.outputs(unit))
        if self.extra:
            paths.append(self.context.run.root / "squares" / f"{unit}.more.json")
        for path in paths:
            write_json(path, computed)
        return paths

    def scratch(self, unit: str) -> Sequence[Path]:
        return [self.context.run.root / "work" / unit]

    def leftovers(self, unit: str) -> Sequence[Path]:
        return [self.context.run.root / "scratch" / unit]


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    recipe = parse_recipe({"name": "x", "data": {"root": "."}, "members": [{"backbone": "timm:a"}]})
    manifest = Manifest(tmp_path, ("x", "y"), np.array([0, 1]), np.array(["train", "test"]), ("cat", "dog"))
    run = RunDirectory(tmp_path, recipe)
    return RunContext(run, manifest, ProcessGroup(), Heard(), torch.device("cpu"))


def make(context: RunContext, **changes: object) -> list[str]:
    """Run the stage with some of its attributes changed; return what was heard."""
    stage = Squares(context)
    for name, value in changes.items():
        setattr(stage, name, value)
    assert isinstance(context.observer, Heard)
    context.observer.lines = []
    run_stage(stage, context)
    return context.observer.lines


def files(context: RunContext) -> list[str]:
    return sorted(path.name for path in (context.run.root / "squares").glob("*"))


def test_units_are_done_one_by_one_or_in_one_pass(context: RunContext):
    assert make(context) == ["squaring: a", "squaring: b", "squaring: c"]
    assert make(context) == ["(squaring: a)", "(squaring: b)", "(squaring: c)"]
    assert make(context, together=True, seen="2", manner=" at once") == ["squaring at once: a, b, c"]
    assert make(context, asked=ONCE) == ["squaring"]
    assert list(context.run.records.read()) == ["squares"]


def test_only_what_is_due_is_done(context: RunContext):
    make(context)
    (context.run.root / "squares" / "b.json").unlink()
    assert make(context, together=True) == ["(squaring: a)", "(squaring: c)", "squaring: b"]


def test_a_shared_pass_is_shared_out_so_that_the_sum_is_its_time(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
):
    now = iter(range(0, 10_000, 3))
    monkeypatch.setattr("dualtail.runs.driver.time.monotonic", lambda: float(next(now)))
    make(context, together=True)
    records = context.run.records.read().values()
    # 3 for the pass, 1 each; and 3 for each one's own writing
    assert [(record.seconds, record.units) for record in records] == [(4.0, 3)] * 3


def test_what_the_recipe_no_longer_has_is_forgotten_with_its_leftovers(context: RunContext):
    make(context)
    write_json(context.run.root / "scratch" / "b" / "state", {})
    assert make(context, asked=("a", "c")) == ["(squaring: a)", "(squaring: c)"]
    assert files(context) == ["a.json", "c.json"]
    assert not (context.run.root / "scratch" / "b").exists()
    assert make(context, asked=()) == []
    assert not (context.run.root / "squares").exists()
    assert context.run.records.read() == {}


def test_files_that_a_unit_no_longer_has_are_deleted(context: RunContext):
    make(context, extra=True)
    assert len(files(context)) == 6
    make(context, seen="2")
    assert files(context) == ["a.json", "b.json", "c.json"]


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def stopped(context: RunContext, monkeypatch: pytest.MonkeyPatch, where: str) -> list[str]:
    """Stop an update in a method of the stage; return what still vouches for its files."""
    make(context)
    with monkeypatch.context() as patch:
        patch.setattr(Squares, where, stop)
        with pytest.raises(KeyboardInterrupt):
            make(context, seen="2")
    return list(context.run.records.read())


def test_nothing_vouches_for_files_that_may_be_half_new(context: RunContext, monkeypatch: pytest.MonkeyPatch):
    assert stopped(context, monkeypatch, "write") == ["squares/b", "squares/c"]  # which were not begun
    assert make(context) == ["(squaring: b)", "(squaring: c)", "squaring: a"]
    assert files(context) == ["a.json", "b.json", "c.json"]


def test_what_was_computed_before_stands_until_it_is_overwritten(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
):
    assert stopped(context, monkeypatch, "compute") == ["squares/a", "squares/b", "squares/c"]
    assert make(context) == ["(squaring: a)", "(squaring: b)", "(squaring: c)"]


def test_scratch_is_there_until_the_unit_is_recorded(context: RunContext, monkeypatch: pytest.MonkeyPatch):
    for unit in "abc":
        write_json(context.run.root / "work" / unit / "state", {})
    with monkeypatch.context() as patch:
        patch.setattr(type(context.run.records), "add", stop)
        with pytest.raises(KeyboardInterrupt):
            make(context)
    assert (context.run.root / "work" / "a" / "state").is_file()
    make(context)
    assert not any((context.run.root / "work").iterdir())


def test_a_unit_that_another_dualtail_wrote_with_fewer_files_is_done_again(context: RunContext):
    make(context, asked=("a",))
    path = context.run.root / "squares" / "a.json"
    new = context.run.root / "squares" / "new.json"
    stage = Squares(context)
    stage.outputs = lambda unit: [path, new]  # type: ignore[method-assign]
    stage.asked = ("a",)
    run_stage(stage, context)
    assert files(context) == ["a.json", "new.json"]


def test_stages_have_names_of_their_own_and_say_what_they_are():
    assert [stage.name for stage in STAGES] == [
        "zero_shot", "prior", "finetune", "logits", "adjust", "evaluate", "attribution",
    ]  # fmt: skip
    assert all(stage.title and stage.__doc__ for stage in STAGES)


def test_nobody_overwrites_what_a_record_still_vouches_for(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
):
    """All processes meet between the record's withdrawal and the work, which others than the first one may begin."""
    done: list[str] = []
    stage = Squares(context)
    for owner, name in (
        (type(context.run.records), "withdraw"),
        (ProcessGroup, "wait"),
        (Squares, "compute"),
    ):
        real = getattr(owner, name)

        def told(*given: Any, real: Any = real, name: str = name) -> Any:
            done.append(name)
            return real(*given)

        monkeypatch.setattr(owner, name, told)
    run_stage(stage, context)
    first = done.index("withdraw")
    assert done[first : first + 3] == ["withdraw", "wait", "compute"]


def test_a_file_that_is_not_as_it_was_written_is_named_and_its_unit_done_again(context: RunContext):
    make(context)
    path = context.run.root / "squares" / "b.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"b", b"c"))  # of the same size
    notes: list[str] = []
    context.observer.note = notes.append  # type: ignore[method-assign]
    assert make(context) == ["(squaring: a)", "(squaring: c)", "squaring: b"]
    assert notes == ["squares/b.json does not hold what was written: squaring: b is done again"]
    assert path.read_bytes() == content


def test_what_was_made_from_a_unit_is_made_again_where_that_was_repaired(context: RunContext):
    make(context)
    after = Squares(context)
    after.asked = ("after",)
    key = "other/after"
    written = after.outputs("after")
    write_json(written[0], {})
    records = context.run.records
    records.add(key, "f", written, 1.0, sources=["squares/a"])
    assert records.is_done(key, "f", written)
    make(
        context, asked=("a",), seen="2"
    )  # other inputs: then the fingerprint of what was made from it decides
    assert records.is_done(key, "f", written)
    make(context, asked=("a",), extra=True, seen="1")  # made again from the same inputs, with another content
    assert not records.is_done(key, "f", written)
    records.withdraw(["squares/a"])
    assert not records.is_done(key, "f", written)
