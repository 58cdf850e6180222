"""`mix.yaml`: domains, order, schedule, method and guards of a run, read and checked at once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixcore._checks import MAX_BATCH, MAX_POSITION
from mixcore._config_domains import Domains, Entry, KnownDomain
from mixcore._config_parts import check_guards, check_method, check_schedule
from mixcore._layers import Layer, file_layer, merge
from mixcore._problems import Problems, shown, whole_number
from mixcore.domains import Domain
from mixcore.errors import ArgumentTypeError
from mixcore.groups import Groups, Tree
from mixcore.ledger import ON_CAP, ORDERS, Ledger
from mixcore.schedule import Schedule

if TYPE_CHECKING:
    from mixcore.methods.base import Method

NUMBERS = {
    "seed": (-(1 << 63), (1 << 64) - 1),
    "batch_size": (1, MAX_BATCH),
    "train_samples": (1, MAX_POSITION - 1),
    "tokens_per_sample": (1, MAX_POSITION),
}
CHOICES = {"order": ORDERS, "on_cap": ON_CAP}
PATHS = ("ledger", "control")
KEYS = ("domains", *NUMBERS, *CHOICES, "schedule", "method", "guards", *PATHS)


@dataclass(frozen=True)
class MethodConfig:
    """The method that chooses weights while the run goes on.

    Attributes:
        name: Its short name.
        update_every: Steps between two updates; None: the method's own default.
        lag_steps: Steps between measuring and taking effect; None: the default.
        options: Everything else, handed to the method as it is.
    """

    name: str
    update_every: int | None = None
    lag_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Guards:
    """Limits on what a method may decide; None where there is none.

    Attributes:
        floor: Least weight of a domain.
        max_change: Most change of the logarithm of a weight in one update.
        repeat_cap: Most epochs over one domain.
    """

    floor: float | None = None
    max_change: float | None = None
    repeat_cap: float | None = None


@dataclass(frozen=True)
class Config:
    """What a `mix.yaml` says; build one with `load_config`.

    Attributes:
        file: The file it came from; relative paths in it are relative to its folder.
        domains: Sizes of those with a path are those of the files.
        paths: One per domain: prefix of its `.bin` and `.idx`, or None.
        weights: One per domain, or None if the schedule begins at 0. Where no domain has one and
            the method is static, they are the method's.
        batch_size: Samples a step.
        train_samples: Length of the run in samples, or None.
        groups: Where `domains` are nested: which ratios are fixed. Weights above are the domains'.
        ledger_path: Where a trainer keeps the ledger, or None.
        control_path: A control file, or None: the method is then `external`.
    """

    file: Path
    domains: tuple[Domain, ...]
    paths: tuple[Path | None, ...]
    weights: tuple[float, ...] | None
    batch_size: int
    seed: int = 0
    order: str = "balanced"
    train_samples: int | None = None
    on_cap: str = "redistribute"
    tokens_per_sample: int | None = None
    schedule: Schedule | None = None
    method: MethodConfig | None = None
    guards: Guards = field(default_factory=Guards)
    groups: Groups | None = None
    ledger_path: Path | None = None
    control_path: Path | None = None

    def ledger(self) -> Ledger:
        """A new ledger that begins the run described here."""
        return Ledger(
            self.domains,
            self.weights,
            batch_size=self.batch_size,
            seed=self.seed,
            order=self.order,
            on_cap=self.on_cap,
            tokens_per_sample=self.tokens_per_sample,
            schedule=self.schedule,
        )


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read a `mix.yaml` and check all of it.

    Example:
        >>> config = load_config("mix.yaml")
        >>> ledger = config.ledger()

    Raises:
        ArgumentError: Every wrong key, type and value in one message, a line each, with its path
            in the file (`domains[2].weight`), what came and what is allowed.
        OSError: The file cannot be read.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(f"path must be a str or a Path, got {path!r}")
    file = Path(path)
    return config_from([file_layer(file)], file, str(file))


def config_from(
    layers: Sequence[Layer],
    file: Path,
    where: str,
    *,
    given: Mapping[str, int | None] | None = None,
    known: Sequence[KnownDomain] | None = None,
) -> Config:
    """Merge layers and check what they say together; see `mixcore.trainers.settings`.

    Args:
        layers: The later one wins.
        file: What `Config.file` shall be.
        where: What they are called together, in messages.
        given: Facts of the trainer (keys as in a `mix.yaml`); a layer may repeat, not change them.
        known: Domains of the trainer.

    Raises:
        ArgumentError: As `load_config`.
    """
    merged, check, folders = merge(layers)
    config = None
    if merged or not check.found:  # else there is nothing but a layer that is no mapping
        config = _config(check, merged, folders, file, given or {}, known)
    if config is not None and not check.found:
        check.call("", lambda _: config.ledger())
    check.raise_found(where)
    assert config is not None
    return config


def _config(
    check: Problems,
    value: dict[str, Any],
    folders: Mapping[str, Path],
    file: Path,
    given: Mapping[str, int | None],
    known: Sequence[KnownDomain] | None,
) -> Config | None:
    body = dict(check.mapping("", value, KEYS) or {})
    rest: dict[str, Any] = {}
    for key, (low, high) in NUMBERS.items():
        if body.get(key) is not None:
            rest[key] = check.call(key, whole_number, body[key], low, high)
    for key, theirs in given.items():
        mine = rest.get(key)
        if theirs is not None and mine is not None and mine != theirs:
            check.add(key, f"{key} is {mine}, but the trainer has {theirs}: leave it out here")
        elif theirs is not None and body.get(key) is None:
            rest[key] = check.call(key, whole_number, theirs, *NUMBERS[key])
    for key, allowed in CHOICES.items():
        if key in body:
            rest[key] = check.choice(key, body[key], allowed)
    if body.get("domains") is None and known is None:
        check.add("", "domains is missing")
    if body.get("batch_size") is None and given.get("batch_size") is None:
        check.add("", "batch_size is missing")
    for key in PATHS:
        if body.get(key) is not None:
            rest[f"{key}_path"] = _path(check, key, body[key], folders[key])
    tokens, order = rest.get("tokens_per_sample"), rest.get("order", "balanced")
    entries = check.sequence("domains", body["domains"]) if body.get("domains") is not None else []
    read = Domains(check, folders.get("domains", Path()), tokens, order, known)
    tree = Tree(check, entries)
    for path, entry in tree.leaves:
        read.add(path, entry)
    every = read.entries()
    groups = tree.groups(every, known is not None)
    if body.get("schedule") is not None:
        rest["schedule"] = check_schedule(check, body["schedule"], read.names, tokens, order, tree)
    domains = tuple(e.domain for e in every if e.domain is not None)
    whole = bool(domains) and len(domains) == len(every) and read.names is not None
    method = None
    if (wanted := _controlled(check, body, rest.get("control_path"))) is not None:
        made, method = check_method(
            check, wanted, None if not whole else domains if groups is None else groups.domains
        )
        rest["method"] = None if made is None else MethodConfig(**made)
    weights = _weights(check, tree.tops(every), body, rest.get("schedule"), method)
    if body.get("guards") is not None:
        rest["guards"] = Guards(**(check_guards(check, body["guards"], len(every)) or {}))
    if check.found:
        return None
    if groups is not None:
        rest["groups"] = groups
        weights = None if weights is None else tuple(groups.expand(weights).tolist())
    return Config(file, domains, tuple(e.prefix for e in every), weights, **rest)


def _path(check: Problems, key: str, value: object, folder: Path) -> Path | None:
    if isinstance(value, (str, os.PathLike)) and str(value):
        return folder / value
    check.add(key, f"{key} must be the path of a file, got {shown(value)}")
    return None


def _controlled(check: Problems, body: dict[str, Any], control: Path | None) -> Any:
    """What `method` says; with a control file it is `external`, and no other goes with it."""
    method = body.get("method")
    if control is None or not (method is None or isinstance(method, dict)):
        return method
    name = (method or {}).get("name", "external")
    if name != "external":
        check.add(
            "control",
            f"control: {control} and method.name {name!r} would both choose the weights, and each "
            f"update of the method would undo what the file asked for: leave one of them out",
        )
        return method
    own = (method or {}).get("path")
    if own is not None:
        check.add("control", f"control: {control} and method.path {own!r} are the same thing")
    return {"path": str(control), **(method or {}), "name": "external"}


def _weights(
    check: Problems,
    entries: Sequence[Entry],
    body: Mapping[str, Any],
    schedule: Schedule | None,
    method: "Method | None",
) -> tuple[float, ...] | None:
    """One weight a domain; None if there are none and the schedule begins at 0 with some."""
    scheduled = body.get("schedule") is not None
    later = schedule is not None and any(p.weights is not None and p.at for p in schedule.points)
    begins = schedule is not None and schedule.points[0].at == 0
    begins = begins and schedule is not None and schedule.points[0].weights is not None
    chosen = next((e.path for e in entries if e.chosen), None)
    if method is not None and not method.dynamic:
        other = f"{chosen}.weight" if chosen else "schedule" if begins else None
        if other is not None:
            check.add(
                "method.name",
                f"method.name {method.name!r} is a static rule: it chooses the weights at the "
                f"start, and so does {other}; leave one of them out",
            )
        return tuple(method.weights().tolist())
    if method is not None and later:
        check.add(
            "schedule",
            f"schedule has weights for later positions, and the method {method.name!r} would "
            f"decide before it comes to them: leave one of them out (method.name 'schedule' "
            f"follows a plan as a method)",
        )
    weights = [e.weight for e in entries if e.weight is not None]
    if not weights and (begins or (scheduled and schedule is None)):
        return None  # in the second case the schedule's own problems are reported
    if len(weights) < len(entries):
        for path in [e.path for e in entries if e.weight is None and e.domain is not None]:
            rule = "give every domain a weight, or none and a schedule with weights at 0"
            check.add(path, f"{path}.weight is missing: {rule}")
    elif weights and not any(weights) and not check.found:
        check.add("domains", "domains: the weights must have a positive sum, got all zeros")
    return tuple(weights)
