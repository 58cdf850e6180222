"""Guards: limits on what any method may decide, applied one after the other; the last one wins.

A guard is a callable `(weights, moment) -> weights`, float64[D] on the simplex both ways. Those of
a `mix.yaml` come in the order floor, max_change, repeat_cap: data that is not there cannot be
drawn, so the cap has the last word.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_POSITION, choice, integer
from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods.base import log, normalise, number

if TYPE_CHECKING:
    from mixcore.config import Guards as GuardConfig

Floats = npt.NDArray[np.float64]
TINY = 1e-290  # weights below count as 0, so that nothing overflows when divided by them


@dataclass(frozen=True)
class Moment:
    """What a guard may look at.

    Attributes:
        step: Step at which the decision is made.
        position: Where it takes effect.
        weights: float64[D], in force there if nothing is decided.
        initial: float64[D], the weights with which the controller began.
        domains: D of them.
        drawn: int64[D], samples drawn of each domain below `position`.
        remaining: Samples from `position` to the end of the run; None if the end is not known.
        notes: A guard that cannot keep its promise says so here.
    """

    step: int
    position: int
    weights: Floats
    initial: Floats
    domains: tuple[Domain, ...]
    drawn: npt.NDArray[np.int64]
    remaining: int | None
    notes: list[str] = field(default_factory=list)


Guard = Callable[[Floats, Moment], Floats]


@dataclass(frozen=True)
class Floor:
    """No weight below `value`.

    Example:
        >>> Floor(0.01)(weights, moment)

    kind "uniform" mixes with uniform, (1 - c) p + c / D with c = D value (as in DoReMi, EXP3):
    every weight moves a little, ratios shrink. "exact" is the nearest point with no weight below,
    in the sense of KL(p || weights): p_i = max(k weights_i, value), ratios above the floor stay.
    """

    value: float
    kind: str = "uniform"

    def __post_init__(self) -> None:
        number("floor", self.value, 0, 1)
        choice("floor.kind", self.kind, ("uniform", "exact"))

    def __call__(self, weights: Floats, moment: Moment) -> Floats:
        """The weights, none below the floor."""
        num = len(weights)
        if self.value * num > 1:
            raise ArgumentError(f"floor must be at most 1 / {num} (the domains), got {self.value}")
        if self.kind == "exact":
            return fit(weights, np.full(num, self.value), np.ones(num))
        c = self.value * num
        mixed: Floats = (1 - c) * weights + c / num
        return mixed


@dataclass(frozen=True)
class MaxChange:
    """|log p_i - log q_i| <= value, q being the weights in force: exact, after normalisation.

    p_i = clip(k w_i, q_i exp(-value), q_i exp(value)) with the k that gives the sum 1: the nearest
    such point, ratios inside the bounds stay. A domain at 0 has no logarithm and is not bound.
    """

    value: float

    def __post_init__(self) -> None:
        number("max_change", self.value, 0, above=True)

    def __call__(self, weights: Floats, moment: Moment) -> Floats:
        """The weights, near enough to those in force."""
        q = moment.weights
        low, high = q * np.exp(-self.value), np.minimum(q * np.exp(self.value), 1.0)
        return fit(weights, low, np.where(q > 0, high, 1.0))


@dataclass(frozen=True)
class RepeatCap:
    """Never ask for more than is left: p_i <= left_i / remaining, by water-filling.

    left_i = min(epochs * size_i, cap_i) - drawn_i, at the position where the decision takes effect;
    what is cut off goes to the others in proportion to their weights. Open-ended domains have no
    limit. Where all that is left is less than the run still needs, weights are in proportion to
    what is left, and the decision says so.

    Args:
        epochs: Most passes over any one domain in the whole run.
    """

    epochs: float

    def __post_init__(self) -> None:
        number("repeat_cap", self.epochs, 0, above=True)

    def __call__(self, weights: Floats, moment: Moment) -> Floats:
        """The weights, within what is left."""
        if moment.remaining is None:
            raise ArgumentError(f"repeat_cap={self.epochs:g} needs the controller's train_samples")
        if moment.remaining == 0:
            return weights
        left = self.most(moment.domains) - moment.drawn
        limits = np.maximum(left, 0) / moment.remaining
        if limits.sum() >= 1:
            return fit(weights, np.zeros(len(weights)), np.minimum(limits, 1.0))
        moment.notes.append(
            f"repeat_cap={self.epochs:g} leaves {int(np.maximum(left, 0).sum())} samples for the "
            f"{moment.remaining} still to come"
        )
        return normalise(limits) if limits.any() else weights

    def most(self, domains: Sequence[Domain]) -> Floats:
        """Most draws of each domain in the whole run; inf for an open-ended one."""
        most = [np.inf if d.size is None else np.floor(self.epochs * d.size) for d in domains]
        caps = [np.inf if d.cap is None else d.cap for d in domains]
        return np.minimum(most, caps)


@dataclass(frozen=True)
class WarmUp:
    """Keep the initial weights for `hold` steps, then go over to the method's within `ramp` steps.

    p = (1 - a) initial + a weights, a = 0 up to step `hold`, 1 from step `hold + ramp` on, linear
    between. The method is asked and learns all the while.
    """

    hold: int
    ramp: int = 0

    def __post_init__(self) -> None:
        integer("hold", self.hold, 0, MAX_POSITION)
        integer("ramp", self.ramp, 0, MAX_POSITION)

    def __call__(self, weights: Floats, moment: Moment) -> Floats:
        """The initial weights, or a blend, or the weights."""
        if moment.step <= self.hold and (moment.step < self.hold or self.ramp):
            return moment.initial
        if moment.step >= self.hold + self.ramp:
            return weights
        a = (moment.step - self.hold) / self.ramp
        blend: Floats = (1 - a) * moment.initial + a * weights
        return blend


@dataclass(frozen=True)
class Quantise:
    """Multiples of 1 / levels, by largest remainder; a change too small to see makes no decision.

    A weight above 0 stays above 0: it gets at least 1 / levels.
    """

    levels: int

    def __post_init__(self) -> None:
        integer("levels", self.levels, 1, 1 << 31)

    def __call__(self, weights: Floats, moment: Moment) -> Floats:
        """The weights, rounded."""
        positive = weights > 0
        if positive.sum() > self.levels:
            raise ArgumentError(
                f"levels must be at least {positive.sum()}, one a domain, got {self.levels}"
            )
        target = weights * self.levels
        units = np.where(positive, np.maximum(np.floor(target), 1), 0)
        while (owed := int(self.levels - units.sum())) != 0:
            # Each round moves one unit of as many domains as it takes, those that are furthest off;
            # ties go to the lower domain number.
            error = target - units
            can = positive if owed > 0 else units > 1
            order = np.argsort(np.where(can, -error if owed > 0 else error, np.inf), kind="stable")
            units[order[: min(abs(owed), int(can.sum()))]] += np.sign(owed)
        quantised: Floats = units / self.levels
        return quantised


def fit(weights: Floats, low: Floats, high: Floats) -> Floats:
    """The p with low <= p <= high and sum 1 that is nearest to weights in KL(p || weights).

    p_i = clip(k w_i, low_i, high_i); the sum grows with k, piecewise linearly, so k is found
    exactly from the sorted corners: O(D log D). Domains of weight 0 get something only where there
    is no other way, in proportion to high - low.

    Raises:
        ArgumentError: No such p: sum of low > 1 or sum of high < 1.
    """
    if low.sum() > 1 + 1e-9 or high.sum() < 1 - 1e-9 or (low > high).any():
        raise ArgumentError(
            f"no weights lie between low and high: their sums are {low.sum()} and {high.sum()}"
        )
    zero = weights < TINY
    reach = float(np.where(zero, low, high).sum())
    if reach <= 1:  # the others are full: what is missing goes to domains that asked for nothing
        p = np.where(zero, low, high)
        room = np.where(zero, high - low, 0.0)
        if room.sum() > 0:
            p = p + room * ((1 - reach) / room.sum())
        return normalise(p)
    w, base = weights[~zero], float(low[zero].sum())
    lows, highs = low[~zero] / w, high[~zero] / w  # k at which each leaves low, and reaches high
    corners = np.sort(np.concatenate([[0.0], lows, highs]))

    def total(k: float) -> float:
        return base + float(np.clip(k * w, low[~zero], high[~zero]).sum())

    at = bisect_right(corners, 1.0, key=total) - 1  # the last corner with a sum <= 1
    k = corners[max(at, 0)]
    inside = (lows <= k) & (k < highs)  # these grow with k, the others do not
    if inside.any():
        k += (1 - total(k)) / w[inside].sum()
    return normalise(np.where(zero, low, np.clip(k * weights, low, high)))


def change(before: Floats, after: Floats) -> float:
    """Largest |change of log weight|; inf where a weight comes from or goes to 0."""
    with np.errstate(invalid="ignore"):
        moved = np.abs(log(after) - log(before))
    return float(np.nanmax(moved)) if not np.isnan(moved).all() else 0.0


def guards_from(config: "GuardConfig") -> tuple[Guard, ...]:
    """The guards of a `mix.yaml`, in their order.

    Example:
        >>> Controller(ledger, method, guards=guards_from(load_config("mix.yaml").guards))
    """
    made: list[Guard] = []
    if config.floor is not None:
        made.append(Floor(config.floor))
    if config.max_change is not None:
        made.append(MaxChange(config.max_change))
    if config.repeat_cap is not None:
        made.append(RepeatCap(config.repeat_cap))
    return tuple(made)
