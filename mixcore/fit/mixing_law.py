"""Data Mixing Laws: the exponential law of the mixture, on losses carried to the target scale."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit._least_squares import power_law
from mixcore.fit.base import Fit, RunsFitter
from mixcore.fit.exponential import fit_exponential
from mixcore.fit.law import Law
from mixcore.fit.runs import Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.methods.base import number, whole

POINTS = 3  # a power law with a floor has three parameters


@register
class MixingLaw(RunsFitter):
    """The exponential law of Data Mixing Laws, with its step and size laws nested before it.

    L_i(p) = c_i + k_i exp(sum_j t_ij p_j); for a validation set of unknown composition the sum of
    `hidden` such terms, L = c + sum_h exp(t_h . p) (shares s_h, the c_h and k_h are in c and t).
    Nested: for every (mixture, size) L(S) = E + B / S^beta over trained tokens, read at `tokens`;
    for every mixture L(N) = E + A / N^alpha over sizes, read at `params`; then the law above. Both
    only where the runs have more than one of them. Convex, so the minimum is exact.

    The authors' pipeline fits an ensemble of small networks instead of the closed form of the
    paper; that is not repeated here.

    Args:
        hidden: Exponentials a validation set; 1 where its domain is known.
        tokens: Where the step law is read; None: the budget of the task.
        params: Where the size law is read; needed if the runs have several sizes.
        huber_delta: In the loss's unit (0.01 in the authors' code).
        restarts: Random starts for hidden > 1.
    """

    name = "mixing_law"
    paper = "Ye, Liu, Sun, Zhou, Zhan, Qiu 2024, 2403.16952"
    tractable = "a closed law of the mixture, fitted to losses extrapolated in steps and size"
    axes = ("tokens", "params")

    def __init__(
        self,
        *,
        hidden: int = 1,
        tokens: float | None = None,
        params: float | None = None,
        huber_delta: float = 0.01,
        restarts: int = 8,
    ) -> None:
        super().__init__()
        self.hidden = whole("hidden", hidden, 1, 1000)
        self.tokens = None if tokens is None else number("tokens", tokens, 0, above=True)
        self.params = None if params is None else number("params", params, 0, above=True)
        self.huber_delta = number("huber_delta", huber_delta, 0, above=True)
        self.restarts = whole("restarts", restarts, 1, 10_000)

    def least_runs(self, num_domains: int) -> int:
        """One more than there are parameters."""
        return self.hidden * num_domains + 2

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """The closed law."""
        return fit_exponential(
            runs.weights,
            runs.outcome(column),
            column,
            hidden=self.hidden,
            huber_delta=self.huber_delta,
            restarts=self.restarts,
            seed=task.seed,
        )

    def fit(self, data: Runs, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """Carry the losses to the target scale, then fit as every law is fitted."""
        said = []
        for axis, at in (("tokens", self.tokens or task.budget), ("params", self.params)):
            values = getattr(data, axis)
            if values is None or len(np.unique(values)) == 1:
                continue
            if at is None:
                raise ArgumentError(
                    f"{data.file} has runs of several {axis}: mixing_law needs "
                    + ("tokens or a budget" if axis == "tokens" else axis)
                    + " to read its step and size laws at"
                )
            data, worst = carried_to(data, axis, at, list(task.target))
            said.append(
                f"losses are extrapolated to {at:g} {axis} by a power law for every mixture (it "
                f"misses the measured ones by at most {worst:.2%}); held-out figures are about the "
                "extrapolated losses"
            )
        found = super().fit(data, task, judges)
        return replace(found, notes=(*found.notes, *said))


def carried_to(runs: Runs, axis: str, at: float, columns: list[str]) -> tuple[Runs, float]:
    """One run for every (mixture, the other axis), with its outcomes extrapolated along an axis.

    Returns:
        The runs, and the largest relative residual of the power laws.

    Raises:
        ArgumentError: A mixture was measured at fewer than three places.
    """
    along: Floats = getattr(runs, axis)
    other_axis = "params" if axis == "tokens" else "tokens"
    other = getattr(runs, other_axis)
    key = runs.groups() if other is None else np.column_stack([runs.groups(), other])
    _, first, group = np.unique(key, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    outcomes = {c: np.empty(len(first)) for c in columns}
    worst = 0.0
    for g in range(len(first)):
        rows = np.flatnonzero(group == g)
        if len(np.unique(along[rows])) < POINTS:
            raise ArgumentError(
                f"{runs.file}: the mixture of run {runs.names[rows[0]]!r} has "
                f"{len(np.unique(along[rows]))} different {axis}; its law needs {POINTS}"
            )
        for column in columns:
            y = runs.outcome(column)[rows]
            e, b, beta = power_law(along[rows], y)
            outcomes[column][g] = e + b * at**-beta
            worst = max(worst, float(np.abs((e + b * along[rows] ** -beta) / y - 1).max()))
    kept = runs.some(first.astype(np.int64))
    moved = {axis: np.full(len(first), at), other_axis: getattr(kept, other_axis)}
    carried = Runs(kept.file, kept.names, kept.domains, kept.weights, outcomes, **moved)
    return carried, worst
