"""Weights that follow a plan: by step, by tokens, or stage by stage as the loss stops falling."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.methods import register
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    choice,
    normalise,
    number,
    per_domain,
    whole,
)
from mixcore.signals import Signals

KINDS = ("piecewise", "linear", "cosine")
UNITS = ("step", "tokens", "loss_plateau")


@register
class ScheduleMethod(Method):
    """A plan made by a person, evaluated at every update.

    Example:
        >>> method("schedule", domains=domains, kind="cosine",
        ...        points=[(0, [0.9, 0.1]), (1_000, [0.5, 0.5])])

    With x the steps done (by="step") or the tokens trained on (by="tokens"), x_k and w_k the
    points, and u = (x - x_k) / (x_{k+1} - x_k) between two of them:

        piecewise   w_k
        linear      (1 - u) w_k + u w_{k+1}
        cosine      the same with (1 - cos(pi u)) / 2 for u

    Before the first point and after the last one its weights stay. With by="loss_plateau" points
    are weights alone, one a stage: the run's mean loss per token is smoothed,
    l <- s l + (1 - s) loss, and after `patience` updates in which l did not fall below its least
    value by `min_delta`, the next stage begins (and the least value is forgotten).

    A schedule known to the sample is better given to the ledger itself (`Ledger(schedule=)`): it
    needs no controller, no lag, and holds before the first update.

    Args:
        domains: What the weights are for.
        points: `(x, weights)`, ascending; for loss_plateau a list of weights.
        kind: How to go from one point to the next; loss_plateau is always piecewise.
        by: What x is.
        patience: Updates without improvement that make a plateau.
        min_delta: An improvement is more than that, nats per token.
        smoothing: s, 0 (none) up to but not including 1.
    """

    name = "schedule"
    family = "static rule"
    paper = "common practice (curricula, annealing); no single source"
    update_every = None
    state_fields = ("tokens", "stage", "smoothed", "least", "waited")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        points: Sequence[Any],
        kind: str = "piecewise",
        by: str = "step",
        patience: int = 10,
        min_delta: float = 0.0,
        smoothing: float = 0.9,
    ) -> None:
        super().__init__(domains)
        self.kind = choice("kind", kind, KINDS)
        self.by = choice("by", by, UNITS)
        self.patience = whole("patience", patience, 1)
        self.min_delta = number("min_delta", min_delta, 0)
        self.smoothing = number("smoothing", smoothing, 0, 1)
        if self.smoothing == 1:
            raise ArgumentError("smoothing must be below 1, got 1.0: nothing would be taken in")
        if isinstance(points, (str, Mapping)) or not isinstance(points, Sequence) or not points:
            raise ArgumentTypeError(
                f"points must be a list with at least one entry, got {points!r}"
            )
        self.at: list[float] = []
        self.plan: list[Floats] = []
        for i, point in enumerate(points):
            self._add(i, point)
        if by == "loss_plateau" and kind != "piecewise":
            raise ArgumentError(f"kind must be 'piecewise' by loss_plateau, got {kind!r}")
        self.needs = {"step": (), "tokens": ("tokens",)}.get(by, ("loss_sum", "tokens"))
        self.tokens = 0
        self.stage = 0
        self.smoothed: float | None = None
        self.least: float | None = None
        self.waited = 0
        self._weights = self.plan[0]

    def _add(self, i: int, point: Any) -> None:
        where = f"points[{i}]"
        weights: Weights = point
        if self.by != "loss_plateau":
            if isinstance(point, (str, Mapping)) or not hasattr(point, "__len__"):
                raise ArgumentTypeError(f"{where} must be (at, weights), got {point!r}")
            if len(point) != 2:
                raise ArgumentError(f"{where} must be (at, weights), got {point!r}")
            at, weights = point
            self.at.append(number(f"{where}.at", at, 0))
            if i and self.at[-1] <= self.at[-2]:
                raise ArgumentError(f"{where}.at must be greater than {self.at[-2]:g}, got {at}")
        self.plan.append(normalise(per_domain(f"{where}.weights", weights, self.domains)))

    def _update(self, signals: Signals) -> Floats:
        if self.by == "loss_plateau":
            return self._staged(signals)
        x = signals.step
        if self.by == "tokens":
            self.tokens += int(signals.tokens.sum())
            x = self.tokens
        k = bisect_right(self.at, x) - 1
        if k < 0 or k + 1 == len(self.at) or self.kind == "piecewise":
            return self.plan[max(k, 0)]
        u = (x - self.at[k]) / (self.at[k + 1] - self.at[k])
        if self.kind == "cosine":
            u = (1 - math.cos(math.pi * u)) / 2
        return (1 - u) * self.plan[k] + u * self.plan[k + 1]

    def _staged(self, signals: Signals) -> Floats:
        seen = signals.tokens > 0
        if seen.any():
            mean = float(np.sum(signals.loss_sum[seen]) / np.sum(signals.tokens[seen]))
            before = mean if self.smoothed is None else self.smoothed
            self.smoothed = self.smoothing * before + (1 - self.smoothing) * mean
            if self.least is None or self.smoothed < self.least - self.min_delta:
                self.least, self.waited = self.smoothed, 0
            else:
                self.waited += 1
            if self.waited >= self.patience and self.stage + 1 < len(self.plan):
                self.stage, self.waited, self.least = self.stage + 1, 0, None
        return self.plan[self.stage]
