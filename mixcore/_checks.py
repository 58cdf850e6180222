"""Argument checks that every public call shares: the message names the argument and its value."""

import json
import math
import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore.errors import ArgumentError, ArgumentTypeError

MAX_POSITION = 1 << 48
MAX_DOMAINS = 65_536
MAX_BATCH = (1 << 31) - 1


def integer(name: str, value: object, low: int, high: int) -> int:
    """Return value as an int in [low, high]; bool and float are refused."""
    if isinstance(value, (bool, np.bool_)):
        raise ArgumentTypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(
            f"{name} must be an integer, got {value!r} ({type(value).__name__})"
        ) from None
    if not low <= number <= high:
        raise ArgumentError(f"{name} must be in [{low}, {high}], got {number}")
    return number


def text(name: str, value: object) -> str:
    """Return value if it is a str that a file can hold: no lone surrogates."""
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be a str, got {value!r} ({type(value).__name__})")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise ArgumentError(f"{name} must be encodable as UTF-8, got {value!r} ({e})") from None
    return value


def plain(name: str, value: object) -> dict[str, Any]:
    """A copy of a mapping of plain values, as JSON would bring it back."""
    try:
        copied = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise ArgumentTypeError(f"{name} must be of plain values, got {value!r}: {e}") from None
    if not isinstance(copied, dict):
        raise ArgumentTypeError(f"{name} must be a mapping, got {value!r}")
    return copied


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return value if it is one of the allowed strings."""
    if not isinstance(value, str) or value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def _number(name: str, value: object, signed: bool = False) -> float:
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise ArgumentTypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ArgumentTypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or (number < 0 and not signed):
        what = "finite" if signed else "finite and >= 0"
        raise ArgumentError(f"{name} must be {what}, got {number}")
    return number


def weights(
    name: str,
    value: object,
    domains: Sequence[str],
    *,
    positive_sum: bool = True,
    signed: bool = False,
) -> npt.NDArray[np.float64]:
    """Return one float64 weight a domain, from a mapping by name or a sequence in their order.

    Args:
        name: What the argument is called, for messages.
        value: A mapping that names every domain, or a sequence or array with one entry a domain.
        domains: The domains' names, in order.
        positive_sum: Refuse weights that are all zero.
        signed: Allow negative entries (for what is one number a domain, but no weight).
    """
    if isinstance(value, Mapping):
        names = set(domains)
        unknown = [k for k in value if k not in names]
        missing = [d for d in domains if d not in value]
        if unknown:
            raise ArgumentError(f"{name} names unknown domains {unknown}; known: {list(domains)}")
        if missing:
            raise ArgumentError(f"{name} must name every domain; missing: {missing}")
        entries: list[Any] = [value[d] for d in domains]
    elif isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise ArgumentError(f"{name} must have 1 axis, got {value.ndim}")
        if value.dtype.kind not in "fiu":
            raise ArgumentTypeError(f"{name} must be numbers, got dtype {value.dtype}")
        entries = value.tolist()
    elif isinstance(value, (str, bytes, Set)) or not hasattr(value, "__iter__"):  # sets: no order
        raise ArgumentTypeError(
            f"{name} must be a sequence or a mapping, got {value!r} ({type(value).__name__})"
        )
    else:
        entries = list(value)
    if len(entries) != len(domains):
        raise ArgumentError(
            f"{name} must have one entry a domain ({len(domains)}), got {len(entries)}"
        )
    array = _as_floats(entries, signed)
    if array is None:
        numbers = [
            _number(f"{name}[{d!r}]", x, signed) for d, x in zip(domains, entries, strict=True)
        ]
        array = np.array(numbers, dtype=np.float64)
    if positive_sum and not array.any():
        raise ArgumentError(f"{name} must have a positive sum, got all zeros")
    return array


def _as_floats(entries: list[Any], signed: bool) -> npt.NDArray[np.float64] | None:
    """The entries as one array if nothing is wrong with them, else None."""
    if not all(type(x) is float or type(x) is int for x in entries):
        return None
    try:
        array = np.array(entries, dtype=np.float64)
    except OverflowError:
        return None
    return array if bool(np.isfinite(array).all() and (signed or (array >= 0).all())) else None
