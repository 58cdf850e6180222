"""Weights in proportion to recent losses."""

from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods._losses import SOURCES, filled, loss_needs, measured
from mixcore.methods.base import Floats, Method, Weights, carried, choice, log, number, softmax
from mixcore.signals import Signals


@register
class LossProportional(Method):
    """Weights in proportion to recent losses.

    M_i <- s M_i + (1 - s) L_i from M_i = the first L_i;  p_i = M_i^q / sum_j M_j^q

    L: float64[D], mean loss per token since the last update. A simple scheme to compare others
    with; s = 0, q = 1 is Mixtera's SimpleAveraging (eth-easl/mixtera c861dd8). While all losses are
    0 the weights stay.

    Args:
        initial: Weights before the first update.
        smoothing: s in [0, 1).
        power: q; above 1 sharpens, 0 is uniform.
        source: "train" or "val", the loss L.
    """

    name = "loss_proportional"
    family = "dynamic adaptive"
    paper = "Bother et al. 2025, 2502.19790 (Mixtera)"
    needs: tuple[str, ...] = ("loss_sum", "tokens")
    state_fields = ("_mean",)

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        smoothing: float = 0.0,
        power: float = 1.0,
        source: str = "train",
    ) -> None:
        super().__init__(domains, initial=initial)
        self.smoothing = number("smoothing", smoothing, 0, 1 - 1e-12)
        self.power = number("power", power, 0, 1e6)
        self.source = choice("source", source, SOURCES)
        self.needs = loss_needs(self.source)
        self._mean = np.full(len(self.domains), np.nan)

    def _update(self, signals: Signals) -> Floats:
        loss = np.maximum(measured(signals, self.source), 0)
        smoothed = self.smoothing * self._mean + (1 - self.smoothing) * loss
        self._mean = carried(np.where(np.isnan(self._mean), loss, smoothed), self._mean)
        mean = filled(self._mean)
        return softmax(self.power * log(mean)) if mean.any() else self._weights
