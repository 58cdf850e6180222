"""YAML with the traps taken out: keys given twice are found, and every value knows its line.

Plain scalars follow the core schema of YAML 1.2 (yaml.org/spec/1.2.2, 10.3.2) instead of PyYAML's
1.1: `1e6` is a number, `no` and `2024-01-01` are strings, `0123` is 123, not octal. Underscores in
integers (`1_000_000`) stay allowed.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from mixcore.errors import ArgumentError


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's way to declare them)


for _tag, _pattern, _first in (
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _firsts = [c if c != "\0" else "" for c in _first]
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _firsts
    )


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same on libyaml's parser, which reads thousands of domains several times faster."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse(data: bytes, where: str) -> tuple[Any, dict[str, int], list[tuple[int, str]]]:
    """Parse one YAML document.

    Args:
        data: The file's content.
        where: The file's name, for messages.

    Returns:
        The value; the line of every path in it (`domains[2].weight` -> 7); and the keys that are
        given twice, as (line, message).

    Raises:
        ArgumentError: The document is no YAML; with line and column.
    """
    try:
        return _parse(_FastLoader, data)
    except (yaml.YAMLError, ValueError, RecursionError):
        pass  # PyYAML's own parser says better where the problem is
    try:
        return _parse(_Loader, data)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        context = f" {e.context}" if e.context else ""
        raise ArgumentError(f"{where} is not YAML: {at}{e.problem}{context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ArgumentError(f"{where} is not YAML: {' '.join(str(e).split())}") from None


def _parse(loader_class: Any, data: bytes) -> tuple[Any, dict[str, int], list[tuple[int, str]]]:
    loader = loader_class(data)
    node = loader.get_single_node()
    if node is None:
        return None, {}, []
    lines: dict[str, int] = {}
    twice = list(_walk(node, "", lines, set()))
    return loader.construct_document(node), lines, twice


def _walk(
    node: yaml.Node, path: str, lines: dict[str, int], seen: set[int]
) -> Iterator[tuple[int, str]]:
    """Note the line of every value below node; yield the keys given twice."""
    if id(node) in seen:  # an alias, perhaps of a node that holds it
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[f"{path}[{i}]"] = item.start_mark.line + 1
            yield from _walk(item, f"{path}[{i}]", lines, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            below = f"{path}.{name}" if path else name
            line = key.start_mark.line + 1
            if name in first and isinstance(key, yaml.ScalarNode):
                yield line, f"{below} is given twice, first in line {first[name]}"
            first.setdefault(name, line)
            lines.setdefault(below, line)
            yield from _walk(value, below, lines, seen)
