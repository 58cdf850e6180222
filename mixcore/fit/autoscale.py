"""AutoScale: per-domain power laws of tokens (DDO), and their optima carried to larger budgets."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit._least_squares import least_squares, positive_losses
from mixcore.fit.base import Fit, RunsFitter
from mixcore.fit.law import Law
from mixcore.fit.propose import minimise, within
from mixcore.fit.runs import Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.methods.base import choice, normalise, number

SAME = 0.02  # tokens that differ by less than this part are the same: tables are rounded


class TokensLaw(Law):
    """sum_i ((N0_i + N p_i) / unit_i)^-gamma_i + floor, N = tokens.

    Attributes:
        equivalent: N0, float64[D] tokens: what the other domains are worth.
        exponents: gamma, float64[D].
        floor: L.
        unit: float64[D]; 1 in the paper's form, the base run's tokens in the code's.
        tokens: N.
    """

    curvature = "convex"

    def __init__(
        self, equivalent: Floats, exponents: Floats, floor: float, unit: Floats, tokens: float
    ) -> None:
        self.equivalent, self.exponents = equivalent, exponents
        self.floor, self.unit, self.tokens = floor, unit, tokens

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The outcome at mixtures."""
        total = np.float64(self.tokens or 0.0) if tokens is None else tokens[:, None]
        data = (self.equivalent + total * weights) / self.unit
        result: Floats = (np.maximum(data, 1e-30) ** -self.exponents).sum(axis=1) + self.floor
        return result

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """The outcome and its derivatives."""
        assert self.tokens is not None, "set when the law is made"
        data = np.maximum((self.equivalent + self.tokens * weights) / self.unit, 1e-30)
        powers = data**-self.exponents
        slopes = -self.exponents * powers / data * self.tokens / self.unit
        return float(powers.sum()) + self.floor, slopes

    def parameters(self) -> dict[str, Any]:
        """N0, gamma, L."""
        return {
            "equivalent_tokens": self.equivalent.tolist(),
            "gamma": self.exponents.tolist(),
            "floor": self.floor,
            "unit": self.unit.tolist(),
        }


