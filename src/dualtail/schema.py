"""Settings as strict schemas: an unknown key is refused with the nearest known one, and nothing silently converted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from dualtail.errors import nearest_name, shown

_MOST = 2**31 - 1  # what every library below takes as a whole number
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0, le=_MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
Size = Annotated[int, Field(gt=0, le=16_384)]
"""A side in pixels, or the width of a layer: what memory is taken for."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


_DEEPEST = 32


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
        f"{key} is {shown(given)}; it should be {' or '.join(dict.fromkeys(what))}"
        for key, (given, what) in expected.items()
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
    if kind in ("tuple_type", "list_type", "sequence_str") or error.get("ctx", {}).get("class") == "Sequence":
        return "a list"
    if kind in ("dict_type", "mapping_type"):
        return "a mapping"
    if kind == "string_unicode":
        return "text without halves of characters"
    if kind == "model_type":
        return "a mapping of keys"
    if kind == "none_required":
        return "left out"
    if kind == "bool_type":
        return "true or false"
    if kind == "string_type":
        return "text"
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


# Values of options, whose types are annotations of a signature.


def checked_values(types: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return values as their types have them, and a line for each that is not of its type.

    Numbers of numpy are numbers, a whole number may be a float, and a list may be a tuple; nothing else is converted.

    Args:
        types: annotations by name; a name without one takes any value.
        values: by name.

    Example:
        >>> checked_values({"rank": PositiveInt | None, "scale": tuple[float, float]}, {"rank": 0, "scale": [1, 2]})
        ({'scale': (1.0, 2.0)}, ['rank is 0; it should be greater than 0'])
        >>> checked_values({"bias": bool}, {"bias": "yes", "name": "a\\0b"})[1]
        ["bias is 'yes'; it should be true or false", "name is 'a\\\\x00b'; text holds no NUL"]
    """
    checked: dict[str, Any] = {}
    lines: list[str] = []
    for name, value in values.items():
        if faults := text_faults(value, name):
            lines += faults
            continue
        try:
            checked[name] = _adapter(types.get(name, Any)).validate_python(_plain_number(value))
        except ValidationError as error:
            errors = [
                {**one, "loc": (name, *(part for part in one["loc"] if isinstance(part, int)))}
                for one in error.errors()
            ]
            lines += describe_faults(Section, errors)
    return checked, lines


def text_faults(content: Any, key: str = "") -> list[str]:
    """Return a line for each text in nested content that no file, page or terminal can hold, and for content too deep.

    Example:
        >>> text_faults({"name": "x", "members": [{"weights": "a\\0b"}]})
        ["members.0.weights is 'a\\\\x00b'; text holds no NUL"]
    """
    return list(_text_faults(content, key, 0))


def _text_faults(content: Any, key: str, depth: int) -> Iterator[str]:
    inner: Any = ()
    if isinstance(content, str):
        if "\0" in content:
            yield f"{key} is {shown(content)}; text holds no NUL"
        elif any("\ud800" <= char <= "\udfff" for char in content):
            yield f"{key} is {shown(content)}; text must be Unicode (UTF-8)"
    elif isinstance(content, Mapping):
        inner = content.items()
    elif isinstance(content, (list, tuple)):
        inner = enumerate(content)
    if depth > _DEEPEST and inner:
        yield f"{key.partition('.')[0]} is nested more than {_DEEPEST} deep; nothing is"
        return
    for name, value in inner:
        if isinstance(name, str) and not name.isprintable():
            yield f"{key or 'a key'} has the key {shown(name)}; keys are printable"
            continue
        name = name if isinstance(name, str) else shown(name)
        yield from _text_faults(value, f"{key}.{name}" if key else name, depth + 1)


def _plain_number(value: Any) -> Any:
    """Return the number that a scalar of numpy or torch is; anything else as it is."""
    if isinstance(value, Decimal):
        return str(value)  # which pydantic would take for a number, and no library does
    try:
        return value.item() if getattr(value, "shape", None) == () else value
    except Exception:  # an array of another library, or without data
        return value


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return what validates a value; where pydantic can make nothing of the annotation, any value is valid."""
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(_taking_lists(annotation), config=config)
    except (PydanticUserError, TypeError, NameError):
        return TypeAdapter(Any)


def _taking_lists(annotation: Any) -> Any:
    """Return an annotation whose tuples take a list too, as YAML has no tuples."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is tuple or origin is tuple:
        return Annotated[
            annotation, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
        ]
    if origin is Annotated:
        return Annotated.__class_getitem__((_taking_lists(arguments[0]), *arguments[1:]))
    if origin in (Union, UnionType):
        return Union[tuple(map(_taking_lists, arguments))]  # noqa: UP007
    return annotation
