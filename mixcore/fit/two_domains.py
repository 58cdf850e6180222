"""What the two laws of continual pretraining share: two domains, and a search along one ratio."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.fit.base import Fit, RunsFitter
from mixcore.fit.law import Law
from mixcore.fit.propose import Optimum
from mixcore.fit.runs import LOSS, Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.methods.base import number

GRID = 2001


def own_domain(column: str, domains: tuple[str, ...], method: str) -> int:
    """The domain whose share a loss depends on: the one it is named after."""
    name = column.removeprefix(LOSS)
    if name not in domains:
        raise ArgumentError(
            f"{method} needs losses named after the domains ({', '.join(domains)}), got {column!r}"
        )
    return domains.index(name)


def check_two(runs: Runs, method: str) -> None:
    """Refuse other than two domains."""
    if len(runs.domains) != 2:
        raise ArgumentError(
            f"{method} is about two domains, the general corpus and the new one; {runs.file} has "
            f"{len(runs.domains)}: {', '.join(runs.domains[:8])}"
        )


def checked_limit(limit: object) -> dict[str, float]:
    """Column -> most loss."""
    if limit is None:
        return {}
    if not isinstance(limit, Mapping):
        raise ArgumentTypeError(f"limit must map columns to losses, got {limit!r}")
    return {str(c): number(f"limit[{c!r}]", v) for c, v in limit.items()}


class TwoDomainFitter(RunsFitter):
    """Best ratio of two domains, perhaps under limits on other losses."""

    limit: dict[str, float]

    def fit_seen(self, data: Runs, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """The losses that are limited are fitted and judged too; they count 0 in the objective."""
        check_two(data, self.name)
        for column in self.limit:
            data.outcome(column)
        extra = {c: 0.0 for c in self.limit if c not in task.target}
        return super().fit_seen(data, replace(task, target={**task.target, **extra}), judges)

    def propose(self, laws: dict[str, Law], task: Task, runs: Runs) -> Optimum:
        """The best ratio on a grid refined twice, among those within the limits."""
        low, high = 1 - task.most[1], task.most[0]
        best = low
        for _ in range(3):
            grid = np.linspace(low, high, GRID)
            mixtures = np.column_stack([grid, 1 - grid])
            values = task.objective({c: laws[c].predict(mixtures) for c in task.target})
            allowed = np.isfinite(values)
            for column, most in self.limit.items():
                allowed &= laws[column].predict(mixtures) <= most
            if not allowed.any():
                told = ", ".join(f"{c} <= {v:g}" for c, v in self.limit.items())
                raise ArgumentError(f"no ratio of the two domains keeps {told}")
            values = np.where(allowed, values, np.inf)
            at = int(values.argmin())
            best, value = float(grid[at]), float(values[at])
            low, high = grid[max(at - 1, 0)], grid[min(at + 1, GRID - 1)]
        weights: Floats = np.array([best, 1 - best])
        return Optimum(weights, value, float("nan"))
