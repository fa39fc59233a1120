"""Settings as strict schemas: an unknown key is refused with the nearest known one, and nothing silently converted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dualtail.errors import nearest_name

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Base of every group of settings: no unknown keys, no coercion, no change after validation."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def describe_faults(
    section: type[Section], errors: Sequence[Any], moved: dict[str, str] | None = None
) -> list[str]:
    """Return a line for each faulty key; what the branches of a union expect is joined by "or".

    Args:
        section: what was validated.
        errors: pydantic's, as ``ValidationError.errors()`` gives them.
        moved: dotted keys that have another place now, to that place.

    Example:
        >>> class Cuts(Section):
        ...     many: PositiveInt = 100
        >>> from pydantic import ValidationError
        >>> try:
        ...     Cuts.model_validate({"mny": 3, "many": 0})
        ... except ValidationError as error:
        ...     describe_faults(Cuts, error.errors())
        ['unknown key mny; did you mean many?', 'many is 0; it should be greater than 0']
    """
    lines: list[str] = []
    expected: dict[str, tuple[Any, list[str]]] = {}
    for error in errors:
        # A branch of a union adds its own name to the location: "list[constrained-float]", "literal[...]".
        location = [str(part) for part in error["loc"]]
        key = ".".join(part for part in location if re.fullmatch(r"[A-Za-z_]\w*|\d+", part))
        if error["type"] == "extra_forbidden" and key in (moved or {}):
            lines.append(f"{key} is called {(moved or {})[key]} now; move it there")
        elif error["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}; {_known_key(section, location)}")
        elif error["type"] == "missing":
            lines.append(f"{key} is missing; add it")
        elif error["type"] == "value_error":
            what = str(error["msg"]).removeprefix("Value error, ")
            lines.append(f"{key}: {what}" if key else what)
        else:
            expected.setdefault(key, (error["input"], []))[1].append(_expectation(error))
    return lines + [
        f"{key} is {given!r}; it should be {' or '.join(what)}" for key, (given, what) in expected.items()
    ]


def _known_key(section: type[Section], location: Sequence[str]) -> str:
    """Return what to do about an unknown key: the nearest known one, or all of its section."""
    known = list(_section_at(section, location[:-1]).model_fields)
    close = nearest_name(location[-1], known)
    prefix = "".join(f"{part}." for part in location[:-1])
    return f"did you mean {prefix}{close}?" if close else f"known keys: {', '.join(known)}"


def _expectation(error: Any) -> str:
    """Return what one of pydantic's errors expects, as the end of "it should be ..."."""
    kind = error["type"]
    if kind in ("too_short", "too_long"):
        context = error["ctx"]
        limit = (
            f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        )
        return f"a list of {limit}"
    if kind == "model_type":
        return "a mapping of keys"
    if kind == "none_required":
        return "left out"
    message = str(error["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    if not kind.endswith("_type"):
        return message
    return f"{'an' if message[0] in 'aeiou' else 'a'} {message}"


def _section_at(section: Any, location: Sequence[str]) -> Any:
    """Return the section inside another one at a location."""
    for part in location:
        if not part.isdigit() and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation)
    return section


def _section_of(annotation: Any) -> Any:
    """Return the Section class inside an annotation such as ``Annotated[list[Member], ...]`` or ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inner = _section_of(argument)
        if inner is not None:
            return inner
    return None
