"""YAML of plain values, in bounds: what a recipe or world file of a stranger can ask of the reader is little.

Beside plain YAML it is without two traps: ``1e-3`` is a number, and a key given twice is an error.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_DEPTH = 40
MAX_CHARACTERS = 4_000_000
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")
)


class YamlFault(ValueError):
    """What is wrong with a YAML text.

    Attributes:
        what: in one line.
        line: where, from 1, or None.
    """

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.line = what, line


class _Loader(yaml.SafeLoader):
    """Refuses anchors, depth and every tag that is no plain value, before anything is built of them."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise self._fault("anchors and aliases are not read; write it out", event)
        if self.depth >= MAX_DEPTH:
            raise self._fault(f"it is nested more than {MAX_DEPTH} deep", event)
        self.depth += 1
        try:
            node = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        if node is not None and node.tag not in _TAGS:
            raise self._fault(f"the tag {node.tag} is not read; write plain values", event)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise self._fault(f"key {key!r} is no text", key_node)
            if key in seen:
                raise self._fault(f"key {key!r} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    @staticmethod
    def _fault(what: str, at: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=what, problem_mark=at.start_mark)


# Dates and merges are text: no recipe has any use for them.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


class _Dumper(yaml.SafeDumper):
    """Writes what is there twice twice, since anchors are not read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    Raises:
        YamlFault: it is no YAML, or asks for more than plain values.

    Example:
        >>> parse_yaml("a: [1, 1e-3, yes, 2024-01-01]")
        {'a': [1, 0.001, True, '2024-01-01']}
        >>> parse_yaml("a: &x [1]")
        Traceback (most recent call last):
        dualtail.plain_yaml.YamlFault: anchors and aliases are not read; write it out
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlFault(f"it has more than {MAX_CHARACTERS:,} characters")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader: builds plain values only)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = str(getattr(error, "problem", None) or error)
        raise YamlFault(" ".join(what.split()), mark.line + 1 if mark else None) from None
    # PyYAML's constructors let pass what int(), float() and others raise about odd scalars.
    except Exception as error:
        raise YamlFault(" ".join(f"{type(error).__name__}: {error}".split())) from None


def dump_yaml(content: Any) -> str:
    """Return plain values as YAML, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
