"""Checks of a configuration that collect every problem instead of raising at the first."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar

from mixcore import _checks
from mixcore.errors import ArgumentError, MixcoreError

T = TypeVar("T")


class Place(NamedTuple):
    """Where a key was given.

    Attributes:
        order: Layer and line; problems are sorted by it.
        text: For people: "line 7", "--mix-order".
    """

    order: tuple[int, int] = (0, 0)
    text: str = ""


class Problems:
    """Collects problems; every check goes through `call`, so that one does not hide the next.

    Args:
        places: Path of a key (`domains[2].weight`) -> where it was given.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = places
        self.found: list[tuple[Place, str]] = []

    def add(self, path: str, message: str) -> None:
        self.found.append((self.place(path), message))

    def place(self, path: str) -> Place:
        """Where that key was given or, if it is missing, what lacks it."""
        while path and path not in self.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places.get(path, Place())

    def raise_found(self, where: str) -> None:
        """Raise all of them in one message, a line each, if there are any.

        Raises:
            ArgumentError: There are.
        """
        if not self.found:
            return
        lines = [f"{place.text}: {m}" if place.text else m for place, m in sorted(self.found)]
        head = f"{where}: " if len(lines) == 1 else f"{where}: {len(lines)} problems:\n  "
        raise ArgumentError(head + "\n  ".join(lines))

    def call(self, path: str, function: Callable[..., T], *args: Any) -> T | None:
        """function(path, *args), or None and a problem."""
        try:
            return function(path, *args)
        except MixcoreError as e:
            self.add(path, str(e))
            return None

    def choice(self, path: str, value: object, allowed: Sequence[str]) -> str | None:
        try:
            return _checks.choice(path, value, allowed)
        except MixcoreError as e:
            self.add(path, f"{e}{closest(value, allowed)}")
            return None

    def mapping(self, path: str, value: object, keys: Sequence[str]) -> dict[str, Any] | None:
        """Value as a mapping; keys that are not among `keys` (if there are any) are problems."""
        if not isinstance(value, dict):
            self.add(path, f"{path} must be a mapping, got {shown(value)}")
            return None
        for key in value:
            if key not in keys:
                self.unknown(f"{path}.{key}" if path else str(key), key, value[key], keys)
        return value

    def unknown(self, path: str, key: object, value: object, keys: Sequence[str]) -> None:
        self.add(
            path,
            f"{path} is not a known key (its value: {shown(value)}){closest(key, keys)}; known: "
            f"{', '.join(keys)}",
        )

    def sequence(self, path: str, value: object) -> list[Any]:
        if isinstance(value, list) and value:
            return value
        self.add(path, f"{path} must be a list with at least one entry, got {shown(value)}")
        return []


def shown(value: object) -> str:
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def closest(value: object, allowed: Sequence[str]) -> str:
    found = get_close_matches(str(value), allowed, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def whole_number(path: str, value: object, low: int, high: int) -> int:
    """`1e6` is a float in YAML, and meant as an integer where an integer is meant."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _checks.integer(path, value, low, high)
