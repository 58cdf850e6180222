"""UtiliMax: a portfolio of datasets by their utility for each task, under repetition caps."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit._libraries import cvxpy
from mixcore.fit.base import Fit, Fitter
from mixcore.fit.propose import gap, within
from mixcore.fit.runs import LOSS, METRIC, MIX, Runs, runs_from
from mixcore.fit.table import Floats, Table, read_table
from mixcore.fit.task import Task, check_target
from mixcore.methods.base import normalise, number

UTILITY = "utility/"
ALONE = 0.999  # a run with so much of one domain is one of that domain alone


@dataclass(frozen=True)
class Utilities:
    """How useful each dataset is for each task.

    Attributes:
        file: Where they came from.
        domains: Names.
        tasks: Names.
        values: float64[D, K] in [0, 1], or None where `runs` say.
        runs: Single-dataset ablations, or None.
    """

    file: str
    domains: tuple[str, ...]
    tasks: tuple[str, ...]
    values: Floats | None
    runs: Runs | None


@register
class UtiliMax(Fitter):
    """Spread the budget so that every task gets all the utility there is, at little risk.

    min over p of || U^T p - 1 ||_2 + risk p^T Sigma p, p on the simplex, p_i B <= N |D_i|.

    U: float64[datasets, tasks], 1 for the most useful dataset of a task, 0 for the least. From
    `runs.csv`: one run trained on each dataset alone (several: their mean); each target is scaled
    to [0, 1] over the datasets. From a CSV `domain, utility/<task>, ...`: as given, in [0, 1], for
    instance an LLM's estimates (MEDU). Sigma is the identity: errors of utilities independent and
    alike, the paper's own Sigma not being known here. With all utilities alike and no cap the
    answer is uniform; with caps it is near that of UniMax.

    Args:
        risk: Weight of the second term.
    """

    name = "utilimax"
    paper = "Held, Paranjape, Koura, Lewis, Zhang, Mihaylov 2025, 2501.11747"
    reads = "runs.csv with one run a domain alone; or a CSV of utilities"
    tractable = "utility is measured one dataset at a time and taken to add up; a convex program"

    def __init__(self, *, risk: float = 1.0) -> None:
        super().__init__()
        self.risk = number("risk", risk, 0)

    def read(self, path: str | os.PathLike[str]) -> Utilities:
        """Read ablations or utilities."""
        table = read_table(path)
        if any(c.startswith(MIX) for c in table.columns):
            runs = runs_from(table)
            return Utilities(runs.file, runs.domains, tuple(runs.outcomes), None, runs)
        return _utilities(table)

    def fit(self, data: Utilities | Runs, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """Solve the convex program."""
        if isinstance(data, Runs):
            data = Utilities(data.file, data.domains, tuple(data.outcomes), None, data)
        self.notes = list(task.notes)
        if data.runs is not None:
            check_target(task, data.runs)
            tasks = tuple(task.target)
            utility = from_ablations(data.runs, task)
            self.notes.append(
                "ablations leave nothing to hold out: utilities are taken as they are"
            )
        else:
            if task.target:
                raise ArgumentError("a file of utilities takes no target: all its tasks count")
            assert data.values is not None, "read from the file"
            tasks, utility = data.tasks, data.values
        flat = [t for t, u in zip(tasks, np.ptp(utility, axis=0).tolist(), strict=True) if u == 0]
        if flat:
            self.notes.append(f"all datasets are alike to {', '.join(flat)}")
        weights, left = self.solve(utility, task)
        return Fit(
            method=self.name,
            task=task,
            weights=weights,
            predicted=dict(zip(tasks, (utility.T @ weights).tolist(), strict=True)),
            predicted_prior=dict(zip(tasks, (utility.T @ task.prior).tolist(), strict=True)),
            parameters={"utility": {d: utility[i].tolist() for i, d in enumerate(data.domains)}},
            gap=left,
            notes=tuple(self.notes),
        )

    def solve(self, utility: Floats, task: Task) -> tuple[Floats, float]:
        """The weights, and how far from the optimum they can be."""
        cp = cvxpy()
        p = cp.Variable(len(utility), nonneg=True)
        aim = cp.norm(utility.T @ p - 1, 2) + self.risk * cp.sum_squares(p)
        problem = cp.Problem(cp.Minimize(aim), [cp.sum(p) == 1, p <= task.most])
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11)
        if p.value is None:
            raise ArgumentError(f"no weights were found: the solver says {problem.status}")
        found = within(normalise(np.clip(p.value, 0.0, task.most)), task.most)
        short = utility.T @ found - 1
        norm = float(np.linalg.norm(short))
        # Where all utility is reached the norm has a corner; 0 is one of its derivatives there.
        gradient = (utility @ short / norm if norm > 1e-12 else 0.0) + 2 * self.risk * found
        return found, gap(found, np.asarray(gradient), task.most)


def from_ablations(runs: Runs, task: Task) -> Floats:
    """Utilities from runs on one domain alone, float64[D, K]: 1 the best of a task, 0 the worst."""
    rows = []
    for i, domain in enumerate(runs.domains):
        alone = runs.weights[:, i] >= ALONE
        if not alone.any():
            raise ArgumentError(
                f"{runs.file} has no run of {domain!r} alone (mix/{domain} >= {ALONE})"
            )
        rows.append([sign * runs.outcome(c)[alone].mean() for c, sign in signs(task).items()])
    values = np.array(rows)
    low, spread = values.min(axis=0), np.ptp(values, axis=0)
    return np.where(spread > 0, (values - low) / np.where(spread > 0, spread, 1.0), 1.0)


def signs(task: Task) -> dict[str, float]:
    """-1 for losses, 1 for metrics: the more the better."""
    return {c: -float(np.sign(weight)) for c, weight in task.target.items()}


def _utilities(table: Table) -> Utilities:
    table.unknown(("domain",), (UTILITY,))
    tasks = table.names(UTILITY)
    if "domain" not in table.columns or not tasks:
        raise ArgumentError(
            f"{table.file} must have mix/NAME and {LOSS}NAME or {METRIC}NAME (runs of one domain "
            "each), or domain and utility/NAME"
        )
    domains = tuple(cell.strip() for cell in table.columns["domain"])
    if len(set(domains)) < len(domains):
        raise ArgumentError(f"{table.file} has a domain twice: {list(domains)}")
    return Utilities(table.file, domains, tasks, table.matrix(UTILITY, 0.0, 1.0), None)
