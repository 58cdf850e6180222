"""Schedules known in advance: weights (and batch sizes) as a function of position."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore import _core
from mixcore._checks import MAX_BATCH, MAX_POSITION, choice, integer, weights
from mixcore.errors import ArgumentError, ArgumentTypeError

Shares = npt.NDArray[np.uint64]
Weights = Mapping[str, float] | Sequence[float] | npt.NDArray[np.float64]
KINDS = ("piecewise", "linear")
UNITS = ("positions", "tokens")


@dataclass(frozen=True)
class Point:
    """From `at` on (or, in a linear schedule, exactly at `at`): these weights, this batch size."""

    at: int
    weights: Weights | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Schedule:
    """Weights known in advance; build one with `piecewise`, `linear` or `schedule_from`.

    Attributes:
        kind: "piecewise" (constant from each point on) or "linear" (interpolated between points,
            evaluated every `every` steps, constant after the last point).
        points: In ascending order of `at`.
        unit: "positions" (samples) or "tokens"; tokens need the ledger's tokens_per_sample.
        every: Steps between two evaluations of a linear schedule.
    """

    kind: str
    points: tuple[Point, ...]
    unit: str = "positions"
    every: int = 100

    def __post_init__(self) -> None:
        choice("schedule.kind", self.kind, KINDS)
        choice("schedule.unit", self.unit, UNITS)
        every = integer("schedule.every", self.every, 1, MAX_BATCH)
        object.__setattr__(self, "every", every)
        if not self.points:
            raise ArgumentError("schedule.points must not be empty")
        last, points = -1, []
        for i, p in enumerate(self.points):
            where = f"schedule.points[{i}]"
            at, size = integer(f"{where}.at", p.at, 0, 1 << 62), p.batch_size
            if at <= last:
                raise ArgumentError(f"{where}.at must be greater than {last}, got {at}")
            last = at
            if size is not None:
                size = integer(f"{where}.batch_size", size, 1, MAX_BATCH)
            points.append(Point(at, p.weights, size))
            if p.weights is None and (p.batch_size is None or self.kind == "linear"):
                raise ArgumentError(f"{where} needs weights")
            if p.batch_size is not None and self.kind == "linear":
                raise ArgumentError(f"{where}.batch_size is for piecewise schedules only")
        object.__setattr__(self, "points", tuple(points))


def piecewise(points: Sequence[Any], *, unit: str = "positions") -> Schedule:
    """Constant weights from each point on.

    Example:
        >>> schedule = piecewise([(0, [0.7, 0.3]), (1_000_000, [0.5, 0.5])])

    Args:
        points: `(at, weights)` or `(at, weights, batch_size)`, ascending; weights None keeps
            those in force.
        unit: Unit of `at`: "positions" (samples) or "tokens".
    """
    return Schedule("piecewise", _points(points), unit)


def linear(points: Sequence[Any], *, every: int = 100, unit: str = "positions") -> Schedule:
    """Weights interpolated linearly between points, in integer shares, every `every` steps.

    Example:
        >>> schedule = linear([(0, [0.9, 0.1]), (1_000_000, [0.5, 0.5])], every=50)
    """
    return Schedule("linear", _points(points), unit, every)


def _points(points: Sequence[Any]) -> tuple[Point, ...]:
    if isinstance(points, str) or not isinstance(points, Sequence):
        raise ArgumentTypeError(f"schedule.points must be a list, got {points!r}")
    made = []
    for i, p in enumerate(points):
        if isinstance(p, Point):
            made.append(p)
        elif isinstance(p, Mapping):
            unknown = set(p) - {"at", "weights", "batch_size"}
            if unknown or "at" not in p:
                raise ArgumentError(
                    f"schedule.points[{i}] must have the keys at, weights, batch_size, "
                    f"got {dict(p)}"
                )
            made.append(Point(**p))
        elif isinstance(p, Sequence) and not isinstance(p, str) and 2 <= len(p) <= 3:
            made.append(Point(*p))
        else:
            raise ArgumentTypeError(f"schedule.points[{i}] must be (at, weights), got {p!r}")
    return tuple(made)


def schedule_from(value: object) -> Schedule:
    """A Schedule from itself, from `{kind, points, unit, every}` or from a list of points."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        unknown = set(value) - {"kind", "points", "unit", "every"}
        if unknown:
            raise ArgumentError(
                f"schedule has unknown keys {sorted(unknown, key=repr)}; "
                "known: kind, points, unit, every"
            )
        rest = {k: value[k] for k in ("unit", "every") if k in value}
        return Schedule(value.get("kind", "piecewise"), _points(value.get("points", ())), **rest)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return piecewise(value)
    raise ArgumentTypeError(f"schedule must be a Schedule, a mapping or a list, got {value!r}")


