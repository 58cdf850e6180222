"""Known-answer recovery of the gradient methods: quadratic domains whose best mixture is known.

Domain i has the loss |theta - centre_i|^2 / 2, so its gradient is theta - centre_i, and training on
weights w moves theta towards the weighted centre. Every method must move the mix towards the domain
that serves its objective, and end with a lower objective than uniform weights do.
"""

import numpy as np
import pytest

import mixcore

NUM, SIZE, STEPS, RATE = 4, 8, 400, 0.02
CENTRES = np.random.default_rng(5).normal(size=(NUM, SIZE))
TARGET = 0.9 * CENTRES[0] + 0.1 * CENTRES[1]
SECOND = 0.9 * CENTRES[2] + 0.1 * CENTRES[1]


def loss(theta, centre):
    return float(((theta - centre) ** 2).sum() / 2)


def train(method, measure, steps=STEPS):
    """Train with the method's weights (None: uniform); return theta and the last weights."""
    theta, weights = np.zeros(SIZE), np.full(NUM, 1 / NUM)
    for step in range(1, steps + 1):
        gradients = theta - CENTRES
        if method is not None:
            signals = measure(theta, gradients)
            weights = method.update(mixcore.Signals(step=step, weights=weights, **signals))
        theta = theta - RATE * (weights @ gradients)
    return theta, weights


def one_target(theta, gradients):
    return {"grad_target": gradients @ (theta - TARGET)}


def build(name, **options):
    domains = [mixcore.Domain(f"d{i}", 1_000) for i in range(NUM)]
    return mixcore.method(name, domains=domains, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dga", {"eta": 0.05}),
        ("doge", {"target": "out-of-domain", "mu": 0.05, "lr": 2e-3}),
    ],
)
def test_one_target(name, options):
    theta, weights = train(build(name, **options), one_target)
    uniform, _ = train(None, None)
    assert weights.argmax() == 0
    assert loss(theta, TARGET) < loss(uniform, TARGET)


def test_tikmix_decided_once_at_the_start():
    """The paper updates twice in a run; here once, from the influence at the first step."""
    method = build("tikmix", source="grad_target")
    influence = (-CENTRES @ -TARGET)[:, None]
    weights = method.update(mixcore.Signals(step=1, grad_target=influence))
    theta = np.zeros(SIZE)
    for _ in range(STEPS):
        theta = theta - RATE * (weights @ (theta - CENTRES))
    uniform, _ = train(None, None)
    assert weights.argmax() == 0
    assert loss(theta, TARGET) < loss(uniform, TARGET)


def test_grape_serves_the_worst_of_two_targets():
    def measure(theta, gradients):
        targets = np.stack([theta - TARGET, theta - SECOND], axis=1)
        losses = [loss(theta, TARGET), loss(theta, SECOND)]
        return {"grad_target": gradients @ targets, "extra": {"target_losses": losses}}

    method = build("grape", lr=1e-3, mu_alpha=1e-2, mu_z=1e-2, alpha_every=1, z_every=1)
    theta, weights = train(method, measure)
    uniform, _ = train(None, None)
    assert set(np.argsort(weights)[-2:]) == {0, 2}
    worst = max(loss(theta, TARGET), loss(theta, SECOND))
    assert worst < max(loss(uniform, TARGET), loss(uniform, SECOND))


def test_rb_follows_the_evaluation_mix():
    p_eval = np.array([0.85, 0.05, 0.05, 0.05])

    def measure(theta, gradients):
        return {"grad_dot": gradients @ gradients.T, "samples": np.full(NUM, 1)}

    theta, weights = train(build("rb", p_eval=p_eval, lam=3.0), measure)
    uniform, _ = train(None, None)
    assert weights.argmax() == 0
    objective = [
        sum(p * loss(x, c) for p, c in zip(p_eval, CENTRES, strict=True)) for x in (theta, uniform)
    ]
    assert objective[0] < objective[1]


def test_pike_gains_where_gradients_are_large_and_do_not_conflict():
    """Tasks with a coordinate each: the paper's setting of low conflict, one of them far off."""
    distance = np.array([3.0, 1.0, 0.5, 0.25])

    def run(method):
        theta, weights = np.zeros(NUM), np.full(NUM, 1 / NUM)
        for step in range(1, 101):
            gap = theta - distance
            if method is not None:
                signals = {"grad_norm2": gap**2, "grad_var": np.full(NUM, 0.01)}
                weights = method.update(mixcore.Signals(step=step, weights=weights, **signals))
            theta = theta - 0.02 * weights * gap
        return float(((theta - distance) ** 2).sum() / 2), weights

    with_method, weights = run(build("pike", batch_size=32, zeta1=0.02, zeta2=0.02))
    uniform, _ = run(None)
    assert weights.argmax() == 0
    assert with_method < uniform
