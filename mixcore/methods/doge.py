"""DoGE: domain reweighting with generalisation estimation, in its online form."""

from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods._exponentiated import columns, exponentiate, learning_rate, smooth
from mixcore.methods.base import Floats, Method, Weights, carried, choice, flag, log, number
from mixcore.signals import Signals


@register
class DoGE(Method):
    """Domains whose gradient helps the others (or a target) gain weight.

        W_i     = <g_i, sum_{j != i} g_j>               (target="in-domain")
        W_i     = sum_n <g_i, g_target_n>               (target="out-of-domain")
        alpha_i <- alpha_i exp(eta_t W_i / mu) / sum
        alpha   <- (1 - reweight_eps) alpha + reweight_eps / D

    eta_t is the learning rate in force: `signals.extra["lr"]`, else the option `lr`. The paper runs
    this on a small proxy and trains the model with the mean of alpha (`output="average"`).

    variant="code" is the authors' program (DoGE 88400e9, src/trainer.py; run side by side in
    float64 it gives the same weights to 1e-14), which differs in three ways, each an option of its
    own:

    * `self_term`: it sums over all j, its own i among them (it means to leave i out, but compares
      sets of tensors, which are never equal);
    * `normalise`: W_i is divided by the mean norm of the domains' gradients + 1e-6;
    * `clip`: eta_t W_i is clipped to [eta_t dw_min, eta_t dw_max] = [0, 5 eta_t]: alignment below 0
      is not told from 0.

    It also clips every domain's gradient to norm 5 (1 out of domain) before the products: give
    `clip_norm` to the gradient helper. The default is the paper's rule.

    Signals: `grad_dot` float64[D, D] (in domain, and for `normalise`), `grad_target` float64[D] or
    float64[D, N] (out of domain). Products with a domain that was not measured stay what they last
    were; a domain that never was keeps its weight and counts for nothing in the sums of the others.

    Args:
        domains: What the weights are for.
        initial: alpha_0; None: uniform.
        variant: "paper" or "code".
        target: "in-domain" or "out-of-domain".
        mu: Of the Bregman divergence; 0.05 in the program and its out-of-domain runs, 0.01 in its
            main one.
        lr: eta where no signal tells it.
        self_term, normalise, clip: None: as the variant has it.
        dw_min, dw_max: Bounds of the clip, in units of eta_t.
        reweight_eps: Smoothing, in [0, 1].
        output: "current" alpha, or the "average" over all updates so far.
    """

    name = "doge"
    family = "dynamic externally guided"
    update_every = 1
    cost = "D gradients an update (and N of targets)"
    paper = "Fan, Pagliardini, Jaggi (2023), arXiv 2310.15393"
    needs: tuple[str, ...] = ("grad_dot",)
    state_fields = ("_log_weights", "_dot", "_target", "_sum", "_updates")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        variant: str = "paper",
        target: str = "in-domain",
        mu: float = 0.05,
        lr: float = 5e-4,
        self_term: bool | None = None,
        normalise: bool | None = None,
        clip: bool | None = None,
        dw_min: float = 0.0,
        dw_max: float = 5.0,
        reweight_eps: float = 0.0,
        output: str = "current",
    ) -> None:
        super().__init__(domains, initial=initial)
        code = choice("variant", variant, ("paper", "code")) == "code"
        self.target = choice("target", target, ("in-domain", "out-of-domain"))
        self.mu = number("mu", mu, 0.0, above=True)
        self.lr = number("lr", lr, 0.0)
        self.self_term = code if self_term is None else flag("self_term", self_term)
        self.normalise = code if normalise is None else flag("normalise", normalise)
        self.clip = code if clip is None else flag("clip", clip)
        self.dw_min, self.dw_max = number("dw_min", dw_min), number("dw_max", dw_max)
        if self.dw_min > self.dw_max:
            raise ArgumentError(f"dw_min must be <= dw_max, got {dw_min} and {dw_max}")
        self.reweight_eps = number("reweight_eps", reweight_eps, 0.0, 1.0)
        self.output = choice("output", output, ("current", "average"))
        if self.target == "out-of-domain":
            self.needs = ("grad_dot", "grad_target") if self.normalise else ("grad_target",)
        d = len(self.domains)
        self._log_weights = log(self._weights)
        self._dot = np.full((d, d), np.nan)
        self._target = np.full(d, np.nan)
        self._sum = np.zeros(d)
        self._updates = 0

    def average(self) -> Floats:
        """Mean of alpha over all updates so far, what the paper hands to the large run."""
        return self._sum / self._updates if self._updates else self.weights()

    def _update(self, signals: Signals) -> Floats:
        lr = learning_rate(signals, self.lr)
        dot, target = self._dot, self._target
        if signals.grad_dot is not None:
            dot = carried(signals.grad_dot, dot)
        if self.target == "out-of-domain":
            target = carried(columns(signals.grad_target).sum(axis=1), target)
        with np.errstate(over="ignore", invalid="ignore"):
            scores = lr * (target if self.target == "out-of-domain" else self._alignment(dot))
            if self.normalise:
                scores = scores / (_mean_norm(dot) + 1e-6)
            if self.clip:
                scores = np.clip(scores, lr * self.dw_min, lr * self.dw_max)
            log_weights = smooth(
                exponentiate(self._log_weights, scores / self.mu), self.reweight_eps
            )
        self._dot, self._target, self._log_weights = dot, target, log_weights
        self._sum = self._sum + np.exp(log_weights)
        self._updates += 1
        return self.average() if self.output == "average" else np.exp(log_weights)

    def _alignment(self, dot: Floats) -> Floats:
        """W_i, NaN for a domain that was never measured."""
        products = np.where(np.isnan(dot), 0.0, dot)
        if not self.self_term:
            products = products - np.diag(np.diagonal(products))
        return np.where(np.isnan(np.diagonal(dot)), np.nan, products.sum(axis=1))


def _mean_norm(dot: Floats) -> float:
    """Mean norm of the measured domains' gradients."""
    norm2 = np.diagonal(dot)
    norm2 = norm2[~np.isnan(norm2)]
    if (norm2 < 0).any():
        raise ArgumentError(f"grad_dot must have a diagonal >= 0, got {norm2.tolist()}")
    return float(np.sqrt(norm2).mean()) if len(norm2) else 0.0
