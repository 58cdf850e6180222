"""Velocitune: domains that have come less far towards their target loss are weighted up."""

from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods._losses import (
    SOURCES,
    bounded,
    exponential_step,
    filled,
    loss_needs,
    losses,
    measured,
)
from mixcore.methods.base import Floats, Method, Weights, carried, choice, flag, number
from mixcore.signals import Signals


@register
class Velocitune(Method):
    """Weight up the domains that have come less far towards their target loss.

    V_i = clip((L_i - L_i^target) / (L_i^init - L_i^target), 0, 1);  w <- w * exp(eta V), normalised

    V: share of the way that is still to go, float64[D]; losses in nats per token. L^target comes
    from a Chinchilla-type law fitted on short runs of the same model on subsets of each domain. The
    paper is on continued pretraining and has no published code: its eta and its period are not
    known to us, so eta = 1 is the plain rule.

    A domain that starts at or below its target has no way to go: V is 1 above the target, else 0.

    Args:
        initial: w_0; None: uniform.
        eta: Step size.
        target_loss: Constant L^target, one a domain; None: the signal target_loss.
        initial_loss: L^init, one a domain; None: the first loss that is measured of each.
        clip: Whether V is clipped to [0, 1].
        c: Uniform mixing: w <- (1 - c) w + c / D.
        source: "val" or "train", the loss L.
    """

    name = "velocitune"
    family = "dynamic externally guided"
    cost = "one validation pass an update; beforehand short runs on subsets for the targets"
    paper = "Luo, Zhang, Liu, Li, Gong, Chen, Cheng 2024, 2411.14318"
    needs = ("val_loss", "target_loss")
    state_fields = ("_losses", "_first")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        eta: float = 1.0,
        target_loss: Weights | None = None,
        initial_loss: Weights | None = None,
        clip: bool = True,
        c: float = 0.0,
        source: str = "val",
    ) -> None:
        super().__init__(domains, initial=initial)
        self.eta = number("eta", eta, 0)
        self.target_loss = losses("target_loss", target_loss, self.domains)
        self.clip = flag("clip", clip)
        self.c = number("c", c, 0, 1)
        self.source = choice("source", source, SOURCES)
        given = () if self.target_loss is not None else ("target_loss",)
        self.needs = (*loss_needs(self.source), *given)
        self._losses = np.full(len(self.domains), np.nan)
        first = losses("initial_loss", initial_loss, self.domains)
        self._first = self._losses if first is None else first

    def _update(self, signals: Signals) -> Floats:
        target = self.target_loss
        if target is None:
            target = bounded(signals.target_loss)
        self._losses = carried(measured(signals, self.source), self._losses)
        self._first = carried(self._first, self._losses)
        left, way = self._losses - target, self._first - target
        velocity = np.where(np.isnan(left), np.nan, left > 0)
        np.divide(left, way, out=velocity, where=way > 0)
        if self.clip:
            velocity = np.clip(velocity, 0, 1)
        return exponential_step(self._weights, self.eta * filled(velocity), self.c)
