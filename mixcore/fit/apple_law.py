"""Scaling laws for optimal data mixtures (Apple): additive, and joint in mixture and scale."""

from typing import Any

import numpy as np

from mixcore.fit import register
from mixcore.fit._least_squares import least_squares, positive_losses
from mixcore.fit.base import RunsFitter
from mixcore.fit.law import Law, TooFewRunsError
from mixcore.fit.runs import Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.methods.base import choice, number, whole

TINY = 1e-12


class MixtureScaleLaw(Law):
    """E + 1 / sum_i C_i h_i^g_i + A(h) / N^alpha + B(h) / D^beta, N and D in units.

    Additive: A and B are numbers. Joint: A(h) = (sum_i a_i h_i)^gA, B(h) alike.

    Attributes:
        joint: Which of the two.
        law: All parameters, flat: see `unpacked`.
        units: Of N and D.
    """

    def __init__(self, law: Floats, num: int, joint: bool, units: tuple[float, float]) -> None:
        self.law, self.num, self.joint, self.units = law, num, joint, units
        # 1 / (a concave, positive sum) is convex; A(h)^g is for g >= 1 or where it is constant.
        _, g = self.mixing()
        self.curvature = "convex" if not joint and (g <= 1).all() else ""

    def mixing(self) -> tuple[Floats, Floats]:
        """C and g."""
        return np.exp(self.law[1 : 1 + self.num]), self.law[1 + self.num : 1 + 2 * self.num]

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The loss."""
        n = np.asarray(self.params if params is None else params, dtype=np.float64)
        d = np.asarray(self.tokens if tokens is None else tokens, dtype=np.float64)
        return predicted(self.law, weights, n / self.units[0], d / self.units[1], self.joint)

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """The loss and its derivatives by the weights."""
        assert self.params is not None, "set when the law is made"
        assert self.tokens is not None, "set when the law is made"
        h = np.maximum(weights, TINY)
        c, g = self.mixing()
        total = float((c * h**g).sum())
        gradient = -c * g * h ** (g - 1) / total**2
        if self.joint:
            for place, at in enumerate((self.params / self.units[0], self.tokens / self.units[1])):
                factors, power, exponent = scale_part(self.law, self.num, place, True)
                inner = float(factors @ h)
                gradient = gradient + power * inner ** (power - 1) * factors * at**-exponent
        value = float(self.predict(weights[None])[0])
        return value, gradient

    def parameters(self) -> dict[str, Any]:
        """By name; A and B belong to N and D in the units."""
        c, g = self.mixing()
        made: dict[str, Any] = {"E": float(self.law[0]), "C": c.tolist(), "gamma": g.tolist()}
        for place, name in enumerate("AB"):
            factors, power, exponent = scale_part(self.law, self.num, place, self.joint)
            made[name] = {
                "factors": factors.tolist(),
                "power": power,
                "exponent": exponent,
                "unit": self.units[place],
            }
        return made


def scale_part(law: Floats, num: int, place: int, joint: bool) -> tuple[Floats, float, float]:
    """Factors, the power of their sum, and the exponent of N (place 0) or D (1)."""
    if joint:
        start = 1 + 2 * num + place * (num + 2)
        return (
            np.exp(law[start : start + num]),
            float(law[start + num]),
            float(law[start + num + 1]),
        )
    start = 1 + 2 * num + place * 2
    return np.exp(law[start : start + 1]), 1.0, float(law[start + 1])


def predicted(law: Floats, weights: Floats, n: Floats, d: Floats, joint: bool) -> Floats:
    """The law at mixtures."""
    num = weights.shape[1]
    h = np.maximum(weights, TINY)
    mixed = (np.exp(law[1 : 1 + num]) * h ** law[1 + num : 1 + 2 * num]).sum(axis=1)
    total = law[0] + 1 / mixed
    for place, axis in enumerate((n, d)):
        factors, power, exponent = scale_part(law, num, place, joint)
        head = (h @ factors) ** power if joint else factors[0]
        total = total + head * axis**-exponent
    return np.asarray(total)


@register
class AppleLaw(RunsFitter):
    """Laws of model size N, tokens D and mixture h, from a few small runs.

    "additive": L = E + 1 / sum_i C_i h_i^g_i + A / N^alpha + B / D^beta; the optimum does not
    depend on N and D. "joint": A(h) = (sum_i a_i h_i)^gA and B(h) alike; the optimum moves with
    scale, and the paper finds it to fit better. Without several `params` (or `tokens`) the term of
    N (or D) is constant and part of E.

    The form of A(h) and the fit (Huber, many starts) are second-hand: the paper's text was not at
    hand. g_i is kept in (0, 3]. With g_i <= 1 the additive law is convex and the optimum exact.

    Args:
        variant: "additive" or "joint".
        params: Model size the law is read at; None: the largest of the runs. (Tokens: the budget.)
        huber_delta: In the loss's unit.
        starts: Random starts.
    """

    name = "apple_law"
    paper = "Shukor, Bethune, Busbridge et al. 2025, 2507.09404"
    tractable = "one closed law of size, tokens and mixture; its minimum at the target scale"
    axes = ("tokens", "params")

    def __init__(
        self,
        *,
        variant: str = "additive",
        params: float | None = None,
        huber_delta: float = 1e-3,
        starts: int = 12,
    ) -> None:
        super().__init__()
        self.joint = choice("variant", variant, ("additive", "joint")) == "joint"
        self.params = None if params is None else number("params", params, 0, above=True)
        self.huber_delta = number("huber_delta", huber_delta, 0, above=True)
        self.starts = whole("starts", starts, 1, 10_000)

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """Fit one loss."""
        y = positive_losses(runs, column, self.name)
        num = len(runs.domains)
        axes = [runs.params, runs.tokens]
        several = [a is not None and len(np.unique(a)) > 1 for a in axes]
        units = [1.0 if a is None else float(np.exp(np.log(a).mean())) for a in axes]
        n, d = (
            np.ones(len(runs)) if a is None else a / u for a, u in zip(axes, units, strict=True)
        )
        per_axis = num + 2 if self.joint else 2
        needed = 1 + 2 * num + per_axis * sum(several)
        if len(runs) <= needed:
            raise TooFewRunsError(
                f"{runs.file} has {len(runs)} runs to fit {needed} parameters of {column!r}"
            )
        low, high, starts = self._bounds(y, num, several, task.seed)

        def residuals(law: Floats) -> Floats:
            return predicted(law, runs.weights, n, d, self.joint) - y

        law = least_squares(
            residuals, None, starts, low, high, huber_delta=self.huber_delta, evaluations=400
        )
        made = MixtureScaleLaw(law, num, self.joint, (units[0], units[1]))
        largest = [u if a is None else float(a.max()) for a, u in zip(axes, units, strict=True)]
        return made.at(task.budget or largest[1], self.params or largest[0])

    def _bounds(
        self, y: Floats, num: int, several: list[bool], seed: int
    ) -> tuple[Floats, Floats, list[Floats]]:
        """Bounds of the flat parameters, and starts inside them."""
        least, spread = float(y.min()), max(float(np.ptp(y)), 1e-9)
        low, high = [0.0] + [-30.0] * num + [1e-3] * num, [least] + [30.0] * num + [3.0] * num
        for varies in several:
            factors = num if self.joint else 1
            low += [-30.0 if varies else -60.0] * factors  # exp(-60): nothing
            high += [30.0 if varies else -59.0] * factors
            if self.joint:
                low.append(1e-3 if varies else 1.0)
                high.append(5.0 if varies else 1.0 + 1e-9)
            low.append(1e-3 if varies else 0.0)
            high.append(3.0 if varies else 1e-9)
        bottom, top = np.array(low), np.array(high)
        rng = np.random.default_rng(seed)
        starts = []
        for _ in range(self.starts):
            parts = [[rng.uniform(0.0, least)]]
            parts.append((np.log(1 / spread) + rng.normal(0, 1, num)).tolist())
            parts.append(rng.uniform(0.1, 1.0, num).tolist())
            for _ in several:
                level = np.log(spread) + rng.normal(0, 1)
                if self.joint:
                    parts.append([*(level + rng.normal(0, 0.3, num)).tolist(), 1.0])
                else:
                    parts.append([level])
                parts.append([rng.uniform(0.1, 0.8)])
            flat = np.array([v for part in parts for v in part])
            starts.append(np.clip(flat, bottom, top))
        return bottom, top, starts
