"""BiMix: the loss on a domain is a power law of its own weight and of the steps."""

from typing import Any

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit._least_squares import least_squares, positive_losses
from mixcore.fit.base import RunsFitter
from mixcore.fit.law import Law, TooFewRunsError
from mixcore.fit.propose import Optimum, gap, within
from mixcore.fit.runs import LOSS, Runs
from mixcore.fit.table import Floats, some
from mixcore.fit.task import Task
from mixcore.methods.base import choice, normalise

TINY = 1e-12  # least weight that a power is taken of, as in Olmix's port


class PowersLaw(Law):
    """sum_i F_i(s) p_i^-alpha_i with F_i(s) = B_i / s^beta + C_i; s = tokens.

    Attributes:
        exponents: alpha, float64[D], >= 0.
        falling: B, float64[D]; 0 if the runs were all of one length.
        constant: C, float64[D].
        beta: Exponent of the tokens.
    """

    curvature = "convex"

    def __init__(
        self,
        exponents: Floats,
        constant: Floats,
        falling: Floats | None = None,
        beta: float = 0.0,
        tokens: float | None = None,
    ) -> None:
        self.exponents, self.constant, self.beta = exponents, constant, beta
        self.falling = np.zeros_like(constant) if falling is None else falling
        self.tokens = tokens

    def scale(self, tokens: Floats | float | None = None) -> Floats:
        """F(s): float64[D], or float64[R, D] for several s."""
        if not self.falling.any():
            return self.constant
        s = self.tokens if tokens is None else tokens
        assert s is not None, "a law with steps knows where it is read"
        power: Floats = np.asarray(s, dtype=np.float64)[..., None] ** -self.beta
        return power * self.falling + self.constant

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The outcome at mixtures; a weight of 0 of a domain that matters gives a huge loss."""
        powers = np.maximum(weights, TINY) ** -self.exponents
        result: Floats = (self.scale(tokens) * powers).sum(axis=1)
        return result

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """The outcome and its derivatives."""
        p = np.maximum(weights, TINY)
        terms = self.scale() * p**-self.exponents
        return float(terms.sum()), -self.exponents * terms / p

    def parameters(self) -> dict[str, Any]:
        """alpha, B, C and beta."""
        return {
            "alpha": self.exponents.tolist(),
            "B": self.falling.tolist(),
            "C": self.constant.tolist(),
            "beta": self.beta,
        }


@register
class BiMix(RunsFitter):
    """The loss on a domain as a power law of its own weight and of the trained tokens.

    "paper": L_i(p_i, s) = p_i^-alpha_i (B_i / s^beta_i + C_i), one law for each target
    `loss/<domain>` from that domain's own weight (the paper's A_i is in B_i and C_i; with runs of
    one length F_i p_i^-alpha_i is all that can be known). It needs few runs and sees no transfer.
    "olmix": L = sum_i F_i p_i^-alpha_i, for any validation set, the extension in Olmix's port.

    Both are convex: at the minimum the derivatives by all weights below their cap are equal,
    w_i F_i alpha_i p_i^-(alpha_i + 1) = lambda, and lambda is found by bisection.

    Runs in which a domain has weight 0 say nothing in the law of that domain ("paper"), and are
    clipped to 1e-12 in "olmix", as the port does.

    Args:
        variant: "paper" or "olmix".
    """

    name = "bimix"
    paper = "Ge, Ma, Chen, Li, Ding 2024, 2405.14908"
    tractable = "one power law a domain of its own weight; the minimum by bisection"
    axes: tuple[str, ...] = ("tokens",)

    def __init__(self, *, variant: str = "paper") -> None:
        super().__init__()
        self.variant = choice("variant", variant, ("paper", "olmix"))
        if self.variant == "olmix":
            self.axes = ()

    def least_runs(self, num_domains: int) -> int:
        """Two parameters and one more, of each domain alone or of all."""
        return 3 if self.variant == "paper" else 2 * num_domains + 1

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """Fit one loss."""
        y = positive_losses(runs, column, self.name)
        if self.variant == "olmix":
            return fit_sum(runs.weights, y)
        name = column.removeprefix(LOSS)
        if name not in task.domains:
            raise ArgumentError(
                f"bimix fits the loss on a domain to its own weight, but no domain is named "
                f"{name!r} (variant='olmix' takes any validation set)"
            )
        return fit_own(runs, column, task.domains.index(name), task.budget)

    def propose(self, laws: dict[str, Law], task: Task, runs: Runs) -> Optimum:
        """The minimum, by bisection."""
        terms: list[tuple[float, PowersLaw]] = []
        for column, c in task.target.items():
            law = laws[column]
            assert isinstance(law, PowersLaw), "bimix fits no other"
            terms.append((c, law))
        factors = np.stack([c * law.scale() for c, law in terms])
        exponents = np.stack([law.exponents for _, law in terms])
        steepest = (factors * exponents).max(axis=0).tolist()
        idle = [d for d, f in zip(task.domains, steepest, strict=True) if f == 0]
        if idle:
            self.notes.append(f"no target depends on {some(idle)}: weight 0")
        p = equal_slopes(factors, exponents, task.most)
        slopes = -(factors * exponents * np.maximum(p, TINY) ** (-exponents - 1)).sum(axis=0)
        value = float((factors * np.maximum(p, TINY) ** -exponents).sum())
        return Optimum(p, value, gap(p, slopes, task.most))


def fit_own(runs: Runs, column: str, domain: int, budget: float | None) -> PowersLaw:
    """L = p^-alpha (B / s^beta + C) of one domain's weight."""
    p, y = runs.weights[:, domain], runs.outcome(column)
    drawn = p > 0
    p, y = p[drawn], y[drawn]
    if len(np.unique(p)) < 2:
        raise TooFewRunsError(
            f"{runs.file}: {column!r} was measured at {len(np.unique(p))} different weights > 0 of "
            f"{runs.domains[domain]!r}; its law needs 2"
        )
    steps = None if runs.tokens is None else runs.tokens[drawn]
    several = steps is not None and len(np.unique(steps)) > 1
    logs = np.log(p)
    design = np.column_stack([np.ones_like(logs), -logs])
    (log_f, alpha), *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    start = np.array([np.exp(log_f), max(float(alpha), 0.0)])
    low = np.zeros(2)
    num = len(runs.domains)
    if not several:

        def residuals(law: Floats) -> Floats:
            return np.asarray(law[0] * p ** -law[1] - y)

        def jacobian(law: Floats) -> Floats:
            power = p ** -law[1]
            return np.column_stack([power, -law[0] * power * logs])

        f, alpha = least_squares(residuals, jacobian, [start], low, np.full(2, np.inf))
        return PowersLaw(_one(num, domain, alpha), _one(num, domain, f))
    assert steps is not None
    if len(np.unique(steps)) < 3:
        raise TooFewRunsError(f"{runs.file}: a law of the steps needs 3 different tokens")
    unit = float(np.exp(np.log(steps).mean()))
    z = steps / unit

    def stepped(law: Floats) -> Floats:
        c, alpha, b, beta = law
        return np.asarray(p**-alpha * (b * z**-beta + c) - y)

    def slopes(law: Floats) -> Floats:
        c, alpha, b, beta = law
        power, fall = p**-alpha, z**-beta
        return np.column_stack(
            [power, -logs * power * (b * fall + c), power * fall, -b * np.log(z) * power * fall]
        )

    starts = [
        np.array([start[0] * part, start[1], start[0] * (1 - part), beta])
        for part in (0.3, 0.7, 0.95)
        for beta in (0.1, 0.4, 1.0)
    ]
    c, alpha, b, beta = least_squares(stepped, slopes, starts, np.zeros(4), np.full(4, np.inf))
    at = budget if budget is not None else float(steps.max())
    falling = _one(num, domain, b * unit**beta)
    return PowersLaw(_one(num, domain, alpha), _one(num, domain, c), falling, float(beta), at)


