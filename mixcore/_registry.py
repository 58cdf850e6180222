"""What the registries of methods and of fits share: options are keyword-only arguments, checked."""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from mixcore.errors import ArgumentError

T = TypeVar("T")


def class_of(kind: str, name: object, registered: Mapping[str, str | type[T]]) -> type[T]:
    """The class of a name; its module, which registers it, is imported if it has not been.

    Raises:
        ArgumentError: Nothing has that name.
    """
    entry = registered.get(name) if isinstance(name, str) else None
    if entry is None:
        raise unknown_name(kind, name, registered)
    if isinstance(entry, str):
        importlib.import_module(entry)  # its @register puts the class in the dict
        entry = registered[str(name)]
    assert not isinstance(entry, str), f"{entry} does not register {name!r}"
    return entry


def check_new(kind: str, name: str, cls: type, registered: Mapping[str, object]) -> None:
    """Refuse a class whose name another one has."""
    there = registered.get(name)
    if there is not None and there not in (cls, cls.__module__):
        raise ArgumentError(f"a {kind} named {name!r} exists already: {there}")


def described(cls: type) -> dict[str, Any]:
    """What every list says of a class: options with and without a default, docstring."""
    known = options_of(cls)
    return {
        "required": tuple(o for o, default in known.items() if default is ...),
        "options": {o: default for o, default in known.items() if default is not ...},
        "doc": inspect.getdoc(cls) or "",
    }


def options_of(cls: type) -> dict[str, Any]:
    """Keyword-only arguments of the constructor and their defaults; ... where there is none."""
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return {
        p.name: ... if p.default is p.empty else p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY
    }


def check_options(kind: str, name: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse options that are not known, and the lack of those without a default."""
    for option in given:
        if option not in known:
            raise ArgumentError(
                f"{kind} {name!r} has no option {option!r} (its value: {given[option]!r})"
                f"{_hint(option, known)}; known: {', '.join(known) or 'none'}"
            )
    missing = [o for o, default in known.items() if default is ... and o not in given]
    if missing:
        raise ArgumentError(f"{kind} {name!r} needs the option {', '.join(missing)}")


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ArgumentError:
    """The error of asking for what is not registered."""
    names = list(known)
    return ArgumentError(
        f"no {kind} is named {name!r}{_hint(str(name), names)}; known: {', '.join(names)}"
    )


def _hint(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
