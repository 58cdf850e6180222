"""Robust least squares from several starts, and the power law that step and size laws are."""

from collections.abc import Callable, Iterable

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit._libraries import scipy
from mixcore.fit.runs import LOSS, Runs
from mixcore.fit.table import Floats

Residuals = Callable[[Floats], Floats]


def least_squares(
    residuals: Residuals,
    jacobian: Residuals | None,
    starts: Iterable[Floats],
    low: Floats,
    high: Floats,
    *,
    huber_delta: float | None = None,
    evaluations: int = 500,
) -> Floats:
    """The parameters of least sum of Huber (or squared) residuals, within bounds.

    Trust-region reflective (scipy), from every start; the best end is returned.

    Raises:
        ArgumentError: No start led anywhere finite.
    """
    solve = scipy("optimize").least_squares
    best, answer = np.inf, None
    for start in starts:
        inside = np.clip(start, low, high)
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(residuals(inside)).all():
                continue
            try:
                found = solve(
                    residuals,
                    inside,
                    jac="2-point" if jacobian is None else jacobian,
                    bounds=(low, high),
                    loss="linear" if huber_delta is None else "huber",
                    f_scale=1.0 if huber_delta is None else huber_delta,
                    x_scale="jac",
                    ftol=1e-14,
                    xtol=1e-14,
                    gtol=1e-14,
                    max_nfev=evaluations,
                )
            except ValueError:  # a trial step where residuals are not finite: this start is lost
                continue
        if found.cost < best and np.isfinite(found.x).all():
            best, answer = float(found.cost), np.asarray(found.x, dtype=np.float64)
    if answer is None:
        raise ArgumentError("the law could not be fitted: no start led to finite predictions")
    return answer


def power_law(x: Floats, y: Floats) -> Floats:
    """(E, B, beta) of y = E + B x^-beta, E, B >= 0, by least squares; x > 0, three x or more.

    For a given beta the best E and B are linear; a grid over beta gives the start.
    """
    unit = float(np.exp(np.log(x).mean()))  # x^-beta of 1e12 tokens would be tiny
    z = x / unit
    nnls = scipy("optimize").nnls
    best, start = np.inf, np.zeros(3)
    for beta in np.geomspace(0.01, 4.0, 60):
        terms = np.column_stack([np.ones_like(z), z**-beta])
        (e, b), error = nnls(terms, y)
        if error < best:
            best, start = error, np.array([e, b, beta])

    def residuals(law: Floats) -> Floats:
        return np.asarray(law[0] + law[1] * z ** -law[2] - y)

    def jacobian(law: Floats) -> Floats:
        power = z ** -law[2]
        return np.column_stack([np.ones_like(z), power, -law[1] * power * np.log(z)])

    high = np.array([np.inf, np.inf, 8.0])
    law = least_squares(residuals, jacobian, [start], np.zeros(3), high)
    return np.array([law[0], law[1] * unit ** law[2], law[2]])


def positive_losses(runs: Runs, column: str, method: str) -> Floats:
    """The outcome, float64[R]; refused where it is a metric, or not > 0 as losses are."""
    if not column.startswith(LOSS):
        raise ArgumentError(f"{method} is a law of losses; the target {column!r} is none")
    y = runs.outcome(column)
    if (y <= 0).any():
        row = int(y.argmin())
        raise ArgumentError(
            f"{runs.file}: {column!r} must be > 0 for {method}, got {y[row]:g} of run "
            f"{runs.names[row]!r}"
        )
    return y
