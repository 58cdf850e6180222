"""Checks of a configuration that collect every problem instead of raising at the first."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from mixcore import _checks
from mixcore.errors import MixcoreError

T = TypeVar("T")


class Problems:
    """Collects problems; every check goes through `call`, so that one does not hide the next."""

    def __init__(self, lines: Mapping[str, int], found: list[tuple[int, str]]) -> None:
        self.lines = lines
        self.found = found

    def add(self, path: str, message: str) -> None:
        at = path
        while at and at not in self.lines:  # a key that is missing: the line of what lacks it
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        self.found.append((self.lines.get(at, 0), message))

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
            self.add(path, f"{path or 'the file'} must be a mapping, got {shown(value)}")
            return None
        for key in value:
            if key not in keys:
                below = f"{path}.{key}" if path else str(key)
                self.add(
                    below,
                    f"{below} is not a known key (its value: {shown(value[key])})"
                    f"{closest(key, keys)}; known: {', '.join(keys)}",
                )
        return value

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
