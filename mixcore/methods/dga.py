"""DGA: dynamic gradient alignment to a target set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods._exponentiated import by_task, columns, exponentiate
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    log,
    normalise,
    number,
)
from mixcore.signals import Signals


@register
class DGA(Method):
    """Domains whose gradient is aligned with the target set's gain weight.

        a_i         = <grad L_i, grad L_spe>
        alpha_hat_i = alpha_i exp(eta a_i) / sum_j alpha_j exp(eta a_j)
        alpha       <- beta alpha + (1 - beta) alpha_hat

    The moving average is what stops the collapse onto one domain. Whether the product on the second
    line takes the averaged alpha or the last alpha_hat could not be checked in the paper; nor could
    its values of eta, beta and the period. So `feedback` offers both, and the three are our choice:
    tune them.

    With many domains, alpha = sum_n w_n P_n over N distributions P_n (such as importance-sampling
    histograms of N target sets), and the same rule moves w, with a_n = sum_i P_ni a_i, or
    `signals.extra["grad_basis"]` (float[N]) where <grad L_{P_n}, grad L_spe> was measured itself.

    Signals: `grad_target`, float64[D], or float64[D, N] whose columns are averaged (one target set
    in parts). A domain that was not measured keeps its last a_i; one that never was, its weight.

    Args:
        domains: What the weights are for.
        initial: alpha_0 (or, with a basis, left to `initial_w`); None: uniform.
        eta: Step size, per unit of gradient product.
        beta: In [0, 1), of the moving average; 0: none.
        feedback: "ema": alpha_hat starts from alpha; "last": from the last alpha_hat.
        basis: float[N, D], rows P_n, normalised; None: the domains themselves.
        initial_w: w_0, float[N]; None: uniform.
    """

    name = "dga"
    family = "dynamic externally guided"
    needs = ("grad_target",)
    update_every = 100
    cost = "D + 1 gradients an update (N + 1 with a basis measured itself)"
    paper = "Fan, Grangier, Ablin (2024), arXiv 2410.02498"
    state_fields = ("_w", "_log_hat", "_aligned")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        eta: float = 1.0,
        beta: float = 0.9,
        feedback: str = "ema",
        basis: Any = None,
        initial_w: Any = None,
    ) -> None:
        super().__init__(domains, initial=initial)
        self.eta = number("eta", eta, 0.0)
        self.beta = number("beta", beta, 0.0, 1.0)
        if self.beta == 1.0:
            raise ArgumentError("beta must be below 1: with 1 the weights never move")
        self.feedback = choice("feedback", feedback, ("ema", "last"))
        self.basis: Floats | None = None
        self._w = self._weights
        if basis is not None:
            if initial is not None:
                raise ArgumentError("initial does not go with basis; give initial_w")
            self.basis = _basis(basis, len(self.domains))
            n = len(self.basis)
            given = np.ones(n) if initial_w is None else by_task("initial_w", initial_w, n)
            self._w = normalise(given)
            self._weights = normalise(self._w @ self.basis)
        elif initial_w is not None:
            raise ArgumentError("initial_w needs basis; give initial")
        self._log_hat = log(self._w)
        self._aligned = np.full(len(self.domains), np.nan)

    def _update(self, signals: Signals) -> Floats:
        with np.errstate(invalid="ignore"):
            aligned = carried(columns(signals.grad_target).mean(axis=1), self._aligned)
        scores = aligned
        if self.basis is not None:
            if "grad_basis" in signals.extra:
                scores = by_task(
                    "signals.extra['grad_basis']", signals.extra["grad_basis"], len(self.basis)
                )
            else:
                # of a distribution with an unmeasured part, the measured rest speaks
                known = np.where(np.isnan(aligned), 0.0, self.basis)
                mass = known.sum(axis=1)
                scores = np.full(len(self.basis), np.nan)
                np.divide(known @ np.nan_to_num(aligned), mass, out=scores, where=mass > 0)
        start = log(self._w) if self.feedback == "ema" else self._log_hat
        with np.errstate(over="ignore"):
            log_hat = exponentiate(start, self.eta * scores)
        self._aligned, self._log_hat = aligned, log_hat
        self._w = normalise(self.beta * self._w + (1.0 - self.beta) * np.exp(log_hat))
        return self._w if self.basis is None else self._w @ self.basis


def _basis(value: Any, d: int) -> Floats:
    basis = np.array(value, dtype=np.float64)
    if basis.ndim != 2 or basis.shape[1] != d or len(basis) == 0:
        raise ArgumentError(f"basis must be of shape (N, {d}), got {basis.shape}")
    return np.stack([normalise(row) for row in basis])
