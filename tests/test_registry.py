from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import Field

from dualtail.errors import DataError, InputError, check_choice, nearest_fix
from dualtail.registry import REQUIRED, Registry


class Thing:
    name = "plain"

    def __init__(self, site: object, *, width: int, scale: float = 1.0) -> None: ...


class Mine(Thing):
    name = "mine"


class Stranger: ...


def things(**options: object) -> Registry[type[Thing]]:
    return Registry("thing", {"plain": Thing}, given=("site",), base=Thing, **options)  # type: ignore[arg-type]


def test_what_is_given_is_no_option():
    assert things().options("plain") == {"width": REQUIRED, "scale": 1.0}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"wdth": 1}, "here: the thing 'plain' has no option 'wdth'; did you mean 'width'?"),
        ({"q": 1}, "here: the thing 'plain' has no option 'q'; it takes width, scale"),
        ({"site": 1}, "here: the thing 'plain' has no option 'site'; it takes width, scale"),
        ({}, "here: the thing 'plain' needs the option 'width'"),
    ],
)
def test_faults_of_options_are_one_line(options: dict, line: str):
    with pytest.raises(InputError) as error:
        things().check_options("plain", options, where="here")
    assert str(error.value) == line


def test_all_faults_of_options_are_told_at_once():
    faults = things().option_faults("plain", {"wdth": 1, "q": 2})
    assert [str(fault).partition(";")[0] for fault in faults] == [
        "the thing 'plain' has no option 'wdth'",
        "the thing 'plain' has no option 'q'",
        "the thing 'plain' needs the option 'width'",
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("plan", "unknown thing 'plan'; did you mean 'plain'?"),
        ("zzz", "unknown thing 'zzz'; choose from plain"),
        (3, "unknown thing 3; choose from plain"),
        (["plain"], "unknown thing ['plain']; did you mean 'plain'?"),
    ],
)
def test_an_unknown_name_names_the_nearest(name: object, line: str):
    with pytest.raises(DataError) as error:
        things(error=DataError).find(name)
    assert str(error.value) == line


def test_add_takes_a_thing_of_ones_own_and_refuses_what_is_none():
    registry = things()
    assert registry.add("mine", Mine) is Mine
    assert list(registry) == ["plain", "mine"]
    with pytest.raises(InputError, match="there is a thing 'mine' already"):
        registry.add("mine", Mine)
    with pytest.raises(InputError, match="the thing 'other' is no Thing"):
        registry.add("other", Stranger)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the thing 'other' calls itself 'mine'"):
        registry.add("other", Mine)
    assert list(registry) == ["plain", "mine"]


def test_added_for_a_block_alone():
    registry = things()
    with registry.added("mine", Mine) as mine:
        assert registry.find("mine") is mine is Mine
    with pytest.raises(ZeroDivisionError), registry.added("mine", Mine):
        1 / 0  # noqa: B018
    assert list(registry) == ["plain"]
    with registry.added("plain", Thing):
        pass
    assert list(registry) == ["plain"]
    with pytest.raises(InputError, match="there is a thing 'plain' already"), registry.added("plain", Mine):
        pass


def points(monkeypatch: pytest.MonkeyPatch, **named: str) -> None:
    group = [metadata.EntryPoint(name, value, "dualtail.things") for name, value in named.items()]
    monkeypatch.setattr(metadata, "entry_points", lambda group: given if group == "dualtail.things" else [])
    given = group


def test_an_entry_point_is_loaded_when_it_is_looked_up(monkeypatch: pytest.MonkeyPatch):
    points(monkeypatch, counter="collections:Counter", plain="no.such:Thing", broken="no.such.module:Thing")
    registry: Registry[type] = Registry("thing", {"plain": Thing}, group="dualtail.things")
    assert list(registry) == ["plain", "counter", "broken"]
    assert registry["plain"] is Thing  # dualtail's names stay its own
    assert registry.find("counter").__name__ == "Counter"
    assert "did you mean 'counter'?" in nearest_fix("countr", registry)
    with pytest.raises(InputError) as error:
        registry.find("broken")
    assert str(error.value) == (
        "entry point dualtail.things: broken = no.such.module:Thing: the thing 'broken' cannot be loaded "
        "(ModuleNotFoundError: No module named 'no'); mend or uninstall the package that it comes from"
    )


def test_an_entry_point_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch):
    points(monkeypatch, counter="collections:Counter")
    registry: Registry[type] = Registry("thing", {"plain": Thing}, group="dualtail.things", base=Thing)
    with pytest.raises(InputError, match="the thing 'counter' is no Thing; derive it from"):
        registry.find("counter")


def test_a_choice_says_where_it_was_made():
    with pytest.raises(DataError, match=r"^key: unknown kind 'b'; choose from a$"):
        check_choice("kind", "b", ["a"], where="key", error=DataError)
    assert check_choice("kind", "a", ["a"]) is None


def annotated(  # as a plug-in may write it
    counts: Any,
    rank: Annotated[int, Field(ge=1, le=64)] | None = None,
    scale: tuple[float, float] = (0.1, 1.0),
    targets: Sequence[str] = ("q",),
    width: int = None,  # type: ignore[assignment]  # noqa: RUF013
    free=None,
    foreign: NotThere = 3,  # type: ignore[name-defined]  # noqa: F821
) -> None: ...


class Called:
    def __call__(self, *, rank: int = 3) -> None: ...


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"rank": "four"}, "rank is 'four'; it should be an integer"),
        ({"rank": True}, "rank is True; it should be an integer"),
        ({"rank": 4.0}, "rank is 4.0; it should be an integer"),
        ({"rank": 65}, "rank is 65; it should be less than or equal to 64"),
        ({"scale": 3}, "scale is 3; it should be a list"),
        ({"scale": [0.5, "x"]}, "scale.1 is 'x'; it should be a number"),
        ({"scale": [0.5, float("nan")]}, "scale.1 is nan; it should be a finite number"),
        ({"targets": "q"}, "targets is 'q'; it should be a list"),
        ({"targets": ["q", 1]}, "targets.1 is 1; it should be text"),
        ({"targets": ["a\0b"]}, r"targets.0 is 'a\x00b'; text holds no NUL"),
        ({"free": ["\udcff"]}, r"free.0 is '\udcff'; text must be Unicode (UTF-8)"),
        ({"width": "x"}, "width is 'x'; it should be an integer"),
    ],
)
def test_values_are_checked_against_the_signature(options: dict, line: str):
    registry = Registry("thing", {"it": annotated}, given=("counts",))
    with pytest.raises(InputError) as error:
        registry.check_options("it", options, where="here")
    assert str(error.value) == f"here: {line}"


def test_what_fits_the_signature_comes_back_as_it_says():
    registry = Registry("thing", {"it": annotated}, given=("counts",))
    given = {"rank": np.int64(3), "scale": [1, 0.5], "targets": ["q", "v"], "width": None, "free": {1: len}}
    taken = registry.check_options("it", {**given, "foreign": "anything"})
    assert taken == {**given, "rank": 3, "scale": (1.0, 0.5), "foreign": "anything"}
    assert type(taken["rank"]) is int


@pytest.mark.parametrize("thing", [Called(), Called().__call__, Thing], ids=["object", "method", "class"])
def test_every_kind_of_thing_has_types(thing: Callable[..., Any]):
    registry = Registry("thing", {"it": thing}, given=("site",))
    option = next(iter(registry.options("it")))
    with pytest.raises(InputError, match=f"the thing 'it': {option} is 'x'; it should be an integer"):
        registry.check_options("it", {option: "x"})
