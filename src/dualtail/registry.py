"""Things of one kind by name (losses, tuners, heads, readers, ...): what options each takes, and their faults.

Packages outside add to a registry by an entry point of its group, or at run time by :meth:`Registry.add`; the page
"Extend dualtail" shows how. An entry point is loaded when its name is looked up, never because a file lists it.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from types import FunctionType, SimpleNamespace
from typing import Any, TypeVar, get_type_hints

from dualtail.errors import DualtailError, InputError, nearest_fix, shown

T = TypeVar("T")
REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Registry(Mapping[str, T]):
    """Things of one kind by name, in the order of their registration; entry points come last.

    Args:
        kind: what they are, in messages, such as "loss".
        things: those of dualtail itself. Their names stay theirs.
        group: of the entry points by which packages add more, such as "dualtail.losses"; None for none.
        given: parameters that whoever builds a thing supplies; all others are the thing's options.
        common: options that every thing has beside its own, with their types; whoever builds it takes care of them.
        base: the class that every thing added from outside must derive from; None where any callable will do.
        error: what is raised about a name or option.

    Example:
        >>> def soft(counts, tau=1.0): ...
        >>> losses = Registry("loss", {"soft": soft}, given=("counts",))
        >>> losses["soft"] is soft, losses.options("soft")
        (True, {'tau': 1.0})
        >>> losses.check_options("soft", {"tua": 2.0})
        Traceback (most recent call last):
        dualtail.errors.InputError: the loss 'soft' has no option 'tua'; did you mean 'tau'?
    """

    def __init__(
        self,
        kind: str,
        things: Mapping[str, T],
        *,
        group: str | None = None,
        given: Collection[str] = (),
        common: Mapping[str, Any] | None = None,
        base: type | None = None,
        error: type[DualtailError] = InputError,
    ) -> None:
        self.kind, self.group, self.given, self.base, self.error = kind, group, frozenset(given), base, error
        self.common = dict(common or {})
        self._things = dict(things)

    @cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        points = metadata.entry_points(group=self.group) if self.group else ()
        return {point.name: point for point in points}

    def add(self, name: str, thing: T) -> T:
        """Register a thing of one's own under a name that is free; return it.

        Raises:
            InputError: the name is taken, or the thing is not of this kind.
        """
        if name in self._things:
            raise InputError(
                f"there is a {self.kind} {name!r} already", where=str(thing), fix="choose another name"
            )
        self._check_thing(name, thing, str(thing))
        self._things[name] = thing
        return thing

    @contextmanager
    def added(self, name: str, thing: T) -> Iterator[T]:
        """Register a thing of one's own for a block, as tests want it; one that is registered already stays.

        Example:
            >>> losses = Registry("loss", {})
            >>> with losses.added("soft", abs):
            ...     list(losses)
            ['soft']
            >>> list(losses)
            []
        """
        if name in self and self[name] is thing:
            yield thing
            return
        self.add(name, thing)
        try:
            yield thing
        finally:
            del self._things[name]

    def find(self, name: object, where: str | None = None) -> T:
        """Return the thing called ``name``.

        Args:
            name: as the user gave it.
            where: the recipe key or argument it was found in.

        Raises:
            DualtailError: there is none, with the nearest name; or its package cannot be loaded.
        """
        if not isinstance(name, str) or name not in self:
            raise self.error(f"unknown {self.kind} {shown(name)}", where=where, fix=nearest_fix(name, self))
        return self[name]

    def options(self, name: str) -> dict[str, Any]:
        """Return the options of a thing with their defaults, :data:`REQUIRED` where there is none."""
        return {parameter.name: parameter.default for parameter in self._parameters(self.find(name))}

    def option_faults(
        self, name: str, options: Mapping[str, Any], where: str | None = None
    ) -> list[DualtailError]:
        """Return an error for each option that a thing does not take, needs and does not get, or that has a wrong type.

        Types are those that the thing's signature is annotated with, pydantic's constraints included
        (``Annotated[int, Field(ge=1)]``). An option without an annotation takes any value, and a default is right.

        Args:
            name: of the thing.
            options: by name.
            where: the recipe key or argument they were found in.

        Raises:
            DualtailError: an unknown name.
        """
        return self._checked(name, options, where)[1]

    def check_options(
        self, name: str, options: Mapping[str, Any], where: str | None = None
    ) -> dict[str, Any]:
        """Return options as the thing's annotations have them (a list as a tuple); raise the first of their faults."""
        checked, faults = self._checked(name, options, where)
        for fault in faults:
            raise fault
        return checked

    def _checked(
        self, name: str, options: Mapping[str, Any], where: str | None
    ) -> tuple[dict[str, Any], list[DualtailError]]:
        from dualtail.schema import checked_values  # pydantic, which nothing needs before there are options

        thing = self.find(name, where=where)
        known, own = self.options(name), f"the {self.kind} {name!r}"
        takes = f"it takes {', '.join(known) or 'none'}"
        faults = [
            self.error(
                f"{own} has no option {shown(option)}", where=where, fix=nearest_fix(option, known, takes)
            )
            for option in options
            if option not in known and option not in self.common
        ]
        faults += [
            self.error(f"{own} needs the option {option!r}", where=where)
            for option, default in known.items()
            if default is REQUIRED and option not in options
        ]
        types = {p.name: _type_of(p, _globals_of(thing)) for p in self._parameters(thing)} | self.common
        given = {option: value for option, value in options.items() if option in types}
        default = {option: value for option, value in given.items() if value is known.get(option, REQUIRED)}
        checked, lines = checked_values(types, {k: v for k, v in given.items() if k not in default})
        faults += [self.error(line, where=where or own) for line in lines]
        return default | checked, faults

    def __getitem__(self, name: str) -> T:
        if name not in self._things and name in self._entry_points:
            self._things[name] = self._load(self._entry_points[name])
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        return iter([*self._things, *(name for name in self._entry_points if name not in self._things)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _load(self, point: metadata.EntryPoint) -> T:
        where = f"entry point {point.group}: {point.name} = {point.value}"
        try:
            thing = point.load()
        except Exception as error:  # whatever a package outside does when it is imported
            reason = f"{type(error).__name__}: {error}"
            raise self.error(
                f"the {self.kind} {point.name!r} cannot be loaded ({reason})",
                where=where,
                fix="mend or uninstall the package that it comes from",
            ) from error
        self._check_thing(point.name, thing, where)
        return thing

    def _check_thing(self, name: str, thing: object, where: str) -> None:
        if self.base is not None and not (isinstance(thing, type) and issubclass(thing, self.base)):
            raise InputError(
                f"the {self.kind} {name!r} is no {self.base.__name__}",
                where=where,
                fix=f"derive it from {self.base.__module__}.{self.base.__name__}",
            )
        if not callable(thing):
            raise InputError(f"the {self.kind} {name!r} cannot be called", where=where)
        own = getattr(thing, "name", name)
        if isinstance(own, str) and own != name:
            raise InputError(
                f"the {self.kind} {name!r} calls itself {own!r}", where=where, fix="use one name for it"
            )

    def _parameters(self, thing: Any) -> list[inspect.Parameter]:
        """Return the parameters that are options."""
        if not callable(thing):
            raise TypeError(
                f"{thing!r} takes no options"
            )  # a defect of ours: things of this registry are data
        parameters = inspect.signature(thing).parameters.values()
        return [p for p in parameters if p.kind in _NAMED and p.name not in self.given]


def _globals_of(thing: Any) -> dict[str, Any]:
    """Return where the annotations of a thing's signature have their names from."""
    function: Any = thing.__init__ if isinstance(thing, type) else getattr(thing, "func", thing)  # type: ignore[misc]
    if not isinstance(function, FunctionType):
        function = type(function).__call__
    return getattr(inspect.unwrap(function), "__globals__", {})


def _type_of(parameter: inspect.Parameter, names: dict[str, Any]) -> Any:
    """Return a parameter's annotation, ``Any`` where it has none or one that names what is not there."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    owner = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return get_type_hints(owner, globalns=names, include_extras=True)["it"]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any
