"""The methods: a dict and three functions. A method's file is imported when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mixcore._registry import (
    check_new,
    check_options,
    class_of,
    described,
    options_of,
)
from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods.base import FAMILIES, Method

M = TypeVar("M", bound=type[Method])

# Name -> the module that registers it; its class, once it is imported.
_METHODS: dict[str, str | type[Method]] = {
    # static rules
    "proportional": "mixcore.methods.proportional",
    "uniform": "mixcore.methods.uniform",
    "temperature": "mixcore.methods.temperature",
    "unimax": "mixcore.methods.unimax",
    "epochs": "mixcore.methods.epochs",
    "importance": "mixcore.methods.importance",
    # dynamic, adaptive
    "odm": "mixcore.methods.odm",
    "ado": "mixcore.methods.ado",
    "aioli": "mixcore.methods.aioli",
    "skillit": "mixcore.methods.skillit",
    "toremi": "mixcore.methods.toremi",
    "loss_proportional": "mixcore.methods.loss_proportional",
    "doremi": "mixcore.methods.doremi",
    # dynamic, guided by losses from outside the run
    "sheared": "mixcore.methods.sheared",
    "velocitune": "mixcore.methods.velocitune",
    # dynamic, guided by gradients
    "ac_odm": "mixcore.methods.ac_odm",
    "dga": "mixcore.methods.dga",
    "doge": "mixcore.methods.doge",
    "grape": "mixcore.methods.grape",
    "pike": "mixcore.methods.pike",
    "rb": "mixcore.methods.rb",
    "tikmix": "mixcore.methods.tikmix",
    # by people and programs
    "agent": "mixcore.methods.agent",
    "external": "mixcore.methods.external",
    "schedule": "mixcore.methods.schedule",
}


@dataclass(frozen=True)
class MethodInfo:
    """What a method says of itself: the fields of Method, its options, its docstring.

    Attributes:
        required: Options without a default.
        options: The others, with theirs.
    """

    name: str
    family: str
    needs: tuple[str, ...]
    update_every: int | None
    cost: str
    paper: str
    required: tuple[str, ...]
    options: dict[str, Any]
    doc: str


def register(cls: M) -> M:
    """Class decorator: make a method known by its name.

    Raises:
        ArgumentError: Another method has that name, or the class lacks something.
    """
    check_new("method", cls.name, cls, _METHODS)
    if cls.family not in FAMILIES:
        raise ArgumentError(f"family must be one of {FAMILIES}, got {cls.family!r}")
    _METHODS[cls.name] = cls
    return cls


def method(name: str, *, domains: Sequence[Domain], **options: Any) -> Method:
    """Build a method.

    Example:
        >>> method("proportional", domains=[Domain("web", 900), Domain("code", 100)]).weights()
        array([0.9, 0.1])

    Args:
        name: Its short name; `methods()` lists them.
        domains: What the weights are for, in order.
        options: The method's own, named as in its paper, with its defaults.

    Raises:
        ValueError, TypeError: An unknown name or option, or a bad value; the message names it.
    """
    cls = _class(name)
    check_options("method", name, options_of(cls), options)
    return cls(domains, **options)


def method_names() -> list[str]:
    """The name of every method; none is imported for it."""
    return list(_METHODS)


def method_options(name: str) -> dict[str, Any]:
    """A method's options with their defaults; `...` where there is none."""
    return options_of(_class(name))


def methods() -> dict[str, MethodInfo]:
    """Every method by its name, with family, needs, update period, cost and paper."""
    found = {}
    for name in _METHODS:
        cls = _class(name)
        found[name] = MethodInfo(
            name=name,
            family=cls.family,
            needs=cls.needs,
            update_every=cls.update_every,
            cost=cls.cost,
            paper=cls.paper,
            **described(cls),
        )
    return found


def _class(name: str) -> type[Method]:
    return class_of("method", name, _METHODS)
