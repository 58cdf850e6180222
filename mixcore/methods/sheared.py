"""Dynamic batch loading of Sheared-LLaMA: up go the domains that lag behind their target loss."""

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
    uniformly_mixed,
)
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    flag,
    number,
    softmax,
)
from mixcore.signals import Signals


@register
class Sheared(Method):
    """Weight up the domains that lag behind their target loss (dynamic batch loading).

    Delta_i = max(L_i - L_i^ref, 0);  a <- a * exp(eta Delta), normalised

    L: float64[D], validation losses, nats per token; L^ref: what a scaling law fitted on a model
    family predicts for this size, or the source model's own. A domain below its target only loses
    by the normalisation; without the clip it is cut actively. Compared with
    llmshearing/callbacks/dynamic_loading_callback.py of princeton-nlp/LLM-Shearing (b87218b).

    Args:
        initial: a_0; the paper's is the natural mix.
        eta: Step size; 1 in paper and code.
        reference_loss: Constant L^ref, one a domain; None: the signal reference_loss.
        variant: "paper": clip=True, c=0; "code": clip=False, c=1e-4. Both can be overridden:
        clip: Whether Delta is clipped at 0.
        c: Uniform mixing: a <- (1 - c) a + c / D.
        update_type: As in the code: "doremi", the rule above; "bandit": softmax(a + eta Delta),
            which forgets; "constant": a stays.
        source: "val" or "train", the loss L.
    """

    name = "sheared"
    family = "dynamic externally guided"
    update_every = 400  # in continued pretraining; 50 in pruning
    cost = "one validation pass an update"
    paper = "Xia, Gao, Zeng, Chen 2023, 2310.06694"
    needs = ("val_loss", "reference_loss")
    state_fields = ("_losses",)

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        eta: float = 1.0,
        reference_loss: Weights | None = None,
        variant: str = "paper",
        clip: bool | None = None,
        c: float | None = None,
        update_type: str = "doremi",
        source: str = "val",
    ) -> None:
        super().__init__(domains, initial=initial)
        self.eta = number("eta", eta, 0)
        self.reference_loss = losses("reference_loss", reference_loss, self.domains)
        paper = choice("variant", variant, ("paper", "code")) == "paper"
        self.clip = paper if clip is None else flag("clip", clip)
        self.c = (0.0 if paper else 1e-4) if c is None else number("c", c, 0, 1)
        self.update_type = choice("update_type", update_type, ("doremi", "bandit", "constant"))
        self.source = choice("source", source, SOURCES)
        given = () if self.reference_loss is not None else ("reference_loss",)
        self.needs = (*loss_needs(self.source), *given)
        self._losses = np.full(len(self.domains), np.nan)

    def _update(self, signals: Signals) -> Floats:
        reference = self.reference_loss
        if reference is None:
            reference = bounded(signals.reference_loss)
        self._losses = carried(measured(signals, self.source), self._losses)
        delta = self._losses - reference
        if self.clip:
            delta = np.maximum(delta, 0)
        step = self.eta * filled(delta)
        if self.update_type == "constant":
            return self._weights
        if self.update_type == "bandit":
            return uniformly_mixed(softmax(bounded(self._weights + step)), self.c)
        return exponential_step(self._weights, step, self.c)
