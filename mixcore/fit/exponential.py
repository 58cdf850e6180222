"""The law outcome = c + sum_h exp(t_h . p), which Data Mixing Laws and Olmix share."""

from typing import Any

import numpy as np

from mixcore.fit._least_squares import least_squares
from mixcore.fit.law import Law
from mixcore.fit.runs import METRIC
from mixcore.fit.table import Floats

FLOORS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99)  # c to start from, as a part of the least outcome


class ExponentialLaw(Law):
    """sign (c + sum_h exp(t_h . p)); sign -1 for a metric, which is better the higher.

    The papers' factor k in c + k exp(t . p) is in t: as the p sum to 1, k only adds log k to all t.

    Attributes:
        floor: c.
        slopes: t, float64[H, D].
        sign: 1 or -1.
    """

    def __init__(self, floor: float, slopes: Floats, sign: float = 1.0) -> None:
        self.floor, self.slopes, self.sign = floor, slopes, sign
        self.curvature = "convex" if sign > 0 else "concave"

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The outcome at mixtures."""
        result: Floats = self.sign * (self.floor + np.exp(weights @ self.slopes.T).sum(axis=1))
        return result

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """The outcome and its derivatives."""
        parts = np.exp(self.slopes @ weights)
        value = self.sign * (self.floor + float(parts.sum()))
        return value, np.asarray(self.sign * (parts @ self.slopes))

    def parameters(self) -> dict[str, Any]:
        """C and t."""
        return {"floor": self.floor, "slopes": self.slopes.tolist(), "sign": self.sign}


def fit_exponential(
    weights: Floats,
    outcome: Floats,
    column: str,
    *,
    hidden: int = 1,
    huber_delta: float,
    restarts: int = 8,
    seed: int = 0,
) -> ExponentialLaw:
    """Fit by Huber loss on the outcome itself, c >= 0 for losses.

    Fitting log(outcome - c) would be ill posed: it weighs runs by how near they come to c.

    Args:
        weights: float64[R, D].
        outcome: float64[R].
        column: Its name; a metric's sign is turned, and its c is free below.
        hidden: H, exponentials that are summed (validation sets of unknown composition).
        huber_delta: Where Huber's loss turns linear, in the outcome's unit.
        restarts: Random splits that H > 1 starts from.
        seed: Of those.
    """
    sign = -1.0 if column.startswith(METRIC) else 1.0
    y = sign * outcome
    least, spread = float(y.min()), max(float(np.ptp(y)), 1e-12)
    bottom = 0.0 if sign > 0 and least > 0 else -np.inf
    # Noise puts runs below c. On the published RegMix runs a bound at the least outcome costs rank
    # correlation at every scale.
    ceiling = float(y.max())
    if bottom == 0.0:
        floors = [f * least for f in FLOORS] + [max(least - spread / 2, 0.0), least + spread / 10]
    else:
        floors = [least - f * spread for f in (0.01, 0.1, 0.5, 2.0, 10.0)]
    num = weights.shape[1]
    starts = []
    for floor in floors:
        slopes, *_ = np.linalg.lstsq(
            weights, np.log(np.maximum(y - floor, 1e-3 * spread)), rcond=None
        )
        starts.append(np.concatenate([[floor], slopes]))
    law = _solve(weights, y, starts, 1, bottom, ceiling, huber_delta)
    if hidden > 1:
        rng = np.random.default_rng(seed)
        spread_of_slopes = max(float(np.ptp(law[1:])), 0.1)
        starts = []
        for _ in range(restarts):
            noise = rng.normal(0, spread_of_slopes, (hidden, num))
            split = law[1:] - np.log(hidden) + noise - noise.mean(axis=0)
            starts.append(np.concatenate([[law[0]], split.ravel()]))
        law = _solve(weights, y, starts, hidden, bottom, ceiling, huber_delta)
    return ExponentialLaw(float(law[0]), law[1:].reshape(hidden, num), sign)


def _solve(
    weights: Floats,
    y: Floats,
    starts: list[Floats],
    hidden: int,
    bottom: float,
    ceiling: float,
    huber_delta: float,
) -> Floats:
    num = weights.shape[1]

    def residuals(law: Floats) -> Floats:
        parts = np.exp(np.minimum(weights @ law[1:].reshape(hidden, num).T, 300.0))
        return np.asarray(law[0] + parts.sum(axis=1) - y)

    def jacobian(law: Floats) -> Floats:
        parts = np.exp(np.minimum(weights @ law[1:].reshape(hidden, num).T, 300.0))
        slopes = (parts[:, :, None] * weights[:, None, :]).reshape(len(y), -1)
        return np.column_stack([np.ones(len(y)), slopes])

    low = np.full(1 + hidden * num, -np.inf)
    high = np.full(1 + hidden * num, np.inf)
    low[0], high[0] = bottom, max(ceiling, bottom + 1e-300)
    return least_squares(residuals, jacobian, starts, low, high, huber_delta=huber_delta)
