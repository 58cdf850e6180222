"""R&B: the balance half of regroup and balance."""

from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    flag,
    normalise,
    number,
    per_domain,
    softmax,
)
from mixcore.signals import Signals


@register
class RB(Method):
    """Weights anew in every round from the Gram matrix of the gradients that training made anyway.

        G_ij = <g_i, g_j> / (|S_i| |S_j|)
        p    = softmax( lam G p_eval / |G p_eval|_2 )

    g_i is the sum of the last layer's gradients over the samples S_i that the round (K steps) took
    from domain i, p_eval the evaluation mix. Nothing multiplies from round to round: p is
    overwritten. `normalise=False` is the paper's appendix (its algorithm 3): softmax(eta lam G
    p_eval), not divided by the norm. The one published lam is 3.

    The other half, regrouping, makes the domains: embed, k-means, k by silhouette.

    Signals: `grad_dot` float64[D, D] and, where the products are of sums, `samples` int64[D]. The
    gradient helper gives products of means (it says so in `extra["gradients"]`), which are G
    already. A product that was not measured stays what it last was; a domain that never was keeps
    its weight. Where nothing was measured, or G p_eval is exactly 0, the weights stay.

    Args:
        domains: What the weights are for.
        initial: p_0; None: uniform, as in the paper.
        p_eval: The evaluation mix; None: uniform.
        lam: lambda.
        normalise: Divide by the norm (algorithm 1).
        eta: Used with normalise=False only.
        gradients: "sum" or "mean": what grad_dot is of; None: what the signals say, else "sum".
    """

    name = "rb"
    family = "dynamic externally guided"
    needs: tuple[str, ...] = ("grad_dot",)
    cost = "D^2 products of last-layer gradients a round; 0.0006 to 0.1 % in the paper"
    paper = "Ge, Huang, Cooper et al. (2025), arXiv 2505.00358"
    state_fields = ("_gram",)

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        p_eval: Weights | None = None,
        lam: float = 3.0,
        normalise: bool = True,
        eta: float = 1.0,
        gradients: str | None = None,
    ) -> None:
        super().__init__(domains, initial=initial)
        d = len(self.domains)
        self.p_eval = (
            np.full(d, 1 / d) if p_eval is None else _share("p_eval", p_eval, self.domains)
        )
        self.lam = number("lam", lam, 0.0)
        self.normalise = flag("normalise", normalise)
        self.eta = number("eta", eta, 0.0)
        if gradients is not None:
            choice("gradients", gradients, ("sum", "mean"))
        self.gradients = gradients
        if gradients == "sum":
            self.needs = ("grad_dot", "samples")
        self._gram = np.full((d, d), np.nan)

    def _update(self, signals: Signals) -> Floats:
        gram = carried(self._scaled(signals), self._gram)
        known = ~np.isnan(np.diagonal(gram))
        products = np.where(np.isnan(gram), 0.0, gram)
        with np.errstate(over="ignore", invalid="ignore"):
            # scaled first, so that the norm of huge or tiny products neither overflows nor vanishes
            gain = (products @ self.p_eval)[known]
            if not np.isfinite(gain).all():
                raise ArgumentError(f"grad_dot is too large: G p_eval is {gain.tolist()}")
            top = float(np.abs(gain).max(initial=0.0))
            if self.normalise and top > 0.0:
                gain = gain / top
                gain = gain / float(np.linalg.norm(gain))
            logits = (self.lam if self.normalise else self.eta * self.lam) * gain
        if not np.isfinite(logits).all():
            raise ArgumentError(f"eta lam G p_eval must be finite, got {logits.tolist()}")
        self._gram = gram
        if top == 0.0:
            return self._weights
        weights = self._weights.copy()
        weights[known] = softmax(logits) * (1.0 - weights[~known].sum())
        return weights

    def _scaled(self, signals: Signals) -> Floats:
        """G, with NaN where nothing was measured."""
        kind = self.gradients or signals.extra.get("gradients", "sum")
        choice("signals.extra['gradients']", kind, ("sum", "mean"))
        gram: Floats = signals.grad_dot
        if kind == "mean":
            return gram
        if signals.samples is None:
            raise ArgumentError(
                "method 'rb' needs the signal samples, got None: the samples that each domain's "
                "summed gradient is of (or gradients='mean')"
            )
        count = np.where(signals.samples > 0, signals.samples, np.nan).astype(np.float64)
        return gram / count[:, None] / count[None, :]


def _share(name: str, value: Weights, domains: Sequence[Domain]) -> Floats:
    return normalise(per_domain(name, value, domains))
