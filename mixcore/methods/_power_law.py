"""Fit of a saturating power law L(n) = exp(e) + exp(a) n^-alpha, as ADO does. Needs scipy."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore.errors import DeviceError
from mixcore.methods.base import Floats

# A law is (a, e, alpha), as in src/data_selectors/ado.py of yidingjiang/ado (bc3d8d0).
GRID = (
    tuple(np.arange(-2.0, 6.0, 1.0).tolist()),
    tuple(np.arange(-2.0, 2.0, 0.5).tolist()),
    tuple(np.arange(0.0, 0.8, 0.1).tolist()),
)


@dataclass(frozen=True)
class PowerLawFit:
    """How to fit: sum over t of Huber(ln L_t - ln L(n_t)) + penalties, by L-BFGS from many starts.

    Attributes:
        huber_delta: Where Huber's loss turns linear.
        maxiter: Of each L-BFGS.
        tol: Gradient norm at which it stops.
        starts: How many points of the grid to start from: those with the least objective; None: all
            512, as the reference code does (fewer, as those beyond a penalty's bound coincide).
        penalties: Add what an alpha above alpha_max, an a above a_max and an e below e_min are
            beyond, and (slope 1 too) -min(alpha, alpha_min).
        alpha_max: 0.8 in the code.
        alpha_min: 0.001 in the code.
        a_max: 6.5 in the code.
        e_min: 0.5 in the code, so that exp(e) >= 1.65 nats: too high for domains that are learned
            well; lower it, or turn the penalties off, for those.
        grid: Starting values of a, e and alpha.
    """

    huber_delta: float = 1e-3
    maxiter: int = 200
    tol: float = 1e-5
    starts: int | None = 16
    penalties: bool = True
    alpha_max: float = 0.8
    alpha_min: float = 0.001
    a_max: float = 6.5
    e_min: float = 0.5
    grid: tuple[Sequence[float], Sequence[float], Sequence[float]] = GRID

    def fit(self, n: npt.ArrayLike, loss: npt.ArrayLike) -> Floats:
        """(a, e, alpha) of least objective, float64[3]; NaN where no start gave a finite one.

        Args:
            n: Samples seen so far, one a point, >= 1.
            loss: Mean loss per token there, > 0.
        """
        minimize = _scipy_minimize()
        x = np.log(np.maximum(np.asarray(n, dtype=np.float64), 1.0))
        y = np.log(np.clip(np.asarray(loss, dtype=np.float64), 1e-12, 1e300))
        axes = np.meshgrid(*self.grid, indexing="ij")
        starts = np.stack([axis.ravel() for axis in axes], axis=1)
        # The penalties have kinks, where L-BFGS stops. So first they are bounds, which it knows.
        low, high = self.bounds()
        starts = np.unique(np.clip(starts, low, high), axis=0)
        if self.starts is not None:
            values = np.array([self.objective(p, x, y)[0] for p in starts])
            starts = starts[np.argsort(values, kind="stable")[: self.starts]]
        # Three parameters need no more than 3 corrections; the default of 10 makes matrices that
        # BLAS starts threads for, which on a busy machine takes longer than all the rest.
        options = {"maxiter": self.maxiter, "gtol": self.tol, "ftol": 1e-15, "maxcor": 3}
        best, answer = np.inf, np.full(3, np.nan)

        def search(start: Floats, bounds: list[tuple[float, float]] | None) -> None:
            nonlocal best, answer
            with np.errstate(all="ignore"):  # a line search may wander far; the answer is checked
                found = minimize(
                    self.objective,
                    start,
                    args=(x, y),
                    jac=True,
                    method="L-BFGS-B",
                    bounds=bounds,
                    options=options,
                )
            if found.fun < best and np.isfinite(found.x).all():
                best, answer = found.fun, found.x

        for start in starts:
            search(start, list(zip(low, high, strict=True)))
        if self.penalties and np.isfinite(best):
            search(answer, None)  # many points can outweigh a penalty
        return answer

    def bounds(self) -> tuple[Floats, Floats]:
        """Least and largest law that no penalty falls on, for the search."""
        if not self.penalties:
            return np.full(3, -np.inf), np.full(3, np.inf)
        low = np.array([-np.inf, self.e_min, self.alpha_min])
        return low, np.array([self.a_max, np.inf, self.alpha_max])

    def objective(self, law: Floats, x: Floats, y: Floats) -> tuple[float, Floats]:
        """Value and gradient at a law, for x = ln n and y = ln L."""
        a, e, alpha = law
        power = a - alpha * x
        predicted = np.logaddexp(power, e)
        share = np.exp(power - predicted)  # of the power term in the loss
        error = predicted - y
        size = np.abs(error)
        d = self.huber_delta
        value = np.where(size > d, d * (size - d / 2), error**2 / 2).sum()
        slope = np.clip(error, -d, d)
        # Sums, not dot products: those of BLAS depend on its threads in the last bits.
        part = slope * share
        gradient = np.array([part.sum(), (slope - part).sum(), -(part * x).sum()])
        if self.penalties:
            value += max(alpha - self.alpha_max, 0) - min(alpha, self.alpha_min)
            value += max(a - self.a_max, 0) - min(e - self.e_min, 0)
            gradient += (
                float(a > self.a_max),
                -float(e < self.e_min),
                float(alpha > self.alpha_max) - float(alpha < self.alpha_min),
            )
        return float(value), gradient


def predicted_loss(laws: Floats, n: Floats) -> Floats:
    """L(n) of each law (rows of float64[D, 3]) at its n."""
    exponents = np.stack([laws[:, 1], laws[:, 0] - laws[:, 2] * np.log(n)])
    result: Floats = np.exp(np.minimum(exponents, 690.0)).sum(axis=0)  # float64 ends at 709
    return result


def smoothed(loss: Floats, window: int, order: int) -> Floats:
    """Savitzky-Golay filter along axis 0, with the longest odd window that fits; window 1: none."""
    window = min(window, len(loss) - 1 + len(loss) % 2)
    if window <= order:
        return loss
    with np.errstate(over="ignore"):  # of losses around 1e300, in a residual that is not used
        result: Floats = _scipy("signal").savgol_filter(loss, window, order, axis=0)
    return result


def check_scipy() -> None:
    """Raise now, not at the first refit, if scipy is not installed."""
    _scipy("optimize")


def _scipy_minimize() -> Callable[..., Any]:
    minimize: Callable[..., Any] = _scipy("optimize").minimize
    return minimize


def _scipy(part: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{part}")
    except ImportError as e:
        raise DeviceError(
            f"method 'ado' fits power laws with scipy, which cannot be imported ({e}): "
            "pip install mixcore[fit]"
        ) from None
