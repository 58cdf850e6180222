"""Puts rows in place: resolve all, check all, then wrap; undo; tell.

What holds, whatever happens: either every row of the groups asked for is in place or none is.
Modules that rows name are imported first, so it does not matter whether they were before. A module
imported earlier that took the original by name (`from x import f`) is found by identity among all
module globals and is given the replacement too; one imported later takes the replacement by itself.
What no scan can find (a default argument, a closure, an instance that keeps the function) keeps the
original: apply the patch before model and data are built.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron_patch.rows import (
    PatchError,
    Place,
    Row,
    Table,
    check_signature,
    has_package,
    resolve,
    version_and_path,
)
from mixcore import _import_name
from mixcore.errors import ArgumentError

logger = logging.getLogger("megatron_patch")

MARK = "__megatron_patch__"
COPY = str(Path(__file__).parent)  # which copy of this package marked a replacement


@dataclass
class Patch:
    """One row in place."""

    place: Place
    held: Any  # what was put into the owner
    replacement: Any
    aliases: list[tuple[ModuleType, str]] = field(default_factory=list)

    def is_bound(self) -> bool:
        """Whether the owner still holds what was put there."""
        return vars(self.place.owner).get(self.place.name) is self.held


_patches: dict[str, Patch] = {}


def apply(table: Table, groups: Iterable[str] | None = None) -> list[str]:
    """Put the rows of a table in place; rows that are in place already stay as they are.

    Example:
        >>> apply(MEGATRON)
        ['dataset', 'training']

    Args:
        table: The rows.
        groups: Which groups; all whose package is installed when not given.

    Returns:
        The groups in place.

    Raises:
        PatchError: A row cannot be put in place, or another `megatron_patch` is on the path.
            Names the symbol and the trainer's path and version; no row of this call is in place.
        ArgumentError: An unknown group.
    """
    foreign = _import_name.foreign()
    if foreign is not None:
        raise PatchError(_import_name.message(foreign))
    chosen = _choose(table, groups)
    try:
        places = [_checked(row) for row in table.rows if row.group in chosen]
        new = [place for place in places if place is not None]
        made = _bind_all(new)
    except PatchError as e:
        raise PatchError(
            f"{e}; {table.name} is left as it was: {version_and_path(table.package)}"
        ) from e
    for patch in made:
        row = patch.place.row
        logger.info("patched %s%s: %s", row.symbol, _also(patch), row.reason)
    return chosen


def undo() -> None:
    """Give every binding its original back, the last first.

    Raises:
        PatchError: Somebody replaced a binding after us; that one is left as it is, the others
            are undone.
    """
    kept = []
    for symbol, patch in reversed(list(_patches.items())):
        if patch.is_bound():
            _unbind(patch)
            del _patches[symbol]
            logger.info("undone %s", symbol)
        else:
            kept.append(symbol)
    if kept:
        raise PatchError(f"not undone, because something else was bound there since: {kept}")


def patches() -> list[Patch]:
    """The rows in place, in the order in which they were put there."""
    return list(_patches.values())


def _choose(table: Table, groups: Iterable[str] | None) -> list[str]:
    asked = list(table.groups) if groups is None else list(groups)
    unknown = [g for g in asked if g not in table.groups]
    if unknown:
        raise ArgumentError(f"groups names unknown groups {unknown}; known: {list(table.groups)}")
    missing = {g: table.groups[g] for g in asked if not has_package(table.groups[g])}
    if len(missing) == len(asked) or (groups is not None and missing):
        packages = ", ".join(sorted(set(missing.values())))
        raise PatchError(f"{table.name} cannot be patched: no package {packages} on the path")
    for group, package in missing.items():
        logger.info("group %r is left out: there is no %s", group, package)
    return [g for g in asked if g not in missing]


def _checked(row: Row) -> Place | None:
    """The row's place if it can be patched, None if it is patched already."""
    place = resolve(row)
    known = _patches.get(row.symbol)
    if known is not None and known.is_bound():
        if known.place.row != row:
            raise PatchError(f"{row.symbol}: another row is in place there")
        return None
    if known is not None:
        raise PatchError(f"{row.symbol}: something else was bound there after it was patched")
    # Not getattr: a subclass of a marked class is not marked.
    copy = getattr(place.function, "__dict__", {}).get(MARK)
    if copy is not None:
        raise PatchError(f"{row.symbol}: it is patched already, by the copy of this package {copy}")
    check_signature(place)
    if row.only_here:
        _check_holders(place)
    return place


def _check_holders(place: Place) -> None:
    """No module of the trainer but the named ones goes on using the original."""
    row = place.row
    allowed = {row.module, getattr(place.function, "__module__", None), *row.may_keep}
    top = row.module.partition(".")[0]
    for module, name in _holders(place.held):
        if module.__name__.partition(".")[0] == top and module.__name__ not in allowed:
            raise PatchError(f"{row.symbol}: {module.__name__}:{name} holds it too, unexpectedly")


def _holders(held: Any) -> Iterator[tuple[ModuleType, str]]:
    """Every module global that is this very object."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict):
            yield from ((module, name) for name, x in list(names.items()) if x is held)


def _bind_all(places: list[Place]) -> list[Patch]:
    """Wrap one after the other; if one fails, those before it are undone."""
    made: list[Patch] = []
    try:
        for place in places:
            made.append(_bind(place))
    except Exception as e:  # a wrapper may raise anything; none of it may leave us half-patched
        for patch in reversed(made):
            _unbind(patch)
            del _patches[patch.place.row.symbol]
        if isinstance(e, PatchError):
            raise
        raise PatchError(f"{place.row.symbol}: its wrapper failed: {type(e).__name__}: {e}") from e
    return made


def _bind(place: Place) -> Patch:
    row = place.row
    replacement = row.wrapper(place.function)
    if replacement is place.function or not callable(replacement):
        raise PatchError(f"{row.symbol}: its wrapper returned {replacement!r}, no replacement")
    setattr(replacement, MARK, COPY)
    if not isinstance(replacement, type) and not hasattr(replacement, "__wrapped__"):
        replacement.__wrapped__ = place.function
    patch = Patch(place, place.rewrapped(replacement), replacement)
    if not row.only_here and isinstance(place.owner, ModuleType):
        here = (place.owner, place.name)
        patch.aliases = [alias for alias in _holders(place.held) if alias != here]
    setattr(place.owner, place.name, patch.held)
    for module, name in patch.aliases:
        setattr(module, name, patch.held)
    _patches[row.symbol] = patch
    return patch


def _unbind(patch: Patch) -> None:
    setattr(patch.place.owner, patch.place.name, patch.place.held)
    # All that hold the replacement now: the ones imported since the patch took it by name.
    if not patch.place.row.only_here and isinstance(patch.place.owner, ModuleType):
        for module, name in list(_holders(patch.held)):
            setattr(module, name, patch.place.held)


def _also(patch: Patch) -> str:
    names = [f"{module.__name__}:{name}" for module, name in patch.aliases]
    return f" (also {', '.join(names)})" if names else ""
