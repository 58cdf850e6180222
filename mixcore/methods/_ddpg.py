"""DDPG on a simplex: two small networks, their slow copies, two optimizers. Needs torch."""

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mixcore.errors import ArgumentError
from mixcore.methods.base import Floats

Floats32 = npt.NDArray[np.float32]
NETWORKS = ("actor", "critic", "slow_actor", "slow_critic")


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads, and their sums then depend on how many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class DDPG:
    """Deterministic policy gradient (Lillicrap et al. 2015, arXiv 1509.02971), action = softmax.

    critic: minimise (Q(s, a) - (r + gamma Q'(s', mu'(s'))))^2; actor: maximise Q(s, mu(s)), by the
    actor's parameters only; then the slow copies move by tau.

    Args:
        state_dim: Numbers in a state.
        action_dim: D.
        hidden: Width of the hidden layers.
        depth: Number of hidden layers.
        lr: Of both Adam optimizers.
        gamma: Discount.
        tau: Of the slow copies.
        seed: Of the networks' first values; the global generator is left alone.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        hidden: int,
        depth: int,
        lr: float,
        gamma: float,
        tau: float,
        seed: int,
    ) -> None:
        self.gamma, self.tau = gamma, tau
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = network(state_dim, hidden, depth, action_dim, nn.Softmax(dim=-1))
            self.critic = network(state_dim + action_dim, hidden, depth, 1)
            self.slow_actor = network(state_dim, hidden, depth, action_dim, nn.Softmax(dim=-1))
            self.slow_critic = network(state_dim + action_dim, hidden, depth, 1)
        self.slow_actor.load_state_dict(self.actor.state_dict())
        self.slow_critic.load_state_dict(self.critic.state_dict())
        self._actor_steps = torch.optim.Adam(self.actor.parameters(), lr=lr)
        self._critic_steps = torch.optim.Adam(self.critic.parameters(), lr=lr)

    @one_thread()
    def act(self, state: Floats32) -> Floats:
        """mu(s), float64[D]."""
        with torch.no_grad():
            action: Floats = self.actor(torch.from_numpy(state)).double().numpy()
        return action

    @one_thread()
    def imitate(self, states: Floats32, actions: Floats32) -> float:
        """One step of the actor towards recorded actions (mean squared error)."""
        loss = nn.functional.mse_loss(
            self.actor(torch.from_numpy(states)), torch.from_numpy(actions)
        )
        _step(self._actor_steps, self.actor, loss)
        return float(loss.detach())

    @one_thread()
    def learn_critic(
        self, states: Floats32, actions: Floats32, rewards: Floats32, next_states: Floats32
    ) -> float:
        """One temporal-difference step of the critic."""
        later = torch.from_numpy(next_states)
        with torch.no_grad():
            value = self._q(self.slow_critic, later, self.slow_actor(later))
            goal = torch.from_numpy(rewards) + self.gamma * value
        said = self._q(self.critic, torch.from_numpy(states), torch.from_numpy(actions))
        loss = nn.functional.mse_loss(said, goal)
        _step(self._critic_steps, self.critic, loss)
        return float(loss.detach())

    @one_thread()
    def learn_actor(self, states: Floats32) -> float:
        """One step of the actor up the critic, which is only looked through."""
        s = torch.from_numpy(states)
        loss = -self._q(self.critic, s, self.actor(s)).mean()
        _step(self._actor_steps, self.actor, loss)
        return float(loss.detach())

    def follow(self) -> None:
        """Move the slow copies towards the networks."""
        with torch.no_grad():
            for fast, slow in ((self.actor, self.slow_actor), (self.critic, self.slow_critic)):
                for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
                    q.lerp_(p, self.tau)

    def pack(self) -> dict[str, str]:
        """Every number, as base64 text of little-endian float32."""
        packed = {
            name: encode(parameters_to_vector(getattr(self, name).parameters()).detach().numpy())
            for name in NETWORKS
        }
        for name, steps in (
            ("actor_steps", self._actor_steps),
            ("critic_steps", self._critic_steps),
        ):
            parts = [steps.state[p] for p in steps.param_groups[0]["params"] if steps.state[p]]
            count = [float(part["step"]) for part in parts[:1]]
            moments = [part[m].flatten() for m in ("exp_avg", "exp_avg_sq") for part in parts]
            flat = torch.cat([torch.tensor(count), *moments]) if parts else torch.empty(0)
            packed[name] = encode(flat.numpy())
        return packed

    def unpack(self, packed: Mapping[str, str]) -> None:
        """Take over what `pack` gave; all or nothing."""
        fresh: dict[str, Floats32] = {}
        for name in (*NETWORKS, "actor_steps", "critic_steps"):
            fresh[name] = decode(name, packed.get(name))
        for name in NETWORKS:
            size = sum(p.numel() for p in getattr(self, name).parameters())
            if len(fresh[name]) != size:
                raise ArgumentError(
                    f"state: {name} must have {size} numbers, got {len(fresh[name])}"
                )
        for name in ("actor", "critic"):
            size = 2 * len(fresh[name]) + 1
            if len(fresh[f"{name}_steps"]) not in (0, size):
                raise ArgumentError(f"state: {name}_steps must have 0 or {size} numbers")
        with torch.no_grad():
            for name in NETWORKS:
                vector_to_parameters(
                    torch.from_numpy(fresh[name]), getattr(self, name).parameters()
                )
        for name, steps in (
            ("actor_steps", self._actor_steps),
            ("critic_steps", self._critic_steps),
        ):
            _restore(steps, torch.from_numpy(fresh[name]))

    @staticmethod
    def _q(critic: nn.Module, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = critic(torch.cat([states, actions], dim=-1)).squeeze(-1)
        return value


def network(inputs: int, hidden: int, depth: int, outputs: int, *end: nn.Module) -> nn.Sequential:
    """Linear, LayerNorm and ReLU `depth` times, then Linear (and what `end` is)."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs), *end)


def encode(array: npt.ArrayLike) -> str:
    """Numbers as base64 text of little-endian float32."""
    return base64.b64encode(np.asarray(array, dtype="<f4").tobytes()).decode()


def decode(name: str, text: object) -> Floats32:
    """What `encode` was given, flat."""
    if not isinstance(text, str):
        raise ArgumentError(f"state: {name} must be base64 text, got {text!r}")
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").copy()
    except ValueError as e:
        raise ArgumentError(f"state: {name} is no base64 text of float32: {e}") from None


def _step(steps: torch.optim.Optimizer, net: nn.Module, loss: torch.Tensor) -> None:
    # gradients of this network alone: nothing reaches the other one's .grad
    params = list(net.parameters())
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = g
    steps.step()
    steps.zero_grad()


def _restore(steps: torch.optim.Adam, flat: torch.Tensor) -> None:
    steps.state.clear()
    if not len(flat):
        return
    params = steps.param_groups[0]["params"]
    sizes = [p.numel() for p in params]
    moments = torch.split_with_sizes(flat[1:], sizes * 2)
    for i, p in enumerate(params):
        steps.state[p] = {
            "step": flat[0].clone(),
            "exp_avg": moments[i].reshape(p.shape).clone(),
            "exp_avg_sq": moments[i + len(params)].reshape(p.shape).clone(),
        }
