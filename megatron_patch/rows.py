"""One patch is one row: what is replaced, by what, what it must look like, and why.

A row says nothing of how it is put in place: `engine` does that for all rows alike.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mixcore.errors import ArgumentError, MixcoreError


class PatchError(MixcoreError, RuntimeError):
    """A patch cannot be put in place; nothing of it is. Names the symbol, the path, the version."""


@dataclass(frozen=True)
class Row:
    """One symbol of another package and what takes its place.

    Example:
        >>> Row(
        ...     "megatron.training.training:build_pretraining_data_loader",
        ...     wrap_loader,
        ...     parameters=("dataset", "consumed_samples"),
        ...     reason="the train loader reads the ledger",
        ...     group="training",
        ... )

    Attributes:
        symbol: `package.module:name` or `package.module:Class.name`. The binding that is looked up
            when the thing is used, which need not be where it was defined.
        wrapper: Called with the original (of a static or class method: the function below it);
            returns the replacement. It must not change anything itself.
        parameters: Names that the original's signature must have, in this order; others may stand
            between them. `arguments` reads them from a call, whatever their places.
        reason: One line for the log and the table.
        group: Which group of the table the row belongs to: all of a group or nothing of it.
        only_here: Replace this one binding. Otherwise every module global that holds the original
            is replaced (`from x import name` before the patch), in whatever module.
        may_keep: Modules of the same top-level package that may go on holding the original, beside
            the one that defines it; only with `only_here`. Any other that does is an error.
    """

    symbol: str
    wrapper: Callable[[Any], Any]
    parameters: tuple[str, ...] = ()
    reason: str = ""
    group: str = "dataset"
    only_here: bool = False
    may_keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        module, _, path = self.symbol.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), *path.split(".")]):
            raise ArgumentError(f"symbol must be 'package.module:name', got {self.symbol!r}")
        if self.may_keep and not self.only_here:
            raise ArgumentError(f"{self.symbol}: may_keep has a meaning only with only_here")

    @property
    def module(self) -> str:
        """The name of the module that holds the binding."""
        return self.symbol.partition(":")[0]

    @property
    def path(self) -> list[str]:
        """The names from the module to the binding: `["name"]` or `["Class", "name"]`."""
        return self.symbol.partition(":")[2].split(".")


@dataclass(frozen=True)
class Table:
    """All rows for one trainer.

    Attributes:
        name: What the trainer is called.
        package: The package whose path and `__version__` are named in messages.
        groups: Group -> package that it needs; a group whose package is missing is left out.
        rows: The rows, each symbol once.
    """

    name: str
    package: str
    groups: Mapping[str, str]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        symbols = [row.symbol for row in self.rows]
        twice = {s for s in symbols if symbols.count(s) > 1}
        if twice:
            raise ArgumentError(f"table {self.name}: rows for the same symbol: {sorted(twice)}")
        unknown = {row.group for row in self.rows} - set(self.groups)
        if unknown:
            raise ArgumentError(
                f"table {self.name}: unknown groups {sorted(unknown)}; known: {list(self.groups)}"
            )


@dataclass(frozen=True)
class Place:
    """Where a row's binding is, and what it holds now."""

    row: Row
    owner: Any  # a module or a class
    name: str
    held: Any  # as it lies in the owner: a function, a class, a staticmethod or a classmethod

    @property
    def function(self) -> Any:
        """What the wrapper gets: what is held, without `staticmethod` or `classmethod`."""
        return (
            self.held.__func__ if isinstance(self.held, (staticmethod, classmethod)) else self.held
        )

    def rewrapped(self, replacement: Any) -> Any:
        """The replacement as the owner must hold it."""
        if isinstance(self.held, (staticmethod, classmethod)):
            return type(self.held)(replacement)
        return replacement


def has_package(name: str) -> bool:
    """Whether a package can be found; its parents are imported, it is not."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
    except ValueError:  # a module that was put into sys.modules by hand has no spec
        return name in sys.modules


def resolve(row: Row) -> Place:
    """Import the row's module and find the binding.

    Raises:
        PatchError: No such module or symbol, or not one that can be replaced.
    """
    try:
        owner: Any = importlib.import_module(row.module)
    except Exception as e:  # whatever a foreign module does while it is imported
        raise PatchError(
            f"{row.symbol}: importing {row.module} failed: {type(e).__name__}: {e}"
        ) from e
    *classes, name = row.path
    for i, part in enumerate(classes):
        owner = vars(owner).get(part)
        if not isinstance(owner, type):
            raise PatchError(f"{row.symbol}: no class {'.'.join(classes[: i + 1])!r} there")
    if name not in vars(owner):
        where = "in the class itself" if classes else "in the module"
        raise PatchError(f"{row.symbol}: no {name!r} {where}")
    place = Place(row, owner, name, vars(owner)[name])
    if not callable(place.function):
        raise PatchError(
            f"{row.symbol}: expected a function or a class, found {type(place.held).__name__}"
        )
    return place


def check_signature(place: Place) -> None:
    """Compare the names of the parameters: all that the row names, in its order.

    Raises:
        PatchError: One is missing or they have another order; shows the signature found.
    """
    try:
        signature = inspect.signature(place.function)
    except (TypeError, ValueError) as e:
        raise PatchError(f"{place.row.symbol}: it has no readable signature: {e}") from e
    expected = list(place.row.parameters)
    found = [name for name in signature.parameters if name in expected]
    if found != expected:
        raise PatchError(
            f"{place.row.symbol}: expected the parameters ({', '.join(expected)}), "
            f"found {place.name}{signature}"
        )


def arguments(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call by name, defaults filled in, wherever the signature puts them.

    Example:
        >>> def replacement(*args, **kwargs):
        ...     dataset = arguments(original, args, kwargs)["dataset"]
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def version_and_path(package: str) -> str:
    """What a message says of a package: its version and where it lies.

    Example:
        >>> version_and_path("megatron.core")
        'megatron.core 0.19.2 (/opt/venv/lib/python3.11/site-packages/megatron/core)'
    """
    module = sys.modules.get(package)
    if module is None:
        try:
            module = importlib.import_module(package)
        except Exception as e:  # the message is about another error: say what is known
            return f"{package} (importing it failed: {type(e).__name__}: {e})"
    return f"{package} {_version(module)} ({_location(module)})"


def _version(module: ModuleType) -> str:
    return str(getattr(module, "__version__", "of unknown version"))


def _location(module: ModuleType) -> str:
    path = getattr(module, "__file__", None)
    if path:
        return str(path).removesuffix("/__init__.py")
    return str(next(iter(getattr(module, "__path__", [])), "no file"))
