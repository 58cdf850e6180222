"""`schedule`, `method` and `guards` of a configuration, checked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixcore import _checks
from mixcore._checks import MAX_BATCH
from mixcore._problems import Problems, closest, shown, whole_number
from mixcore.domains import Domain
from mixcore.errors import ArgumentError, MixcoreError
from mixcore.groups import Tree
from mixcore.schedule import KINDS, UNITS, Schedule, resolve, schedule_from

if TYPE_CHECKING:
    from mixcore.methods.base import Method

SCHEDULE_KEYS = ("kind", "points", "unit", "every")
POINT_KEYS = ("at", "weights", "batch_size")
GUARD_KEYS = ("floor", "max_change", "repeat_cap")
RUN_KEYS = ("name", "update_every", "lag_steps")  # of `method`; all others are its options


def check_schedule(
    check: Problems,
    value: object,
    names: list[str] | None,
    tokens_per_sample: int | None,
    order: str | None,
    tree: Tree,
) -> Schedule | None:
    """The schedule, or None and problems; it speaks of groups, the result of their domains."""
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
    tops = tree.names if names is not None and tree.nested else names
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


def check_method(
    check: Problems, value: object, domains: Sequence[Domain] | None
) -> tuple[dict[str, Any] | None, "Method | None"]:
    """The arguments of a MethodConfig, and the method, built once to see whether it can be.

    Args:
        check: Gets the problems.
        value: The mapping.
        domains: What it is for; None if they are wrong: the method is then not built.
    """
    from mixcore.methods import method_names, method_options  # here: only some need it

    if not isinstance(value, dict):
        check.mapping("method", value, ())
        return None, None
    name = None
    if not value.get("name"):
        check.add("method", "method.name is missing")
    else:
        name = check.call("method.name", _checks.text, value["name"])
    made: dict[str, Any] = {"name": name}
    for key, low in (("update_every", 1), ("lag_steps", 0)):
        if value.get(key) is not None:
            made[key] = check.call(f"method.{key}", whole_number, value[key], low, MAX_BATCH)
    given = made["options"] = {k: v for k, v in value.items() if k not in RUN_KEYS}
    if name is None:
        return made, None
    names = method_names()
    if name not in names:
        text = f"no method is named {name!r}{closest(name, names)}; known: {', '.join(names)}"
        check.add("method.name", f"method.name: {text}")
        return made, None
    known = method_options(name)
    unknown = [option for option in given if option not in known]
    for option in unknown:
        check.unknown(f"method.{option}", option, given[option], [*RUN_KEYS, *known])
    if unknown or domains is None:
        return made, None
    return made, _built(check, name, domains, given)


def _built(
    check: Problems, name: str, domains: Sequence[Domain], options: dict[str, Any]
) -> "Method | None":
    from mixcore.methods import method

    try:
        return method(name, domains=domains, **options)
    except MixcoreError as e:
        text = str(e)
        blamed = [o for o in options if text.startswith((f"{o} ", f"{o}[", f"{o}."))]
        path = f"method.{max(blamed, key=len)}" if blamed else "method"
        check.add(path, f"method.{text}" if blamed else f"method: {text}")
        return None


def check_guards(check: Problems, value: object, num_domains: int) -> dict[str, Any] | None:
    """The arguments of Guards, or None and problems."""
    body = check.mapping("guards", value, GUARD_KEYS)
    if body is None:
        return None
    numbers: dict[str, float | None] = {}
    for key in GUARD_KEYS:
        if body.get(key) is not None:
            numbers[key] = check.call(f"guards.{key}", _checks._number, body[key])
    floor = numbers.get("floor")
    if floor is not None and num_domains and floor * num_domains > 1:
        check.add(
            "guards.floor",
            f"guards.floor must be at most 1 / {num_domains} (the domains), got {floor}",
        )
    return numbers
