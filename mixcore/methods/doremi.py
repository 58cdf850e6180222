"""DoReMi: domains with more excess loss over a reference model are weighted up."""

import math
from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
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
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    flag,
    normalise,
    number,
)
from mixcore.signals import Signals

CLIPS = ("token", "mean", "none")


@register
class DoReMi(Method):
    """Weight up what is learned worse than by a reference model (group DRO over excess losses).

    lambda_i = mean over the tokens of domain i of max(l(token) - l_ref(token), 0)
    a' = a * exp(eta lambda);  a <- (1 - c) a' / sum_j a'_j + c / D

    a, lambda: float64[D]; losses in nats per token. Here the run itself is the proxy; the paper
    trains a small one with uniform sampling and these weights on the losses, and takes their mean
    over all steps (`average()`, or output="average") for the large run. Compared with
    doremi/trainer.py of sangmichaelxie/doremi (7cde52d) and trainer/doremi_trainer.py of
    HazyResearch/aioli (a236112: clip="mean", reuse_zero=True).

    The clip per token and that of the mean are not the same: the former is almost never 0, so it
    pushes harder on noisy domains.

    Args:
        initial: a_0; the paper's is uniform.
        eta: Step size. The paper 1, Aioli's port 0.01.
        c: Uniform mixing. The paper 1e-3.
        clip: "token": needs the signal excess_loss, clipped per token where the tokens are;
            "mean": max(loss - reference_loss, 0) of the domain means; "none": not clipped.
        source: "train" or "val", the loss that "mean" and "none" compare with the reference.
        reference_loss: Constant l_ref, one a domain; None: the signal reference_loss.
        initial_score: lambda of a domain that was never seen; None: the mean of the others. The
            code takes log(vocabulary size).
        reuse_zero: A score of exactly 0 before clipping counts as absent (Aioli's port).
        output: "current": `weights` gives a; "average": the mean of a.
        variant: "paper": the mean is over the updates; "code": the initial weights count as
            one more.
    """

    name = "doremi"
    family = "dynamic adaptive"
    update_every = 1
    cost = "one forward pass of a reference model a step, for the excess losses"
    paper = "Xie, Pham, Dong, Du, Liu, Lu, Liang, Le, Ma, Yu 2023, 2305.10429"
    needs = ("excess_loss",)
    state_fields = ("_alpha", "_scores", "_sum", "_count")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        eta: float = 1.0,
        c: float = 1e-3,
        clip: str = "token",
        source: str = "train",
        reference_loss: Weights | None = None,
        initial_score: float | None = None,
        reuse_zero: bool = False,
        output: str = "current",
        variant: str = "paper",
    ) -> None:
        super().__init__(domains, initial=initial)
        self.eta = number("eta", eta, 0)
        self.c = number("c", c, 0, 1)
        self.clip = choice("clip", clip, CLIPS)
        self.source = choice("source", source, SOURCES)
        self.reference_loss = losses("reference_loss", reference_loss, self.domains)
        if self.clip == "token" and reference_loss is not None:
            raise ArgumentError(
                "reference_loss must be None with clip='token', where excess_loss holds the "
                f"comparison already, got {reference_loss!r}"
            )
        if self.clip != "token":
            given = () if self.reference_loss is not None else ("reference_loss",)
            self.needs = (*loss_needs(self.source), *given)
        self.reuse_zero = flag("reuse_zero", reuse_zero)
        self.output = choice("output", output, ("current", "average"))
        counted = choice("variant", variant, ("paper", "code")) == "code"
        first = math.nan if initial_score is None else number("initial_score", initial_score)
        self._alpha = self._weights
        self._scores = np.full(len(self.domains), first)
        self._sum = self._alpha * counted
        self._count = int(counted)

    def average(self) -> Floats:
        """Mean of the weights so far, float64[D]: the paper's answer."""
        return normalise(self._sum) if self._count else self.weights()

    def _update(self, signals: Signals) -> Floats:
        if self.clip == "token":
            scores = bounded(signals.excess_loss)
        else:
            reference = self.reference_loss
            if reference is None:
                reference = bounded(signals.reference_loss)
            scores = measured(signals, self.source) - reference
        if self.reuse_zero:
            scores = np.where(scores == 0, np.nan, scores)
        if self.clip != "none":
            scores = np.maximum(scores, 0)
        self._scores = carried(scores, self._scores)
        self._alpha = exponential_step(self._alpha, self.eta * filled(self._scores), self.c)
        self._sum = self._sum + self._alpha
        self._count += 1
        return self._alpha if self.output == "current" else self.average()
