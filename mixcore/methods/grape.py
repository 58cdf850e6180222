"""GRAPE: group robust multi-target adaptive pretraining."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods._exponentiated import by_task, columns, exponentiate, learning_rate
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    log,
    normalise,
    number,
    whole,
)
from mixcore.signals import Signals


@register
class GRAPE(Method):
    """A minimax game: task weights seek the target that improves least, domain weights help it.

        z_n     <- z_n     exp(-(gamma_t / mu_z)     <grad log l_n, g(x ~ mix(alpha))>) / sum
        alpha_k <- alpha_k exp(+(gamma_t / mu_alpha) <g_k, grad log l(y ~ mix(z))>)     / sum

    K = D domains, N target tasks; gamma_t is the learning rate in force (`signals.extra["lr"]`,
    else the option `lr`). The paper's algorithm prints "gamma_t mu a_t"; its derivation, its eq. 3
    and 4 and the authors' program divide by mu, and so does this.

    Signals: `grad_target`, float64[D, N], products <g_k, grad l_n>, and `extra["target_losses"]`,
    float[N], the l_n, which turn them into products with grad log l_n (not needed for
    gradients="log": they are that already; a helper that differentiates log l gives them).
    estimate="expected" takes both mixed gradients in expectation, sum_k alpha_k g_k and
    sum_n z_n grad log l_n; estimate="sampled" takes products with gradients of mixed batches
    that were really drawn, `extra["mix_target"]` float[D] and `extra["mix_train"]` float[N], used
    as they are. A product that was not measured stays what it last was; never measured, it counts
    for nothing, and a weight without any product stays.

    variant (program multi-target-data-mixing 3b0c25c, src/trainer.py; run side by side in float64
    with estimate="sampled", order="alpha first" it gives the same weights to 1e-14; with "map_gap"
    and "map_ema" the products must be of plain gradients, or the mixed ones of what the variant
    says):

    * "map": grad log l in both updates, the paper's;
    * "map_gap": plain gradients in both;
    * "map_ema": grad log l for the domains; for the tasks grad l_n over a moving average of l_n
      (factor `ema_beta`; the program forgets it at a restart, this does not).

    The program's mini-batch gradients of the mixed side are summed, not averaged: `num_batches` is
    that factor. It clips each gradient (norm 1 or 5) after the logarithm.

    Args:
        domains: What the weights are for.
        initial: alpha_0; None: uniform.
        initial_z: z_0, float[N]; None: uniform.
        variant: See above.
        estimate: "expected" or "sampled".
        gradients: "loss" or "log": what the targets' gradients in grad_target are of.
        lr: gamma where no signal tells it.
        mu_alpha: mu_train in the program.
        mu_z: mu_tgt in the program; its runs use 1e-5 to 2e-4.
        order: "simultaneous": both from the old weights (the paper); "alpha first": z sees the
            new alpha (the program).
        alpha_every, z_every: Update alpha, z at every so many updates.
        num_batches: Factor of the expected mixed gradients.
        ema_beta: See map_ema.
    """

    name = "grape"
    family = "dynamic externally guided"
    needs: tuple[str, ...] = ("grad_target",)
    update_every = 100
    cost = "D + N gradients an update (and 2 of mixed batches when sampled); 15 % at D=7, N=6"
    paper = "Fan, Glarou, Jaggi (2025), arXiv 2505.20380"
    state_fields = ("_log_weights", "_log_z", "_dot", "_ema", "_updates")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        initial_z: Any = None,
        variant: str = "map",
        estimate: str = "expected",
        gradients: str = "loss",
        lr: float = 5e-4,
        mu_alpha: float = 1e-3,
        mu_z: float = 1e-4,
        order: str = "simultaneous",
        alpha_every: int = 1,
        z_every: int = 1,
        num_batches: float = 1.0,
        ema_beta: float = 0.9,
    ) -> None:
        super().__init__(domains, initial=initial)
        self.variant = choice("variant", variant, ("map", "map_gap", "map_ema"))
        self.estimate = choice("estimate", estimate, ("expected", "sampled"))
        self.gradients = choice("gradients", gradients, ("loss", "log"))
        if self.gradients == "log" and self.variant != "map":
            raise ArgumentError(f"gradients='log' goes with variant 'map' only, got {variant!r}")
        self.lr = number("lr", lr, 0.0)
        self.mu_alpha = number("mu_alpha", mu_alpha, 0.0, above=True)
        self.mu_z = number("mu_z", mu_z, 0.0, above=True)
        self.order = choice("order", order, ("simultaneous", "alpha first"))
        self.alpha_every = whole("alpha_every", alpha_every, 1)
        self.z_every = whole("z_every", z_every, 1)
        self.num_batches = number("num_batches", num_batches, 0.0, above=True)
        self.ema_beta = number("ema_beta", ema_beta, 0.0, 1.0)
        if self.estimate == "sampled":
            self.needs = ()
        self._log_weights = log(self._weights)
        # N is known from the first signals, unless the weights tell it
        self._log_z: Floats | None = None
        if initial_z is not None:
            z = np.array(initial_z, dtype=np.float64)
            self._log_z = log(normalise(by_task("initial_z", z, z.size)))
        self._dot: Floats | None = None
        self._ema: Floats | None = None
        self._updates = 0

    def task_weights(self) -> Floats | None:
        """z, float64[N]; None before the first signals if `initial_z` was not given."""
        return None if self._log_z is None else np.exp(self._log_z)

    def _update(self, signals: Signals) -> Floats:
        lr = learning_rate(signals, self.lr)
        n = self._num_tasks(signals)
        log_z = self._log_z if self._log_z is not None else np.full(n, -np.log(n))
        if len(log_z) != n:
            raise ArgumentError(f"the signals are of {n} target tasks, before of {len(log_z)}")
        losses = self._losses(signals, n)
        ema = self._ema
        number_of_this = self._updates + 1
        move_alpha = number_of_this % self.alpha_every == 0
        move_z = number_of_this % self.z_every == 0
        if self.variant == "map_ema" and move_z and losses is not None:
            ema = losses if ema is None else self.ema_beta * ema + (1 - self.ema_beta) * losses
        dot = self._dot
        log_alpha = self._log_weights
        with np.errstate(over="ignore", invalid="ignore"):
            if self.estimate == "expected":
                new = columns(signals.grad_target)
                dot = new if dot is None else carried(new, dot)
            if move_alpha:
                a = self._for_domains(signals, dot, losses, log_z)
                log_alpha = exponentiate(log_alpha, lr * a / self.mu_alpha)
            if move_z:
                seen = log_alpha if self.order == "alpha first" else self._log_weights
                b = self._for_tasks(signals, dot, losses, ema, seen)
                log_z = exponentiate(log_z, -lr * b / self.mu_z)
        self._dot, self._ema, self._log_z = dot, ema, log_z
        self._log_weights, self._updates = log_alpha, number_of_this
        return np.exp(log_alpha)

    def _num_tasks(self, signals: Signals) -> int:
        if self.estimate == "expected":
            return int(columns(signals.grad_target).shape[1])
        for name in ("mix_target", "mix_train"):
            if name not in signals.extra:
                raise ArgumentError(
                    f"method 'grape' with estimate='sampled' needs signals.extra[{name!r}]: inner "
                    "products with the gradient of a batch drawn from the mixture"
                )
        return int(np.size(signals.extra["mix_train"]))

    def _losses(self, signals: Signals, n: int) -> Floats | None:
        mixed = self.estimate == "sampled"
        if self.variant == "map_gap" or (self.variant == "map" and mixed):
            return None
        if self.gradients == "log" and not mixed:
            return None
        if "target_losses" not in signals.extra:
            raise ArgumentError(
                "method 'grape' needs signals.extra['target_losses']: the targets' mean losses, "
                "one a target (or gradients='log', if the products are of log losses)"
            )
        losses = by_task("signals.extra['target_losses']", signals.extra["target_losses"], n)
        if (losses <= 0).any():
            raise ArgumentError(f"target_losses must be > 0, got {losses.tolist()}")
        return losses

    def _for_domains(
        self, signals: Signals, dot: Floats | None, losses: Floats | None, log_z: Floats
    ) -> Floats:
        """<g_k, gradient of the mixed targets>, float64[D]."""
        if self.estimate == "sampled":
            return by_task(
                "signals.extra['mix_target']", signals.extra["mix_target"], len(self.domains)
            )
        assert dot is not None
        per_task = dot if losses is None else dot / losses
        return self.num_batches * _mean(per_task, np.exp(log_z))

    def _for_tasks(
        self,
        signals: Signals,
        dot: Floats | None,
        losses: Floats | None,
        ema: Floats | None,
        log_alpha: Floats,
    ) -> Floats:
        """<gradient of task n, gradient of the mixed domains>, float64[N]."""
        divisor: Floats | float = 1.0
        if self.variant == "map_ema" and ema is not None:
            divisor = ema
        elif losses is not None:
            divisor = losses
        if self.estimate == "sampled":
            mixed = signals.extra["mix_train"]
            products = by_task("signals.extra['mix_train']", mixed, np.size(mixed))
            return products / divisor
        assert dot is not None
        return self.num_batches * _mean(dot.T, np.exp(log_alpha)) / divisor


def _mean(products: Floats, weights: Floats) -> Floats:
    """sum_j weights_j products_ij over what was measured; NaN for a row that never was."""
    known = ~np.isnan(products)
    total = np.where(known, products, 0.0) @ weights
    return np.where(known.any(axis=1), total, np.nan)
