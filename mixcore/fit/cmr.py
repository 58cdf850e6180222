"""CMR Law: the largest share of a new domain that keeps the general loss, and how it scales."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit._least_squares import least_squares, positive_losses
from mixcore.fit._libraries import scipy
from mixcore.fit.base import Fit
from mixcore.fit.law import Law, TooFewRunsError
from mixcore.fit.runs import Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.fit.two_domains import TwoDomainFitter, own_domain
from mixcore.methods.base import number


class PowerOfRatio(Law):
    """a R^s + b; R = weight of the new domain, s of either sign."""

    smooth = False

    def __init__(self, a: float, s: float, b: float, domain: int) -> None:
        self.a, self.s, self.b, self.domain = a, s, b, domain

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The loss."""
        ratio = np.maximum(weights[:, self.domain], 1e-12)
        result: Floats = self.a * ratio**self.s + self.b
        return result

    def parameters(self) -> dict[str, Any]:
        """a, s, b."""
        return {"a": self.a, "s": self.s, "b": self.b}


@register
class CMR(TwoDomainFitter):
    """The critical mixture ratio of continual pretraining.

    At fixed tokens L(R) = a R^s + b for the general loss and for the new domain's, R = share of the
    new domain. The critical ratio is the largest R at which the general loss is at most `base_loss`
    (that of the model before) + `tolerance`. Runs of three or more `tokens`: the ratio is found at
    each, and R(T) = b0 + b1 T^s is read at the budget.

    The target is the new domain's loss, `loss/<domain>`.

    Args:
        general: Column of the general loss.
        base_loss: General loss before continual pretraining.
        tolerance: How much it may rise.
    """

    name = "cmr"
    paper = "Gu, Yang, Ding, Zhao, Tan 2024, 2407.17467"
    tractable = "a power law of the ratio for both losses; the constraint decides, not a minimum"
    axes = ("tokens",)

    def __init__(self, *, general: str, base_loss: float, tolerance: float = 0.0) -> None:
        super().__init__()
        self.general = str(general)
        self.base_loss = number("base_loss", base_loss, 0, above=True)
        self.tolerance = number("tolerance", tolerance, 0)
        self.limit = {self.general: self.base_loss + self.tolerance}

    def least_runs(self, num_domains: int) -> int:
        """Three parameters and one more."""
        return 4

    def law(self, runs: Runs, column: str, task: Task) -> PowerOfRatio:
        """Fit one loss by the new domain's share."""
        domain = self._new_domain(runs, task)
        own_domain(column, runs.domains, self.name)
        y = positive_losses(runs, column, self.name)
        return fit_power_of_ratio(runs.weights[:, domain], y, domain)

    def fit(self, data: Runs, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """The critical ratio at one budget, or at several and carried to the task's."""
        if data.tokens is None or len(np.unique(data.tokens)) == 1:
            return super().fit(data, task, judges)
        budgets = np.unique(data.tokens)
        domain = self._new_domain(data, task)
        found = [super(CMR, self).fit(data.some(data.tokens == t), task, judges) for t in budgets]
        ratios = np.array([f.weights[domain] for f in found])
        last = found[-1]
        curve = {f"{t:g}": float(r) for t, r in zip(budgets, ratios, strict=True)}
        note = "held-out figures and laws are those of the largest tokens"
        if task.budget is None or len(budgets) < 3:
            note += "; the ratio too (three tokens and a budget would carry it on)"
            at = float(ratios[-1])
        else:
            at = float(np.clip(carried_ratio(budgets, ratios, task.budget), 0.0, 1.0))
        at = float(np.clip(at, 1 - task.most[1 - domain], task.most[domain]))
        weights = np.full(2, 1 - at)
        weights[domain] = at
        laws = last.laws
        return replace(
            last,
            weights=weights,
            parameters={**last.parameters, "critical_ratio_by_tokens": curve},
            predicted={c: float(law.predict(weights[None])[0]) for c, law in laws.items()},
            notes=(*last.notes, note),
        )

    def _new_domain(self, runs: Runs, task: Task) -> int:
        goal = [c for c, weight in task.target.items() if weight > 0]
        if len(goal) != 1 or goal[0] == self.general:
            raise ArgumentError(
                "cmr needs one target, the new domain's loss, beside general="
                f"{self.general!r}, got {goal}"
            )
        return own_domain(goal[0], runs.domains, self.name)


def fit_power_of_ratio(ratio: Floats, y: Floats, domain: int) -> PowerOfRatio:
    """A R^s + b by least squares; for a given s, a and b are linear."""
    if (ratio <= 0).any():
        keep = ratio > 0
        ratio, y = ratio[keep], y[keep]
    if len(np.unique(ratio)) < 3:
        raise TooFewRunsError(f"the law a R^s + b needs 3 different ratios > 0, got {len(ratio)}")

    def linear(s: float) -> tuple[float, Floats]:
        columns = np.column_stack([ratio**s, np.ones_like(ratio)])
        (a, b), *_ = np.linalg.lstsq(columns, y, rcond=None)
        return float(((columns @ [a, b] - y) ** 2).sum()), np.array([a, s, b])

    grid = np.concatenate([-np.geomspace(0.05, 4, 40), np.geomspace(0.05, 8, 60)])
    start = min((linear(float(s)) for s in grid), key=lambda f: f[0])[1]

    def residuals(law: Floats) -> Floats:
        return np.asarray(law[0] * ratio ** law[1] + law[2] - y)

    def jacobian(law: Floats) -> Floats:
        power = ratio ** law[1]
        return np.column_stack([power, law[0] * power * np.log(ratio), np.ones_like(y)])

    bound = np.array([np.inf, 12.0, np.inf])
    a, s, b = least_squares(residuals, jacobian, [start], -bound, bound)
    return PowerOfRatio(float(a), float(s), float(b), domain)


def carried_ratio(tokens: Floats, ratios: Floats, budget: float) -> float:
    """b0 + b1 T^s through the critical ratios, read at a budget; |s| in [0.01, 2]."""
    unit = float(np.exp(np.log(tokens).mean()))
    minimum = scipy("optimize").minimize_scalar

    def error(s: float) -> tuple[float, float]:
        columns = np.column_stack([np.ones_like(tokens), (tokens / unit) ** s])
        (b0, b1), *_ = np.linalg.lstsq(columns, ratios, rcond=None)
        left = float(((columns @ [b0, b1] - ratios) ** 2).sum())
        return left, float(b0 + b1 * (budget / unit) ** s)

    best = (np.inf, float(ratios[-1]))
    for low, high in ((-2.0, -0.01), (0.01, 2.0)):
        s = float(minimum(lambda s: error(s)[0], bounds=(low, high), method="bounded").x)
        best = min(best, error(s), key=lambda f: f[0])
    return best[1]
