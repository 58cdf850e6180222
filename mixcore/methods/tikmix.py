"""TiKMiX-D: a mixture optimised directly on group influences."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods._exponentiated import columns
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    choice,
    normalise,
    number,
    per_domain,
    whole,
)
from mixcore.signals import Signals


@register
class TiKMiX(Method):
    """The mixture with most influence on all validation tasks, no task worse off than before.

        P_hat_i = (S w)_i / (max_j S_ij + eps)
        minimise    alpha std(P_hat) - beta sum_i P_hat_i - gamma H(w)
        subject to  w >= 0,  sum_j w_j = 1,  S w >= S w_prior;      H(w) = -sum_j w_j log w_j

    S_ij is the influence of domain j on validation task i, larger is better; the paper computes it
    from gradients through an approximate inverse Hessian (EK-FAC), which is not done here: give S,
    or take plain gradient products for it (`source="grad_target"`: S_ij = <g_j, grad f_i>, the
    inverse Hessian as identity and f the loss to be lowered). Solved by SLSQP from the uniform
    mixture, as in the paper; where that does not end well, from the prior. The standard deviation
    is that of all n tasks (divided by n), 0 for one task.

    A task whose influences are all <= 0 would change sign under the paper's divisor: refused,
    unless normalise="abs" (max_j |S_ij|).

    Signals: `extra["influence"]`, float[N, D], or `grad_target`, float64[D] or float64[D, N]; all
    entries measured. An update solves anew; the prior is then the weights before it, unless given.

    Args:
        domains: What the weights are for.
        initial: The weights until the first solution; None: uniform.
        influence: S; then the weights are the solution at once.
        prior: w_prior; None: the weights before an update.
        source: "influence" or "grad_target".
        alpha, beta, gamma: Uniformity, gain, diversity; 1 in the paper.
        eps: 1e-8 in the paper.
        normalise: "max" (the paper) or "abs".
        max_iter: Of SLSQP.

    Raises:
        ArgumentError: scipy is not installed; no mixture was found (the message says why).
    """

    name = "tikmix"
    family = "dynamic externally guided"
    needs: tuple[str, ...] = ()
    cost = "group influences (0.1 B tokens suffice in the paper); every 200 B tokens there"
    paper = "Wang, Liu, Liu et al. (2025), arXiv 2508.17677"

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        influence: Any = None,
        prior: Weights | None = None,
        source: str = "influence",
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        eps: float = 1e-8,
        normalise: str = "max",
        max_iter: int = 1000,
    ) -> None:
        super().__init__(domains, initial=initial)
        self.prior = None if prior is None else _share("prior", prior, self.domains)
        self.source = choice("source", source, ("influence", "grad_target"))
        self.alpha = number("alpha", alpha, 0.0)
        self.beta = number("beta", beta, 0.0)
        self.gamma = number("gamma", gamma, 0.0)
        self.eps = number("eps", eps, 0.0)
        self.normalise = choice("normalise", normalise, ("max", "abs"))
        self.max_iter = whole("max_iter", max_iter, 1)
        if self.source == "grad_target":
            self.needs = ("grad_target",)
        if influence is not None:
            self._weights = self._solve(self._checked("influence", influence))

    def _update(self, signals: Signals) -> Floats:
        if self.source == "grad_target":
            return self._solve(self._checked("grad_target", columns(signals.grad_target).T))
        if "influence" not in signals.extra:
            raise ArgumentError(
                "method 'tikmix' needs signals.extra['influence']: the influence of every domain "
                "(column) on every validation task (row); or source='grad_target'"
            )
        return self._solve(self._checked("influence", signals.extra["influence"]))

    def _checked(self, name: str, value: Any) -> Floats:
        s = np.array(value, dtype=np.float64)
        d = len(self.domains)
        if s.ndim != 2 or s.shape[1] != d or len(s) == 0 or not np.isfinite(s).all():
            raise ArgumentError(f"{name} must be finite, of shape (N, {d}), got {s.tolist()}")
        return s

    def _solve(self, s: Floats) -> Floats:
        optimize = _scipy_optimize()
        top = (s if self.normalise == "max" else np.abs(s)).max(axis=1)
        if self.normalise == "max" and (top <= 0).any():
            tasks = np.flatnonzero(top <= 0).tolist()
            raise ArgumentError(
                f"influence must have an entry > 0 in every row, rows {tasks} have none: dividing "
                "by their maximum would reward harm; use normalise='abs'"
            )
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            gain = s / (top + self.eps)[:, None]  # P_hat = gain @ w
        if not np.isfinite(gain).all():
            raise ArgumentError(f"influence must not vanish in a row, got {s.tolist()}")
        d = len(self.domains)
        if d == 1:
            return np.ones(1)
        prior = self._weights if self.prior is None else self.prior
        # the constraint on the scale of P_hat: the same set, better conditioned
        bound = gain @ prior
        constraints = [
            {"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": lambda w: np.ones(d)},
            {"type": "ineq", "fun": lambda w: gain @ w - bound, "jac": lambda w: gain},
        ]
        best: Floats | None = None
        said = []
        for start in (np.full(d, 1 / d), prior):
            found = optimize.minimize(
                lambda w: self._objective(gain, w),
                start,
                jac=True,
                method="SLSQP",
                bounds=[(0.0, 1.0)] * d,
                constraints=constraints,
                options={"maxiter": self.max_iter, "ftol": 1e-12},
            )
            said.append(str(found.message))
            if not np.isfinite(found.x).all() or not found.x.clip(0.0).any():
                continue
            w = normalise(found.x.clip(0.0))
            # a little slack: SLSQP keeps constraints to about the square root of its tolerance
            if found.success and (gain @ w >= bound - 1e-6).all():
                best = w
                break
        if best is None:
            raise ArgumentError(f"SLSQP found no mixture (it says: {'; '.join(said)})")
        return best

    def _objective(self, gain: Floats, w: Floats) -> tuple[float, Floats]:
        p = gain @ w
        std = float(p.std())
        safe = np.maximum(w, 1e-300)  # w log w is 0 at 0; its slope is cut off there
        value = self.alpha * std - self.beta * float(p.sum()) + self.gamma * float(w @ np.log(safe))
        d_std = gain.T @ (p - p.mean()) / (len(p) * std) if std > 0 else np.zeros_like(w)
        d_entropy = np.log(np.maximum(w, 1e-12)) + 1.0
        return value, self.alpha * d_std - self.beta * gain.sum(axis=0) + self.gamma * d_entropy


def _share(name: str, value: Weights, domains: Sequence[Domain]) -> Floats:
    return normalise(per_domain(name, value, domains))


def _scipy_optimize() -> Any:
    try:
        return importlib.import_module("scipy.optimize")
    except ImportError as e:
        raise ArgumentError("method 'tikmix' needs scipy: pip install 'mixcore[methods]'") from e
