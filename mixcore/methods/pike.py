"""PiKE: positive gradient interaction-based K-task weights estimator."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods._exponentiated import exponentiate
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    log,
    number,
    softmax,
    whole,
)
from mixcore.signals import Signals


@register
class PiKE(Method):
    """Domains with a large and steady gradient gain weight; noisy ones lose it.

        w_k <- w_k exp( zeta1 |grad L_k|^2 - (zeta2 / (2 b)) sigma_k^2 ) / sum

    b is the global batch, sigma_k^2 the variance of one sample's gradient, the mean over samples of
    |grad l_k - grad L_k|^2. The paper then draws b_k = round(b w_k) samples of domain k; the
    sampler here keeps exact shares.

    With `tau` (Balanced PiKE) the goal is (1/tau) log sum_k exp(tau L_k): before each loss stands
    y_k = tau softmax(tau L)_k, so |grad L_k|^2 and sigma_k^2 are multiplied by y_k^2 (`y_power`).
    The paper takes tau from 1 to 5.

    Built for gradients that conflict little, and blind to sizes: use a repetition cap. zeta1, zeta2
    and the period T0 are tuned per setting in the paper; the 1s here only state the rule.

    Signals: `grad_norm2` and `grad_var`, float64[D], unbiased (`estimate` here, or the gradient
    helper's); `loss_sum` and `tokens`, or `val_loss`, for tau. A domain that was not measured keeps
    its last numbers; one that never was, its weight.

    Args:
        domains: What the weights are for.
        initial: w_0; None: uniform.
        batch_size: b, samples.
        zeta1: Per unit of squared gradient norm.
        zeta2: Per unit of variance over 2 b.
        tau: Of Balanced PiKE; None: plain.
        y_power: 2 as derived; 1 for y_k itself.
        losses: "train" or "val": what the tilt looks at.
    """

    name = "pike"
    family = "dynamic adaptive"
    needs: tuple[str, ...] = ("grad_norm2", "grad_var")
    cost = "the norms and variances of D gradients an update"
    paper = "Li, Deng, Zhong, Razaviyayn, Mirrokni (2025), arXiv 2502.06244"
    state_fields = ("_log_weights", "_norm2", "_var", "_loss")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        batch_size: int,
        initial: Weights | None = None,
        zeta1: float = 1.0,
        zeta2: float = 1.0,
        tau: float | None = None,
        y_power: int = 2,
        losses: str = "train",
    ) -> None:
        super().__init__(domains, initial=initial)
        self.batch_size = whole("batch_size", batch_size, 1)
        self.zeta1 = number("zeta1", zeta1, 0.0)
        self.zeta2 = number("zeta2", zeta2, 0.0)
        self.tau = None if tau is None else number("tau", tau, 0.0, above=True)
        self.y_power = whole("y_power", y_power, 1, 2)
        self.losses = choice("losses", losses, ("train", "val"))
        if self.tau is not None:
            more = ("loss_sum", "tokens") if self.losses == "train" else ("val_loss",)
            self.needs = (*self.needs, *more)
        self._log_weights = log(self._weights)
        self._norm2 = np.full(len(self.domains), np.nan)
        self._var = np.full(len(self.domains), np.nan)
        self._loss = np.full(len(self.domains), np.nan)

    def _update(self, signals: Signals) -> Floats:
        norm2 = carried(signals.grad_norm2, self._norm2)
        var = carried(signals.grad_var, self._var)
        loss = self._loss
        tilt: Floats | float = 1.0
        if self.tau is not None:
            loss = carried(signals.loss if self.losses == "train" else signals.val_loss, loss)
            known = ~np.isnan(loss)
            tilt = np.full(len(loss), np.nan)
            if known.any():
                tilt[known] = (self.tau * softmax(self.tau * loss[known])) ** self.y_power
        with np.errstate(over="ignore", invalid="ignore"):
            scores = self.zeta1 * norm2 * tilt - self.zeta2 / (2 * self.batch_size) * (var * tilt)
        lost = np.isnan(scores) & ~(np.isnan(norm2) | np.isnan(var) | np.isnan(tilt))
        if lost.any():  # inf - inf
            raise ArgumentError(
                f"grad_norm2 and grad_var are too large: {norm2.tolist()}, {var.tolist()}"
            )
        log_weights = exponentiate(self._log_weights, scores)
        self._norm2, self._var, self._loss = norm2, var, loss
        self._log_weights = log_weights
        return np.exp(log_weights)


def estimate(gradients: npt.ArrayLike, samples: int) -> tuple[float, float]:
    """Unbiased (|grad L|^2, sigma^2) of one domain from M micro-batches of s samples each.

        sigma^2    = s sum_j |g_j - g|^2 / (M - 1)
        |grad L|^2 = |g|^2 - sigma^2 / (M s)

    Args:
        gradients: float[M, P], the gradient of each micro-batch's mean loss; M >= 2.
        samples: s.

    Returns:
        The two; the first may be below 0, where the noise drowns the gradient (Signals takes
        max(0, it)).
    """
    g = np.array(gradients, dtype=np.float64)
    if g.ndim != 2 or len(g) < 2:
        raise ArgumentError(f"gradients must have 2 axes and 2 rows or more, got {g.shape}")
    s = whole("samples", samples, 1)
    mean = g.mean(axis=0)
    variance = s * float(((g - mean) ** 2).sum()) / (len(g) - 1)
    return float(mean @ mean) - variance / (len(g) * s), variance