@register
class AutoScale(RunsFitter):
    """DDO: how the loss falls with each domain's tokens; AutoScale: the optimum at other budgets.

    L = sum_i (N0_i + N_i)^-gamma_i + l, N_i = tokens of domain i, minimised under sum N_i = N.

    "paper" (DDO): `runs.csv` (with `tokens`) holds a base run and, for each domain, two runs or
    more in which only that domain's tokens differ (x3 and x1/3). From those, (N0_i, gamma_i, l_i)
    of each domain is fitted on its own, the other domains being part of l_i. Three points do not
    always say which law it is: gamma N^-gamma is largest at gamma = 1 / ln N, so two laws, one on
    each side of it, can go through them. Between the points, where the optimum is looked for, the
    two hardly differ; more than two perturbed runs a domain tell them apart.
    "code": the same on perplexity, in units of the base run's, N_i in units of the base run's
    and a least amount of 0.2 of them, each law searched from (1, 1, 1), as in the notebook. That
    power has no free factor, so its units are part of the law and the answers differ. (The
    notebook's text says 1/3, its numbers are at 1/5; here the runs say where they are.)
    "joint": the sum fitted to any mixtures at one budget, as Olmix's port does.

    With base runs at two budgets N1 < N2 the optimum at `budget` follows by
    N*(t) = N2* (N2* / N1*)^t elementwise, t such that the sum is the budget ("paper", "code"). One
    budget gives the optimum at that budget, whatever `budget` is.

    Args:
        variant: "paper", "code" or "joint".
        floor: Least tokens of a domain in units of the base run's; None: 0, or 0.2 in "code".
    """

    name = "autoscale"
    paper = "Kang et al. 2024, 2407.20177"
    tractable = "2 D + 1 runs give a power law of each domain's tokens; optima follow the budget"
    axes: tuple[str, ...] = ("tokens",)

    def __init__(self, *, variant: str = "paper", floor: float | None = None) -> None:
        super().__init__()
        self.variant = choice("variant", variant, ("paper", "code", "joint"))
        default = 0.2 if variant == "code" else 0.0
        self.floor = default if floor is None else number("floor", floor, 0, 1)
        if self.variant == "joint":
            self.axes = ()

    def least_runs(self, num_domains: int) -> int:
        """DDO needs 2 D + 1; the joint law one more than it has parameters."""
        return 2 * num_domains + (2 if self.variant == "joint" else 1)

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """The joint law of one loss."""
        y = positive_losses(runs, column, self.name)
        tokens = 1.0 if runs.tokens is None else float(runs.tokens[0])
        return fit_joint(runs.weights, y, tokens)

    def fit(self, data: Runs, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """DDO at every budget there is a base run for, carried to the task's budget."""
        if self.variant == "joint":
            return super().fit(data, task, judges)
        self.notes = list(task.notes)
        for column in task.target:
            positive_losses(data, column, self.name)
        if not task.target:
            raise ArgumentError(f"target is missing; {data.file} has: {', '.join(data.outcomes)}")
        if data.tokens is None:
            raise ArgumentError(f"{data.file} must have the column tokens for autoscale")
        amounts = data.weights * data.tokens[:, None]
        outcome = task.objective({c: data.outcome(c) for c in task.target})
        found = []
        for base in bases(amounts, data):
            found.append(self._ddo(base, amounts, outcome, data, task))
        found.sort(key=lambda f: float(f[0].sum()))
        optima = [optimum for optimum, _, _ in found]
        best, budget = carried_optimum(optima, task.budget)
        if len(found) == 1 and task.budget is not None:
            self.notes.append(
                f"one base run, of {budget:.4g} tokens: the optimum is for that budget; runs at a "
                "second one would carry it to others"
            )
        if len(found) > 2:
            self.notes.append(f"{len(found)} budgets: the two largest are used")
        weights = within(normalise(best), task.most)
        self.notes.append("three points fix three parameters: nothing is left to hold out")
        return Fit(
            method=self.name,
            task=task,
            weights=weights,
            parameters={
                f"budget {float(o.sum()):.6g}": {
                    "optimum_tokens": o.tolist(),
                    "laws": law.parameters(),
                    "largest_relative_residual": residual,
                }
                for o, law, residual in found
            },
            laws={"objective": found[-1][1]},
            notes=tuple(self.notes),
        )

    def _ddo(
        self, base: int, amounts: Floats, outcome: Floats, runs: Runs, task: Task
    ) -> tuple[Floats, TokensLaw, float]:
        """Optimal tokens at the base run's budget, the law, its largest relative residual."""
        num = amounts.shape[1]
        unit = amounts[base]
        code = self.variant == "code"
        y = np.exp(outcome - outcome[base]) if code else outcome
        a, b, worst = np.zeros(num), np.zeros(num), 0.0
        for i in range(num):
            rows = np.append(neighbours(amounts, base, i), base)
            x = amounts[rows, i] / unit[i]
            scale = 1.0 if code else float(unit[i])
            where = f"{runs.file}: {runs.domains[i]!r}"
            starts = [np.ones(3)] if code else None  # which of two laws is found hangs on it
            a[i], b[i], c = shifted_power(x, y[rows], scale, where, starts)
            fitted = ((x + a[i]) * scale) ** -b[i] + c
            worst = max(worst, float(np.abs(fitted / y[rows] - 1).max()))
        total = float(unit.sum())
        law = TokensLaw(a * unit, b, 0.0, unit if code else np.ones(num), total)
        if (b <= 1e-9).all():
            raise ArgumentError(f"{runs.file}: the loss falls with no domain's tokens")
        least = self.floor * unit / total

        def objective(p: Floats) -> tuple[float, Floats]:
            value, gradient = law.value_and_gradient(least + (1 - least.sum()) * p)
            return value, gradient * (1 - float(least.sum()))

        found = minimise(objective, np.ones(num), [normalise(unit)], tolerance=1e-12)
        return (least + (1 - least.sum()) * found.weights) * total, law, worst


def neighbours(amounts: Floats, base: int, domain: int) -> Any:
    """Runs that differ from the base in the tokens of that one domain."""
    differs = np.abs(amounts - amounts[base]) > SAME * np.maximum(amounts, amounts[base])
    alone = differs[:, domain] & (differs.sum(axis=1) == 1)
    return np.flatnonzero(alone)


def bases(amounts: Floats, runs: Runs) -> list[int]:
    """Runs beside which every domain was changed alone, at two amounts or more."""
    num = amounts.shape[1]
    found = [
        r
        for r in range(len(amounts))
        if (amounts[r] > 0).all() and all(len(neighbours(amounts, r, i)) >= 2 for i in range(num))
    ]
    if not found:
        raise ArgumentError(
            f"{runs.file} has no base run beside which each of the {num} domains' tokens was "
            "changed alone, to two other amounts (2 D + 1 runs; variant='joint' takes any mixtures)"
        )
    return found


def shifted_power(
    x: Floats, y: Floats, unit: float, where: str, starts: list[Floats] | None = None
) -> tuple[float, float, float]:
    """(a, b, c) of y = ((x + a) unit)^-b + c, a >= 0, b >= 0, by least squares."""
    if len(np.unique(x)) < 3:
        raise ArgumentError(f"{where}: the law of its tokens needs 3 different amounts")

    def residuals(law: Floats) -> Floats:
        return np.asarray(((x + law[0]) * unit) ** -law[1] + law[2] - y)

    def jacobian(law: Floats) -> Floats:
        data = (x + law[0]) * unit
        power = data ** -law[1]
        by_a = -law[1] * power / (x + law[0])
        return np.column_stack([by_a, -power * np.log(data), np.ones_like(x)])

    if starts is None:
        starts = [
            np.array([a, b, float((y - ((x + a) * unit) ** -b).mean())])
            for a in (0.01, 0.1, 0.5, 1.0, 3.0)
            for b in (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
        ]
    low, high = np.array([1e-9, 0.0, -np.inf]), np.array([1e6, 100.0, np.inf])
    a, b, c = least_squares(residuals, jacobian, starts, low, high, evaluations=300)
    return float(a), float(b), float(c)


def fit_joint(weights: Floats, y: Floats, tokens: float) -> TokensLaw:
    """sum_i (N (n_i + p_i))^-gamma_i + L, n > 0, gamma > 0, 0 <= L <= min y (as Olmix's port)."""
    num = weights.shape[1]
    log_n = np.log(tokens)

    def parts(law: Floats) -> tuple[Floats, Floats]:
        data = np.maximum(law[:num] + weights, 1e-30)
        return data, np.exp(-law[num:-1] * (log_n + np.log(data)))

    def residuals(law: Floats) -> Floats:
        return np.asarray(parts(law)[1].sum(axis=1) + law[-1] - y)

    def jacobian(law: Floats) -> Floats:
        data, powers = parts(law)
        by_n = -law[num:-1] * powers / data
        by_gamma = -powers * (log_n + np.log(data))
        return np.column_stack([by_n, by_gamma, np.ones(len(y))])

    least = float(y.min())
    starts = [
        np.concatenate([np.full(num, 1 / num), np.full(num, g), [part * least]])
        for g in (0.5, 0.1, 0.02)
        for part in (0.1, 0.8)
    ]
    low = np.concatenate([np.full(2 * num, 1e-12), [0.0]])
    high = np.concatenate([np.full(2 * num, np.inf), [max(least, 1e-300)]])
    law = least_squares(residuals, jacobian, starts, low, high)
    unit = np.ones(num)
    return TokensLaw(law[:num] * tokens, law[num:-1], float(law[-1]), unit, tokens)


def carried_optimum(optima: list[Floats], budget: float | None) -> tuple[Floats, float]:
    """Optimal tokens at a budget from optima in ascending order of budget, and the budget reached.

    N*(t) = N2 (N2 / N1)^t; the sum grows with t wherever it is above both, so t is bisected.

    Raises:
        ArgumentError: No t gives that sum.
    """
    last = optima[-1]
    if len(optima) == 1 or budget is None:
        return last, float(last.sum())
    first = np.maximum(optima[-2], 1e-12 * optima[-2].sum())
    second = np.maximum(last, 1e-12 * last.sum())
    ratio = np.log(second / first)

    def at(t: float) -> Floats:
        return np.asarray(second * np.exp(np.minimum(ratio * t, 600.0)))

    # A sum of exponentials is convex in t: from its least point on it grows, and that point is
    # below t = 0, as N2 sums to more than N1.
    low, high = -1.0, 1.0
    while at(high).sum() < budget and high < 1e6:
        high *= 2
    while at(low).sum() > budget and low > -1e6 and at(low * 2).sum() < at(low).sum():
        low *= 2
    if not at(low).sum() <= budget <= at(high).sum():
        raise ArgumentError(f"budget={budget:g} cannot be reached from the two optima")
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() < budget else (low, middle)
    return at((low + high) / 2), budget
