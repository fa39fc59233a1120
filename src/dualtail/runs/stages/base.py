"""What every stage of a run is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from dualtail.files import fingerprint
from dualtail.runs.context import RunContext

MODEL_PACKAGES = ("dualtail", "torch", "open_clip_torch", "timm")
"""Whose versions the results of a stage depend on that sends images through models."""
ONCE = ("",)
"""The units of a stage that has none: it is done once."""


class Stage(ABC):
    """One step of a run: for each of its units, what it depends on, the work, and the files that it writes.

    A stage says nothing of when it is skipped, timed, recorded or forgotten: :mod:`dualtail.runs.driver` does that for
    all of them.

    Args:
        context: the run.

    Attributes:
        name: its key in ``stages.json``.
        title: how it is announced.
        version: the number of its meaning: raised where the same inputs give other results, it redoes the stage and
            what depends on it.
        packages: whose versions its results depend on.
        together: whether all units that are due are computed in one pass, otherwise one after the other.
        manner: what its title adds about how they are computed.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ("dualtail", "torch")
    together: bool = False
    manner: str = ""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    @abstractmethod
    def units(self) -> Sequence[str]:
        """Return the units that the recipe has now: names of members or backbones, :data:`ONCE`, or nothing."""

    @abstractmethod
    def inputs(self, unit: str) -> str:
        """Return the fingerprint of everything that a unit's files depend on, by :meth:`stamp`."""

    @abstractmethod
    def outputs(self, unit: str) -> Sequence[Path]:
        """Return the files that a unit always has; :meth:`write` may add some."""

    def compute(self, units: Sequence[str]) -> Any:
        """Do the work that all processes share; return what :meth:`write` needs. Nothing, by default.

        It leaves the units' files alone: until :meth:`write` they stand as they were.
        """
        return None

    @abstractmethod
    def write(self, unit: str, computed: Any) -> Sequence[Path]:
        """Write a unit's files, on the leading process alone; return them."""

    def sources(self, unit: str) -> Sequence[str]:
        """Return the keys of the units whose files a unit is made from; repaired to other files, they redo it."""
        return ()

    def seconds(self, unit: str) -> float | None:
        """Return what a unit took where that is known better than by the time since the pass began."""
        return None

    def scratch(self, unit: str) -> Sequence[Path]:
        """Return folders that are needed until the unit is complete, and no longer."""
        return ()

    def leftovers(self, unit: str) -> Sequence[Path]:
        """Return folders beside its files that go with a unit which the recipe has no longer."""
        return ()

    @classmethod
    def stamp(cls, *parts: Any) -> str:
        """Return the fingerprint of what a unit depends on, under the stage's version.

        Example:
            >>> class Sum(Stage):
            ...     name = "sum"
            >>> first = Sum.stamp(1, 2)
            >>> Sum.version = 2
            >>> Sum.stamp(1, 2) == first
            False
        """
        return fingerprint(*parts) if cls.version == 1 else fingerprint(*parts, {"version": cls.version})

    @classmethod
    def key(cls, unit: str) -> str:
        """Return a unit's key in ``stages.json``.

        Example:
            >>> class Sum(Stage):
            ...     name = "sum"
            >>> Sum.key("clip"), Sum.key("")
            ('sum/clip', 'sum')
        """
        return f"{cls.name}/{unit}" if unit else cls.name