def fit_sum(weights: Floats, y: Floats) -> PowersLaw:
    """L = sum_i F_i p_i^-alpha_i, from F = mean / D, alpha = 1 as the port, and smaller alpha."""
    num = weights.shape[1]
    p = np.maximum(weights, TINY)
    logs = np.log(p)

    def residuals(law: Floats) -> Floats:
        return np.asarray((law[:num] * np.exp(-law[num:] * logs)).sum(axis=1) - y)

    def jacobian(law: Floats) -> Floats:
        powers = np.exp(-law[num:] * logs)
        return np.column_stack([powers, -law[:num] * powers * logs])

    scale = np.full(num, float(y.mean()) / num)
    starts = [np.concatenate([scale, np.full(num, a)]) for a in (1.0, 0.3, 0.1, 0.03)]
    law = least_squares(residuals, jacobian, starts, np.zeros(2 * num), np.full(2 * num, np.inf))
    return PowersLaw(law[num:], law[:num])


def equal_slopes(factors: Floats, exponents: Floats, most: Floats) -> Floats:
    """Minimum of sum_k F_ki p_i^-a_ki over allowed p; float64[K, D] each.

    p_i(lambda) solves sum_k F_ki a_ki p_i^-(a_ki + 1) = lambda, cut at most_i; their sum falls with
    lambda. Two nested bisections in logarithms.
    """
    slopes = factors * exponents
    active = slopes.any(axis=0) & (most > 0)
    cap = np.where(most > 0, most, 1.0)

    def at(log_lambda: float) -> Floats:
        low, high = np.full(len(most), np.log(TINY)), np.log(cap)
        for _ in range(64):
            middle = (low + high) / 2
            steep = (slopes * np.exp(-(exponents + 1) * middle)).sum(axis=0) > np.exp(log_lambda)
            low, high = np.where(steep, middle, low), np.where(steep, high, middle)
        # Where the slope is still too steep at the cap, the bisection has gone up to it.
        return np.where(active, np.exp((low + high) / 2), 0.0)

    if not active.any() or most[active].sum() <= 1:
        return within(normalise(np.where(active, most, TINY)), most)
    low, high = -700.0, 700.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() > 1 else (low, middle)
    return within(normalise(at((low + high) / 2)), most)


def _one(num: int, place: int, value: float) -> Floats:
    made = np.zeros(num)
    made[place] = value
    return made
