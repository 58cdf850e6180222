"""ODM: online data mixing as a bandit whose arms are the domains and whose reward is the loss."""

import math
from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain
from mixcore.methods import register
from mixcore.methods._losses import bounded, filled, loss_needs, measured
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    number,
    softmax,
    whole,
)
from mixcore.signals import Signals

VARIANTS = ("paper", "code", "code_softmax", "exp3", "naive_validation", "ema", "ema_softmax")
# exp of a larger reward is taken as that of this one, which float64 still holds.
LARGEST_EXPONENT = 690.0


@register
class ODM(Method):
    """A bandit whose arms are the K domains and whose reward is their loss.

    R_i: what domain i is worth;  eps_t = min(1/K, sqrt(ln K / (K t))), t = step;

    p_i = (1 - K eps_t) exp(eps_{t-1} R_i) / sum_j exp(eps_{t-1} R_j) + eps_t

    with eps_{t-1} that of the update before (1/K at first). For the domains seen in the window,
    with L_i their mean loss per token (nats), pi_i their weight in force, s the smoothing factor:

    "paper"              R_i <- s R_i + (1 - s) L_i / pi_i
    "code"               R_i <- s R_i + (1 - s) exp(L_i);  p_i = (1 - K eps_t) R_i / sum R + eps_t
    "code_softmax"       R_i <- s R_i + (1 - s) exp(L_i)
    "exp3"               R_i <- R_i + L_i / reward_scale / pi_i
    "naive_validation"   R_i <- R_i + (V_i - min V) / (max V - min V), V: validation losses
    "ema"                R_i <- f L_i + (1 - f) R_i, f = min(2 / (1 + t), 1);  p_i = R_i / sum R
    "ema_softmax"        the same R, which starts at `initial`;  p_i = exp(R_i) / sum exp(R)

    All are in megatron/data/data_sampling_utils.py of alon-albalak/online-data-mixing (edbfdad),
    except "paper": "code" is SmoothedMeanWeightUpdater.group_update, the path used with mixed
    batches. There eps_{t-1} cancels, so it samples in proportion to smoothed perplexity, with
    exploration. "code_softmax" is that class's `update`. "exp3" and "naive_validation" sum up and
    never forget.

    Args:
        initial: Weights during warm-up.
        smoothing_factor: s; 0.9 by default in paper and code, 0.5 in the code's scripts.
        warmup_steps: Up to this step the weights stay and no reward is taken. The paper: 1 % of
            the run; the scripts: 2 %.
        initial_reward: "first": R of a domain starts as its first reward, and until then it counts
            as the mean of the seen ones, so that nobody starves unseen; "zero": R starts at 0 as in
            the code, where an unseen domain has only eps_t; None: "first" for "paper", else "zero".
        reward_scale: Divides the loss in "exp3"; 10 in the code.
    """

    name = "odm"
    family = "dynamic adaptive"
    update_every = 1
    cost = "none (one validation batch a domain for naive_validation)"
    paper = "Albalak, Pan, Raffel, Wang 2023, 2312.02406"
    needs: tuple[str, ...] = ("loss_sum", "tokens")
    state_fields = ("_rewards", "_eps", "_val_loss")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        variant: str = "paper",
        smoothing_factor: float = 0.9,
        warmup_steps: int = 0,
        initial_reward: str | None = None,
        reward_scale: float = 10.0,
    ) -> None:
        super().__init__(domains, initial=initial)
        self.variant = choice("variant", variant, VARIANTS)
        self.smoothing_factor = number("smoothing_factor", smoothing_factor, 0, 1 - 1e-12)
        self.warmup_steps = whole("warmup_steps", warmup_steps)
        first = "first" if self.variant == "paper" else "zero"
        if initial_reward is not None:
            first = choice("initial_reward", initial_reward, ("first", "zero"))
        self.reward_scale = number("reward_scale", reward_scale, 0, above=True)
        self.needs = loss_needs("val" if self.variant == "naive_validation" else "train")
        num = len(self.domains)
        self._eps = 1 / num
        self._val_loss = np.full(num, np.nan)
        # In the variants with exp(L) this is log R, which no loss can overflow.
        self._logarithmic = self.variant in ("code", "code_softmax")
        zero = -math.inf if self._logarithmic else 0.0
        self._rewards = np.full(num, zero if first == "zero" else np.nan)
        if self.variant.startswith("ema"):
            self._rewards = self._weights

    def _update(self, signals: Signals) -> Floats:
        if signals.step <= self.warmup_steps:
            return self._weights
        loss = measured(signals, "val" if self.variant == "naive_validation" else "train")
        if np.isnan(loss).all():
            return self._weights
        time = max(signals.step, 1)
        self._rewards = self._observed(loss, signals.weights, time)
        num = len(self.domains)
        last, self._eps = self._eps, min(1 / num, math.sqrt(math.log(num) / (num * time)))
        rewards = self._known_rewards()
        if self.variant == "ema":
            return rewards if rewards.any() else self._weights
        if self.variant == "ema_softmax":
            return softmax(rewards)
        if self.variant == "code":
            shares = softmax(rewards)  # of ln R, which is R / sum R
        else:
            if self._logarithmic:
                rewards = np.exp(np.minimum(rewards, LARGEST_EXPONENT))
            shares = softmax(bounded(last * rewards))
        return (1 - num * self._eps) * shares + self._eps

    def _observed(self, loss: Floats, weights: Floats | None, time: int) -> Floats:
        """The rewards after this window: those of absent domains as they were."""
        old, s, reward = self._rewards, self.smoothing_factor, loss
        if self._logarithmic:
            decayed = old + math.log(s) if s else np.full(len(old), -math.inf)
            with np.errstate(invalid="ignore"):  # NaN: absent
                new = np.logaddexp(decayed, loss + math.log1p(-s))
            return carried(np.where(np.isnan(old), loss, new), old)
        if self.variant in ("paper", "exp3"):
            in_force = self._weights if weights is None else weights
            reward = bounded(loss / np.maximum(in_force, 1e-12))
        if self.variant == "paper":
            new = s * old + (1 - s) * reward
        elif self.variant == "exp3":
            reward = reward / self.reward_scale
            new = old + reward
        elif self.variant == "naive_validation":
            self._val_loss = carried(loss, self._val_loss)
            low, high = np.nanmin(self._val_loss), np.nanmax(self._val_loss)
            reward = (self._val_loss - low) / (high - low if high > low else 1.0)
            new = old + reward
        else:
            f = min(2 / (1 + time), 1.0)
            new = f * np.maximum(loss, 0) + (1 - f) * old
        return bounded(carried(np.where(np.isnan(old), reward, new), old))

    def _known_rewards(self) -> Floats:
        """The rewards, with the mean of the others for a domain that was never seen."""
        unseen = np.isnan(self._rewards)
        if not self._logarithmic or not unseen.any() or unseen.all():
            return filled(self._rewards)
        seen = self._rewards[~unseen]
        mean = seen.max() + math.log(np.exp(seen - seen.max()).mean())
        return np.where(unseen, mean, self._rewards)