@dataclass(frozen=True, eq=False)
class Step:
    """One point of a schedule that a ledger has resolved: position, shares, batch size."""

    position: int
    shares: Shares | None
    floats: npt.NDArray[np.float64] | None
    batch_size: int | None


@dataclass(frozen=True, eq=False)
class ResolvedSchedule:
    """A schedule in integers: what a ledger stores. Floats are kept for order megatron alone."""

    kind: str
    every: int
    steps: tuple[Step, ...]

    def expand(self, start: int, batch_size: int) -> Iterator[Step]:
        """Yield the steps with their effective positions, rounded up to batch boundaries.

        Args:
            start: A batch boundary, the position from which the schedule is in force.
            batch_size: In force at start.

        Raises:
            ValueError: A point's batch boundary lies beyond the last position.
        """
        origin, batch = start, batch_size
        for i, step in enumerate(self.steps):
            origin = boundary(origin, batch, step.position)
            where = f"schedule.points[{i}].at, rounded up to a batch boundary,"
            integer(where, origin, 0, MAX_POSITION - 1)
            yield Step(origin, step.shares, step.floats, step.batch_size)
            batch = step.batch_size or batch
            if self.kind == "piecewise" or i + 1 == len(self.steps):
                continue
            after = self.steps[i + 1]
            if step.shares is None or after.shares is None:
                raise ArgumentError("a linear schedule needs weights at every point")
            span = after.position - step.position
            position = origin + self.every * batch
            while position < after.position:
                done = position - step.position
                shares = _core.interpolate_shares(step.shares, after.shares, done, span)
                floats = None
                if step.floats is not None and after.floats is not None:
                    floats = step.floats + (after.floats - step.floats) * (done / span)
                yield Step(position, shares, floats, None)
                position += self.every * batch


def boundary(origin: int, batch_size: int, position: int) -> int:
    """The first batch boundary at or after position, counted from origin; none lies before it."""
    return origin + max(0, -(-(position - origin) // batch_size)) * batch_size


def resolve(
    schedule: Schedule, domains: Sequence[str], tokens_per_sample: int | None, order: str
) -> ResolvedSchedule:
    """Turn a schedule's weights and tokens into shares and positions."""
    if schedule.unit == "tokens" and tokens_per_sample is None:
        raise ArgumentError("schedule.unit 'tokens' needs the ledger's tokens_per_sample")
    steps = []
    for i, p in enumerate(schedule.points):
        where = f"schedule.points[{i}]"
        per_sample = tokens_per_sample if schedule.unit == "tokens" else None
        position = -(-p.at // per_sample) if per_sample else p.at
        integer(f"{where}.at", position, 0, MAX_POSITION - 1)
        shares = floats = None
        if p.weights is not None:
            floats = weights(f"{where}.weights", p.weights, domains)
            shares = _core.shares(floats)
            floats = megatron_normalise(floats) if order == "megatron" else None
        steps.append(Step(position, shares, floats, p.batch_size))
    return ResolvedSchedule(schedule.kind, schedule.every, tuple(steps))


def megatron_normalise(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Divide by the sum twice, as Megatron's dataset builder and then its BlendedDataset do."""
    with np.errstate(over="ignore"):
        total = np.sum(values)
    if not np.isfinite(total):
        raise ArgumentError(
            f"weights must have a finite sum in order 'megatron', got {values.tolist()}"
        )
    once = values / total
    return once / np.sum(once)
