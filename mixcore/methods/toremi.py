"""ToReMi: first the topics with high loss count more, later they count less, as noise."""

import math
from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods._losses import SOURCES, loss_needs, measured
from mixcore.methods.base import Floats, Method, Weights, choice, number, whole
from mixcore.signals import Signals


@register
class ToReMi(Method):
    """First topics with a high loss count more, later they count less, as noise.

    d_i = (l_i - l) / l, with l the mean of the l_i over the topics in the window.
    Stage 0:  l_i > l: w_i <- min(w_i (1 + d_i), w_max);  else w_i stays.
    Stage 1:  l_i > l: w_i <- max(w_i (1 - d_i), w_min);  else w_i <- min(w_i (1 + |d_i|), w_max).

    w starts at 1. A domain is a topic; l_i: mean loss per token since the last update, nats. In the
    paper w multiplies the loss of a sample and sampling stays; here the mix is p_i = initial_i w_i,
    normalised, which has the same mean gradient up to scale. `multipliers` gives w for those who
    weight losses. Compared with train/trainer.py of zxx000728/ToReMi (ecb763a).

    A topic that is absent from a window keeps its w. (The code takes its loss as 0, which in
    stage 1 doubles w; that is not offered.)

    Args:
        initial: The sampling mix that w multiplies; None: uniform.
        variant: "paper": stage 1 begins once the mean validation loss falls by no more than
            min_decrease_rate of itself between two updates; "code": after stage_step.
        stage_step: Last step of stage 0, for "code"; there 7000 of 8000.
        min_decrease_rate: For "paper"; 0.01 in the code, which declares it and has its use
            commented out.
        min_weight: w_min.
        max_weight: w_max.
        source: "train" or "val", the loss l_i.
    """

    name = "toremi"
    family = "dynamic adaptive"
    update_every = 100
    cost = "once: label the corpus with topics"
    paper = "Zhu, Gu, Zheng, Wang, Li, Feng, Xiao 2025, 2504.00695"
    needs = ("loss_sum", "tokens", "val_loss")
    state_fields = ("_multipliers", "_stage", "_val_loss")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        variant: str = "paper",
        stage_step: int = 7000,
        min_decrease_rate: float = 0.01,
        min_weight: float = 0.1,
        max_weight: float = 5.0,
        source: str = "train",
    ) -> None:
        super().__init__(domains, initial=initial)
        self.variant = choice("variant", variant, ("paper", "code"))
        self.stage_step = whole("stage_step", stage_step)
        self.min_decrease_rate = number("min_decrease_rate", min_decrease_rate)
        self.min_weight = number("min_weight", min_weight, 0, 1, above=True)
        self.max_weight = number("max_weight", max_weight, 1)
        self.source = choice("source", source, SOURCES)
        more = ("val_loss",) if self.variant == "paper" else ()
        self.needs = tuple(dict.fromkeys((*loss_needs(self.source), *more)))
        self.initial = self._weights
        self._multipliers = np.ones(len(self.domains))
        self._stage = 0
        self._val_loss = math.nan

    def multipliers(self) -> Floats:
        """w, what the paper multiplies losses with: float64[D]."""
        return self._multipliers.copy()

    def _update(self, signals: Signals) -> Floats:
        loss = measured(signals, self.source)
        present = ~np.isnan(loss)
        self._switch(signals)
        mean = loss[present].mean() if present.any() else 0.0
        if mean == 0:
            return self._weights
        d = np.where(present, (loss - mean) / abs(mean), 0.0)
        factor = np.where(d > 0, 1 + d, 1.0) if self._stage == 0 else 1 - d
        moved = np.clip(self._multipliers * factor, self.min_weight, self.max_weight)
        self._multipliers = np.where(present, moved, self._multipliers)
        return self.initial * self._multipliers

    def _switch(self, signals: Signals) -> None:
        """Go to stage 1 for good, if it is time."""
        if self.variant == "code":
            self._stage = int(self._stage or signals.step > self.stage_step)
            return
        known = signals.val_loss[~np.isnan(signals.val_loss)]
        if not len(known):
            return
        now, before = float(np.clip(known, -1e300, 1e300).mean()), self._val_loss
        self._val_loss = now
        if before - now <= self.min_decrease_rate * before:  # False while before is NaN
            self._stage = 1
