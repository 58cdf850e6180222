"""`mix.yaml`: domains, order, schedule, method and guards of a run, read and checked at once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixcore import _checks
from mixcore._checks import MAX_BATCH, MAX_POSITION
from mixcore._problems import Problems, closest, shown, whole_number
from mixcore._yaml import parse
from mixcore.domains import Domain
from mixcore.errors import ArgumentError, ArgumentTypeError, MixcoreError
from mixcore.groups import Groups, Tree
from mixcore.ledger import ON_CAP, ORDERS, Ledger
from mixcore.schedule import KINDS, UNITS, Schedule, resolve, schedule_from

KEYS = (
    "domains",
    "seed",
    "order",
    "batch_size",
    "train_samples",
    "on_cap",
    "tokens_per_sample",
    "schedule",
    "method",
    "guards",
)
DOMAIN_KEYS = ("name", "path", "size", "weight", "max_epochs")
SCHEDULE_KEYS = ("kind", "points", "unit", "every")
POINT_KEYS = ("at", "weights", "batch_size")
GUARD_KEYS = ("floor", "max_change", "repeat_cap")


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
        weights: One per domain, or None if the schedule begins at 0.
        batch_size: Samples a step.
        train_samples: Length of the run in samples, or None.
        groups: Where `domains` are nested: which ratios are fixed. Weights above are the domains'.
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
    value, lines, twice = parse(file.read_bytes(), str(file))
    check = Problems(lines, twice)
    config = _config(check, value, file)
    if config is not None and not check.found:
        check.call("", lambda _: config.ledger())
    if check.found or config is None:
        found = [f"line {n}: {p}" if n else p for n, p in sorted(check.found)]
        head = f"{file}: " if len(found) == 1 else f"{file}: {len(found)} problems:\n  "
        raise ArgumentError(head + "\n  ".join(found))
    return config


def _config(check: Problems, value: object, file: Path) -> Config | None:
    body = check.mapping("", value, KEYS)
    if body is None:
        return None
    rest: dict[str, Any] = {}
    for key, low, high in (
        ("seed", -(1 << 63), (1 << 64) - 1),
        ("batch_size", 1, MAX_BATCH),
        ("train_samples", 1, MAX_POSITION - 1),
        ("tokens_per_sample", 1, MAX_POSITION),
    ):
        if body.get(key) is not None:
            rest[key] = check.call(key, whole_number, body[key], low, high)
    for key, allowed in (("order", ORDERS), ("on_cap", ON_CAP)):
        if key in body:
            rest[key] = check.choice(key, body[key], allowed)
    for key in ("domains", "batch_size"):
        if body.get(key) is None:
            check.add("", f"{key} is missing")
    tokens, order = rest.get("tokens_per_sample"), rest.get("order", "balanced")
    entries = check.sequence("domains", body["domains"]) if body.get("domains") is not None else []
    read = _Domains(check, file.parent, tokens, order)
    tree = Tree(check, entries)
    for path, entry in tree.leaves:
        read.add(path, entry)
    rest["groups"] = tree.groups(read.domains, read.weights)
    if body.get("schedule") is not None:
        rest["schedule"] = _schedule(check, body["schedule"], read.names, tokens, order, tree)
    given = tree.given(read.weights)
    weights = _weights(check, given, body.get("schedule") is not None, rest.get("schedule"))
    if body.get("method") is not None:
        rest["method"] = _method(check, body["method"])
    if body.get("guards") is not None:
        rest["guards"] = _guards(check, body["guards"], len(tree.leaves))
    if check.found:
        return None
    if weights is not None and rest["groups"] is not None:
        weights = tuple(rest["groups"].expand(weights).tolist())
    return Config(file, tuple(read.domains), tuple(read.paths), weights, **rest)


class _Domains:
    """The entries of `domains`, checked one by one."""

    def __init__(
        self, check: Problems, folder: Path, tokens: int | None, order: str | None
    ) -> None:
        self.check, self.folder, self.tokens, self.order = check, folder, tokens, order
        self.domains: list[Domain] = []
        self.paths: list[Path | None] = []
        self.weights: dict[str, float | None] = {}  # path of the entry -> weight
        self._names: list[str | None] = []
        self._first: dict[str, str] = {}  # name -> path of the entry that has it

    @property
    def names(self) -> list[str] | None:
        """All names, or None if one is wrong."""
        names = [n for n in self._names if n is not None]
        return names if names and len(names) == len(self._names) else None

    def add(self, path: str, entry: object) -> None:
        body = self.check.mapping(path, entry, DOMAIN_KEYS)
        self._names.append(None)
        if body is None:
            return
        name = self._name(path, body)
        prefix = size = None
        if body.get("path") is not None:
            prefix, size = self._files(f"{path}.path", body["path"])
            if size is not None and body.get("size") not in (None, size):
                self.check.add(
                    f"{path}.size",
                    f"{path}.size contradicts {path}.path: {prefix} has {size} samples of "
                    f"{self.tokens} tokens, got {shown(body['size'])}",
                )
        elif "size" not in body:
            self.check.add(path, f"{path} needs a size or a path (size: null is open-ended)")
        elif body["size"] is not None:
            size = self.check.call(f"{path}.size", whole_number, body["size"], 1, MAX_POSITION)
        epochs = body.get("max_epochs")
        if epochs is not None and self.order == "megatron":
            self.check.add(
                f"{path}.max_epochs",
                f"{path}.max_epochs is {epochs}, but order 'megatron' has no caps",
            )
        weight = body.get("weight")
        if weight is not None:
            weight = self.check.call(f"{path}.weight", _checks._number, weight)
            weight = 0.0 if weight is None else weight  # reported; not missing
        self.weights[path] = weight
        self.paths.append(prefix)
        if size is None and (body.get("path") is not None or body.get("size") is not None):
            size = MAX_POSITION  # reported; what is left can still be checked
        domain = self.check.call(f"{path}.max_epochs", _domain, name or "?", size, epochs)
        if domain is not None:
            self.domains.append(domain)

    def _name(self, path: str, body: dict[str, Any]) -> str | None:
        if "name" not in body:
            self.check.add(path, f"{path}.name is missing")
            return None
        name = self.check.call(f"{path}.name", _checks.text, body["name"])
        if name == "":
            self.check.add(f"{path}.name", f"{path}.name must not be empty, got ''")
        elif name is not None and name in self._first:
            self.check.add(
                f"{path}.name", f"{path}.name is {name!r}, as is that of {self._first[name]}"
            )
        elif name is not None:
            self._first[name] = path
            self._names[-1] = name
        return name

    def _files(self, path: str, value: object) -> tuple[Path | None, int | None]:
        """The prefix and the number of samples of the files there."""
        if not isinstance(value, str) or not value:
            self.check.add(path, f"{path} must be the prefix of two files, got {shown(value)}")
            return None, None
        prefix = self.folder / value
        if self.tokens is None:
            self.check.add(path, f"{path} needs tokens_per_sample, the length of a sample")
            return prefix, None
        from mixcore.views import num_samples  # configurations without files need none of it

        return prefix, self.check.call(path, num_samples, prefix, self.tokens)


def _domain(path: str, name: str, size: int | None, max_epochs: Any) -> Domain:
    """A Domain; what it says of its max_epochs is said of the path."""
    try:
        return Domain(name, size, max_epochs)
    except MixcoreError as e:
        raise ArgumentError(str(e).replace(f"max_epochs of domain {name!r}", path)) from None


def _weights(
    check: Problems, given: dict[str, float | None], scheduled: bool, schedule: Schedule | None
) -> tuple[float, ...] | None:
    """One weight a domain; None if there are none and the schedule begins at 0 with some."""
    begins = schedule is not None and schedule.points[0].at == 0
    begins = begins and schedule is not None and schedule.points[0].weights is not None
    weights = [w for w in given.values() if w is not None]
    if not weights and (begins or (scheduled and schedule is None)):
        return None  # in the second case the schedule's own problems are reported
    if len(weights) < len(given):
        for path in [p for p, w in given.items() if w is None]:
            rule = "give every domain a weight, or none and a schedule with weights at 0"
            check.add(path, f"{path}.weight is missing: {rule}")
    elif weights and not any(weights) and not check.found:
        check.add("domains", "domains: the weights must have a positive sum, got all zeros")
    return tuple(weights)


def _schedule(
    check: Problems,
    value: object,
    names: list[str] | None,
    tokens_per_sample: int | None,
    order: str | None,
    tree: Tree,
) -> Schedule | None:
    before = len(check.found)
    if not isinstance(value, list):
        body = check.mapping("schedule", value, SCHEDULE_KEYS)
        if body is None:
            return None
        body = dict(body)
    else:
        body = {"points": value}
    for key, allowed in (("kind", KINDS), ("unit", UNITS)):
        if key in body:
            check.choice(f"schedule.{key}", body[key], allowed)
    if "every" in body:
        body["every"] = check.call("schedule.every", whole_number, body["every"], 1, MAX_BATCH)
    where = "schedule.points" if isinstance(value, dict) else "schedule"
    points = check.sequence(where, body.get("points"))
    tops = names if names is None else tree.names
    body["points"] = [_point(check, f"{where}[{i}]", p, tops) for i, p in enumerate(points)]
    if len(check.found) > before or names is None:
        return None
    for point in body["points"]:
        if point.get("weights") is not None:
            point["weights"] = tree.expand(point["weights"])

    def made(path: str) -> Schedule:
        try:
            schedule = schedule_from(body)
            resolve(schedule, names, tokens_per_sample, order or "balanced")
        except MixcoreError as e:
            raise ArgumentError(str(e).replace("schedule.points", where)) from None
        return schedule

    return check.call("schedule", made)


def _point(check: Problems, path: str, value: object, names: list[str] | None) -> dict[str, Any]:
    """One point of a schedule as a mapping with checked entries."""
    if isinstance(value, list) and 2 <= len(value) <= 3:
        value = dict(zip(POINT_KEYS, value, strict=False))
    if not isinstance(value, dict):
        keys = ", ".join(POINT_KEYS)
        check.add(path, f"{path} must have the keys {keys}, got {shown(value)}")
        return {}
    body = dict(check.mapping(path, value, POINT_KEYS) or {})
    if "at" not in body:
        check.add(path, f"{path}.at is missing")
    else:
        body["at"] = check.call(f"{path}.at", whole_number, body["at"], 0, 1 << 62)
    if body.get("batch_size") is not None:
        body["batch_size"] = check.call(
            f"{path}.batch_size", whole_number, body["batch_size"], 1, MAX_BATCH
        )
    weights = body.get("weights")
    if weights is not None and names is not None:
        try:
            _checks.weights(f"{path}.weights", weights, names)
        except MixcoreError as e:
            unknown = [k for k in weights if k not in names] if isinstance(weights, dict) else []
            hint = closest(unknown[0], names) if unknown else ""
            check.add(f"{path}.weights", f"{e}{hint}")
    return body


def _method(check: Problems, value: object) -> MethodConfig | None:
    keys = (*(k for k in value if isinstance(k, str)), "name") if isinstance(value, dict) else ()
    body = check.mapping("method", value, keys)  # options are the method's own, so any name will do
    if body is None:
        return None
    name = None
    if not body.get("name"):
        check.add("method", "method.name is missing")
    else:
        name = check.call("method.name", _checks.text, body["name"])
    numbers: dict[str, int | None] = {}
    for key, low in (("update_every", 1), ("lag_steps", 0)):
        if body.get(key) is not None:
            numbers[key] = check.call(f"method.{key}", whole_number, body[key], low, MAX_BATCH)
    options = {k: v for k, v in body.items() if k not in ("name", "update_every", "lag_steps")}
    return MethodConfig(name or "", options=options, **numbers)


def _guards(check: Problems, value: object, num_domains: int) -> Guards | None:
    body = check.mapping("guards", value, GUARD_KEYS)
    if body is None:
        return None
    numbers: dict[str, float | None] = {}
    for key in GUARD_KEYS:
        if body.get(key) is not None:
            numbers[key] = check.call(f"guards.{key}", _checks._number, body[key])
    floor = numbers.get("floor")
    if floor is not None and floor * num_domains > 1:
        check.add(
            "guards.floor",
            f"guards.floor must be at most 1 / {num_domains} (the domains), got {floor}",
        )
    return Guards(**numbers)
