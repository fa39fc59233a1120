"""What the JSON files of a run are read into, checked against the types of the classes that wrote them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dualtail.files import read_json, reading
from dualtail.logits.groups import GROUP_NAMES
from dualtail.logits.metrics import Evaluation

T = TypeVar("T")
_CONFIG = ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)


def read_stored(path: Path, parse: Callable[[Any], T]) -> T:
    """Return what a JSON file tells of.

    Raises:
        RunError: it is missing, or damaged: broken JSON, a key that is missing, a value of another type.
    """
    content = read_json(path)
    with reading(path):
        parsed = parse(content)
        check_stored(parsed)
        return parsed


def check_stored(value: Any) -> None:
    """Refuse a dataclass, or one in it, with a field that has not its type, or with groups that are not the three.

    Raises:
        ValueError: saying which.

    Example:
        >>> from dualtail.logits.metrics import GroupAccuracy
        >>> check_stored([GroupAccuracy("high", 3, 0, 9, None)])
        Traceback (most recent call last):
        ValueError: accuracy is 'high'
    """
    if is_dataclass(value) and not isinstance(value, type):
        for name, adapter in _adapters(type(value)).items():
            content = getattr(value, name)
            try:
                adapter.validate_python(content)
            except ValidationError:
                raise ValueError(f"{name} is {str(content)[:40]!r}") from None
            check_stored(content)
        if isinstance(value, Evaluation):
            _check_groups(value)
    elif isinstance(value, Mapping):
        for entry in value.values():
            check_stored(entry)
    elif isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, float, str)):
        for entry in value:
            check_stored(entry)


@lru_cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind)
    plain = [entry.name for entry in fields(kind) if not is_dataclass(hints[entry.name])]
    return {name: TypeAdapter(hints[name], config=_CONFIG) for name in plain}


def _check_groups(evaluation: Evaluation) -> None:
    tables = [evaluation.d_groups, evaluation.p_groups, evaluation.cross, *(evaluation.cross or {}).values()]
    for table in tables:
        if table is not None and set(table) != set(GROUP_NAMES):
            raise ValueError(f"its groups are {', '.join(map(str, table)) or 'none'}")
