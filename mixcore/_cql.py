"""The training loop of `mixcore.policy.train_policy`. Needs torch."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mixcore.domains import stream_key
from mixcore.methods._ddpg import one_thread

Floats = npt.NDArray[np.float64]


@one_thread()
def train(
    *,
    states: Floats,
    actions: Floats,
    rewards: Floats,
    later: Floats,
    last: npt.NDArray[np.bool_],
    gamma: float,
    alpha: float,
    imitation: float,
    samples: int,
    hidden: int,
    warm_steps: int,
    steps: int,
    batch_size: int,
    lr: float,
    tau: float,
    seed: int,
) -> list[tuple[Floats, Floats]]:
    """Layers (matrix, bias) of the actor before its softmax.

    M transitions: states float64[M, S], actions float64[M, D], rewards float64[M], the states later
    float64[M, S], and whether a run ended there, last bool[M]; the rest as in `train_policy`.
    """
    rng = np.random.Generator(np.random.Philox(key=stream_key(seed, "cql batches")))
    d = actions.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(seed, "cql networks") >> 1)
        actor = _network(states.shape[1], hidden, d)
        critic = _network(states.shape[1] + d, hidden, 1)
        slow = _network(states.shape[1] + d, hidden, 1)
    slow.load_state_dict(critic.state_dict())
    s, a, r, s2 = (
        torch.from_numpy(x.astype(np.float32)) for x in (states, actions, rewards, later)
    )
    go_on = torch.from_numpy((~last).astype(np.float32))
    actor_steps = torch.optim.Adam(actor.parameters(), lr=lr)
    critic_steps = torch.optim.Adam(critic.parameters(), lr=lr)

    for _ in range(warm_steps):
        k = rng.integers(len(s), size=batch_size)
        _step(actor_steps, actor, -(a[k] * torch.log_softmax(actor(s[k]), dim=-1)).sum(-1).mean())

    for _ in range(steps):
        k = rng.integers(len(s), size=batch_size)
        with torch.no_grad():
            goal = r[k] + gamma * go_on[k] * _q(slow, s2[k], actor(s2[k]).softmax(-1))
            # uniform on the simplex; a constant density, so no correction of the mean is needed
            tried = rng.exponential(size=(samples, batch_size, d)).astype(np.float32)
            others = torch.from_numpy(tried / tried.sum(-1, keepdims=True))
            others = torch.cat([others, actor(s[k]).softmax(-1)[None]])
        said = _q(critic, s[k], a[k])
        everywhere = _q(critic, s[k].expand(samples + 1, -1, -1), others)
        held = torch.logsumexp(everywhere, dim=0) - math.log(samples + 1) - said
        _step(critic_steps, critic, ((said - goal) ** 2 + alpha * held).mean())
        logits = actor(s[k])
        # the gradient of -Q dies where the softmax is saturated, that of the recorded does not
        recorded = -(a[k] * torch.log_softmax(logits, dim=-1)).sum(-1)
        climb = -_q(critic, s[k], logits.softmax(-1)) + imitation * recorded
        _step(actor_steps, actor, climb.mean())
        with torch.no_grad():
            for p, q in zip(critic.parameters(), slow.parameters(), strict=True):
                q.lerp_(p, tau)

    linear = [m for m in actor if isinstance(m, nn.Linear)]
    return [
        (m.weight.detach().double().numpy().copy(), m.bias.detach().double().numpy().copy())
        for m in linear
    ]


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def _q(critic: nn.Module, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = critic(torch.cat([states, actions], dim=-1)).squeeze(-1)
    return value


def _step(steps: torch.optim.Optimizer, net: nn.Module, loss: torch.Tensor) -> None:
    # gradients of this network alone: the actor's loss does not reach the critic
    params = list(net.parameters())
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = g
    steps.step()
    steps.zero_grad()
