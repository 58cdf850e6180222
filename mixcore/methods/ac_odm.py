"""AC-ODM: actor-critic online data mixing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixcore.domains import Domain, stream_key
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
    whole,
)
from mixcore.signals import Signals


@register
class ACODM(Method):
    """A policy network sets the weights; its reward is how well the domains' gradients agree.

        state    z(loss_i), z(change of loss_i), z(draws_i), z(|omega_l|), z(|change of omega_l|), t
        action   a = mu(state), plus noise, on the simplex
        reward   r = sum_i a_i R_i,   W_i = <g_i, sum_{j != i} g_j>
                 variant "code":  R = z(W), each clipped to [-3, 3]
                 variant "paper": R_i <- xi R_i + (1 - xi) W_i / a_i
        DDPG     on a pool of the last transitions: see `mixcore.methods._ddpg`

    z(x) = (x - mean) / (std + 1e-8), clipped to [-3, 3], 0 for one domain; t = step / horizon. For
    the first `warmup` updates the weights are `initial` plus N(0, noise), and the actor learns to
    repeat them; then it climbs the critic. sum_i a_i R_i is the objective of the paper's theory.

    The idea is the paper's. The authors' program (AC-ODM e95863e, megatron/data/agent.py) is not
    followed where it does not do what the paper says: it never steps the policy (after the actor's
    backward pass, too, it steps the critic, which has by then received the gradient of -Q); its
    critic has one output a domain, trained on z(W), whose mean over domains is 0, and the actor
    climbs that mean; the critic's target in warm-up is (1 + gamma) r; the noise is
    -rand(22)/1000. Here the policy is stepped, the critic is one number with the reward above, and
    warm-up has the ordinary target. The program's networks have 5 hidden layers of 1,024; the ones
    here are small by default. xi and the learning rate are our choice.

    A policy trained on a small model goes to a large one by `load_state_dict` with `frozen=True`.

    Signals: `grad_dot` float64[D, D] (the paper: of three MLP layers), `loss_sum`, `tokens`,
    `draws`; with `layers` > 0 `extra["weight_norms"]` and `extra["weight_moves"]`, float[layers].
    What was not measured stays what it last was; never measured, it counts as the mean (0 in z).

    Args:
        domains: What the weights are for.
        initial: Weights in warm-up; None: uniform.
        variant: Of the reward; "code" is bounded whatever the gradients' scale.
        xi: In [0, 1).
        warmup: Updates.
        noise: Standard deviation of the noise in warm-up.
        noise_after: The same after it (the paper: none; the program: up to 0.001).
        gamma, tau, pool_size, batch_size: As in the paper's runs.
        hidden, depth: Of the networks; 1024 and 5 in the program.
        lr: Of both.
        layers: How many layers' norms are in the state.
        horizon: Steps of the run.
        frozen: Neither train nor explore: use the policy as it is.
        seed: Of the networks, the noise and the draws from the pool.
    """

    name = "ac_odm"
    family = "dynamic externally guided"
    needs = ("grad_dot", "loss_sum", "tokens", "draws")
    update_every = 1
    cost = "D gradients of a few layers and two small networks' steps an update; 0.4 % in the paper"
    paper = "Ma, Dang, Liao (2025), arXiv 2505.23878"
    state_fields = (
        "_networks",
        "_pool",
        "_last_loss",
        "_reward",
        "_alignment",
        "_updates",
    )

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        variant: str = "code",
        xi: float = 0.9,
        warmup: int = 833,
        noise: float = 0.02,
        noise_after: float = 0.0,
        gamma: float = 0.95,
        tau: float = 0.001,
        pool_size: int = 10_000,
        batch_size: int = 256,
        hidden: int = 64,
        depth: int = 2,
        lr: float = 1e-3,
        layers: int = 0,
        horizon: int = 41_667,
        frozen: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(domains, initial=initial)
        self.variant = choice("variant", variant, ("paper", "code"))
        self.xi = number("xi", xi, 0.0, 1.0)
        self.warmup = whole("warmup", warmup)
        self.noise = number("noise", noise, 0.0)
        self.noise_after = number("noise_after", noise_after, 0.0)
        self.pool_size = whole("pool_size", pool_size, 1, 1 << 20)
        self.batch_size = whole("batch_size", batch_size, 1, 1 << 20)
        self.layers = whole("layers", layers, 0, 1 << 16)
        self.horizon = whole("horizon", horizon, 1)
        self.frozen = flag("frozen", frozen)
        self.seed = whole("seed", seed, 0, (1 << 64) - 1)
        d = len(self.domains)
        self._ddpg = _ddpg().DDPG(
            3 * d + 2 * self.layers + 1,
            d,
            hidden=whole("hidden", hidden, 1, 1 << 14),
            depth=whole("depth", depth, 1, 64),
            lr=number("lr", lr, 0.0, above=True),
            gamma=number("gamma", gamma, 0.0, 1.0),
            tau=number("tau", tau, 0.0, 1.0),
            seed=stream_key(self.seed, "ac_odm networks") >> 1,
        )
        self._initial = self._weights
        self._last_loss = np.full(d, np.nan)
        self._alignment = np.full(d, np.nan)
        self._reward = np.zeros(d)
        self._updates = 0
        # states s_0 ... s_n and what is between them: transition k is (s_k, a_k, r_k, s_k+1)
        self._states: list[Any] = []
        self._actions: list[Any] = []
        self._rewards: list[float] = []

    def _update(self, signals: Signals) -> Floats:
        loss = carried(signals.loss, self._last_loss)
        state = self._state(signals, loss)
        action = self._weights if signals.weights is None else normalise(signals.weights)
        alignment = carried(_alignment(signals.grad_dot), self._alignment)
        domain_reward, reward = self._rewarded(alignment, action)
        rng = np.random.Generator(
            np.random.Philox(key=stream_key(self.seed, "ac_odm"), counter=[self._updates, 0, 0, 0])
        )
        # all checks are done: from here on the state changes
        self._last_loss, self._alignment, self._reward = loss, alignment, domain_reward
        if self._states:
            self._actions.append(action.astype(np.float32))
            self._rewards.append(reward)
        self._states.append(state)
        if len(self._rewards) > self.pool_size:
            del self._states[0], self._actions[0], self._rewards[0]
        self._updates += 1
        warming = self._updates <= self.warmup
        if self._rewards and not self.frozen:
            self._learn(rng, warming)
        weights = self._initial if warming and not self.frozen else self._ddpg.act(state)
        noise = 0.0 if self.frozen else self.noise if warming else self.noise_after
        if noise > 0.0 and len(weights) > 1:
            noisy = np.maximum(weights + rng.normal(0.0, noise, len(weights)), 0.0)
            weights = noisy if noisy.any() else weights
        return weights

    def _learn(self, rng: np.random.Generator, warming: bool) -> None:
        n = len(self._rewards)
        chosen = rng.choice(n, min(n, self.batch_size), replace=False)
        states = np.stack([self._states[k] for k in chosen])
        actions = np.stack([self._actions[k] for k in chosen])
        later = np.stack([self._states[k + 1] for k in chosen])
        rewards = np.array([self._rewards[k] for k in chosen], dtype=np.float32)
        self._ddpg.learn_critic(states, actions, rewards, later)
        if warming:
            self._ddpg.imitate(states, actions)
        else:
            self._ddpg.learn_actor(states)
        self._ddpg.follow()

    def _state(self, signals: Signals, loss: Floats) -> Any:
        parts = [_z(loss), _z(loss - self._last_loss), _z(signals.draws.astype(np.float64))]
        for name in ("weight_norms", "weight_moves") if self.layers else ():
            values = np.array(signals.extra.get(name, ()), dtype=np.float64)
            if values.shape != (self.layers,) or not np.isfinite(values).all():
                raise ArgumentError(
                    f"method 'ac_odm' needs signals.extra[{name!r}]: {self.layers} finite norms of "
                    f"layers (of their change since the last update), got {values.tolist()}"
                )
            parts.append(_z(values))
        state = np.concatenate([*parts, [signals.step / self.horizon]]).astype(np.float32)
        if not np.isfinite(state).all():
            raise ArgumentError(f"losses and norms are too large for a state: {state.tolist()}")
        return state

    def _rewarded(self, alignment: Floats, action: Floats) -> tuple[Floats, float]:
        """R, float64[D], and the reward of the action."""
        if self.variant == "code":
            reward = _z(alignment)
        else:
            move = ~np.isnan(alignment) & (action > 0)
            with np.errstate(over="ignore"):
                gain = np.divide(alignment, action, out=np.zeros_like(action), where=move)
            reward = np.where(move, self.xi * self._reward + (1 - self.xi) * gain, self._reward)
        total = float(action @ reward)
        if not abs(total) <= 1e6:
            raise ArgumentError(
                f"the reward must be within 1e6, got {total}: scale the gradients or use "
                "variant='code'"
            )
        return reward, total

    @property
    def _networks(self) -> dict[str, str]:
        packed: dict[str, str] = self._ddpg.pack()
        return packed

    @_networks.setter
    def _networks(self, packed: Mapping[str, str]) -> None:
        self._ddpg.unpack(packed)

    @property
    def _pool(self) -> dict[str, Any]:
        ddpg = _ddpg()
        return {
            "count": len(self._states),
            "states": ddpg.encode(np.array(self._states)),
            "actions": ddpg.encode(np.array(self._actions)),
            "rewards": list(self._rewards),
        }

    @_pool.setter
    def _pool(self, packed: Mapping[str, Any]) -> None:
        ddpg, d = _ddpg(), len(self.domains)
        states = ddpg.decode("states", packed["states"])
        actions = ddpg.decode("actions", packed["actions"]).reshape(-1, d)
        self._states = list(states.reshape(int(packed["count"]), -1)) if len(states) else []
        self._actions = list(actions)
        self._rewards = [float(r) for r in packed["rewards"]]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; see `Method.load_state_dict`."""
        before = self.state_dict()
        try:
            super().load_state_dict(state)
        except (ArgumentError, KeyError, TypeError, ValueError) as e:
            super().load_state_dict(before)
            if isinstance(e, ArgumentError):
                raise
            raise ArgumentError(f"state is damaged: {e}") from e


def _alignment(dot: Floats) -> Floats:
    """W_i, NaN for a domain without a gradient."""
    products = np.where(np.isnan(dot), 0.0, dot)
    total = products.sum(axis=1) - np.diagonal(products)
    return np.where(np.isnan(np.diagonal(dot)), np.nan, total)


def _z(values: Floats) -> Floats:
    """Standardised over what is known and clipped to [-3, 3]; 0 for what is not."""
    known = ~np.isnan(values)
    out = np.zeros_like(values)
    if known.sum() < 2:
        return out
    some = values[known]
    # divided by the largest first: a sum of squares must not overflow
    some = some / max(float(np.abs(some).max()), 1e-300)
    unit = float(np.abs(values[known]).max())
    spread = float(some.std(ddof=1)) + (1e-8 / unit if unit > 0 else 1.0)
    out[known] = np.clip((some - some.mean()) / spread, -3.0, 3.0)
    return out


def _ddpg() -> Any:
    try:
        from mixcore.methods import _ddpg as module
    except ImportError as e:
        raise ArgumentError("method 'ac_odm' needs torch: pip install 'mixcore[train]'") from e
    return module
