"""dga, doge, grape, pike, rb, tikmix: a task with a known law, properties, resume, bad input."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcore import Domain, Signals, method
from mixcore.methods.pike import estimate

DOMAINS = [Domain(name, 100) for name in ("web", "code", "math")]
DOT = np.array([[4.0, 1.0, -3.0], [1.0, 9.0, 2.0], [-3.0, 2.0, 16.0]])
TARGET = np.array([[1.0, -2.0], [0.5, 3.0], [2.0, 0.0]])
NAN = math.nan


def domains(n):
    return [Domain(f"d{i}", 100) for i in range(n)]


# A synthetic task with a known law ------------------------------------------------------------


class Quadratic:
    """Domain i: L_i = |theta - c_i|^2_{H_i} / 2; a target is a mean of some domains' losses."""

    def __init__(self, d=4, p=12, seed=0):
        rng = np.random.default_rng(seed)
        self.c = rng.normal(0, 1, (d, p))
        self.h = rng.uniform(0.2, 2.0, (d, p))

    def grads(self, theta):
        return self.h * (theta - self.c)

    def losses(self, theta):
        return 0.5 * (self.h * (theta - self.c) ** 2).sum(axis=1)


def train(task, choose, targets, steps=60, lr=0.05):
    """Descend on the mixture's gradient; `choose` maps signals to weights."""
    theta = np.full(task.c.shape[1], 3.0)
    weights = np.full(len(task.c), 1 / len(task.c))
    for step in range(steps):
        g = task.grads(theta)
        target = np.stack([g[list(t)].mean(axis=0) for t in targets])
        losses = task.losses(theta)
        weights = choose(
            Signals(
                step=step,
                grad_dot=g @ g.T,
                grad_target=g @ target.T,
                grad_norm2=(g**2).sum(axis=1),
                grad_var=np.zeros(len(g)),
                loss_sum=losses,
                tokens=np.ones(len(g), dtype=int),
                samples=np.ones(len(g), dtype=int),
                extra={
                    "lr": lr,
                    "gradients": "mean",
                    "influence": np.maximum(target @ g.T, 1e-3),
                    "target_losses": [losses[list(t)].mean() for t in targets],
                },
            )
        )
        theta = theta - lr * weights @ g
    losses = task.losses(theta)
    return np.array([losses[list(t)].mean() for t in targets])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dga", {"eta": 0.05, "beta": 0.5}),
        ("dga", {"eta": 0.05, "beta": 0.5, "feedback": "last"}),
        ("doge", {"target": "out-of-domain", "mu": 0.5}),
        ("doge", {"target": "out-of-domain", "mu": 0.05, "variant": "code"}),
        ("rb", {"p_eval": [1.0, 0.0, 0.0, 0.0]}),
        ("tikmix", {"alpha": 0.0, "gamma": 0.3}),
    ],
)
def test_a_target_is_reached_better_than_by_uniform(name, options, seed):
    task = Quadratic(seed=seed)
    uniform = train(task, lambda s: np.full(4, 0.25), [(0,)])
    m = method(name, domains=domains(4), **options)
    assert train(task, m.update, [(0,)])[0] < 0.8 * uniform[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grape_lowers_the_worse_of_two_targets(seed):
    task = Quadratic(seed=seed)
    targets = [(0,), (1,)]
    uniform = train(task, lambda s: np.full(4, 0.25), targets)
    m = method("grape", domains=domains(4), mu_alpha=0.05, mu_z=0.05)
    assert train(task, m.update, targets).max() < uniform.max()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pike", {"batch_size": 32, "zeta1": 0.02}),
        ("doge", {"mu": 2.0}),
        ("doge", {"variant": "code", "mu": 0.5, "dw_max": 1e3}),
    ],
)
def test_all_domains_together_fall_faster_early_on(name, options, seed):
    # what PiKE and in-domain DoGE promise: a larger decrease of the mean loss per step
    task = Quadratic(seed=seed)
    everything = [(0, 1, 2, 3)]
    uniform = train(task, lambda s: np.full(4, 0.25), everything, steps=8)
    m = method(name, domains=domains(4), **options)
    assert train(task, m.update, everything, steps=8)[0] < uniform[0]


# Properties -----------------------------------------------------------------------------------

ALL = [
    ("dga", {}),
    ("dga", {"feedback": "last", "beta": 0.5}),
    ("doge", {}),
    ("doge", {"variant": "code", "reweight_eps": 0.01, "output": "average"}),
    ("doge", {"target": "out-of-domain"}),
    ("grape", {}),
    ("grape", {"variant": "map_ema", "z_every": 2}),
    ("pike", {"batch_size": 16}),
    ("pike", {"batch_size": 16, "tau": 2.0}),
    ("rb", {}),
    ("tikmix", {"source": "grad_target", "normalise": "abs"}),
]


def random_signals(rng, d, step, absent=False, scale=1.0):
    g = rng.normal(0, scale, (d, 6))
    t = rng.normal(0, scale, (2, 6))
    dot, target = g @ g.T, g @ t.T
    norm2, var = (g**2).sum(axis=1), rng.random(d) * scale
    tokens = np.full(d, 10)
    if absent:
        gone = rng.random(d) < 0.3
        dot[gone] = NAN
        dot[:, gone] = NAN
        target[gone] = NAN
        norm2[gone] = NAN
        var[gone] = NAN
        tokens[gone] = 0
    return Signals(
        step=step, grad_dot=dot, grad_target=target, grad_norm2=norm2, grad_var=var,
        loss_sum=rng.random(d) * 30, tokens=tokens, samples=np.full(d, 4),
        extra={"target_losses": [2.0, 3.0]},
    )  # fmt: skip


@pytest.mark.parametrize(("name", "options"), ALL)
@pytest.mark.parametrize("d", [1, 3, 300])
def test_any_number_of_domains(name, options, d):
    if name == "tikmix" and d == 300:
        options = {**options, "alpha": 0.0}
    m = method(name, domains=domains(d), **options)
    rng = np.random.default_rng(d)
    for step in range(1 if name == "tikmix" else 4):
        w = m.update(random_signals(rng, d, step, absent=name != "tikmix"))
        assert w.shape == (d,)
        assert np.isfinite(w).all()
        assert (w >= 0).all()
        assert w.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_resume_through_json_is_exact(name, options):
    rng = np.random.default_rng(5)
    stream = [random_signals(rng, 3, k, absent=name != "tikmix") for k in range(8)]
    whole = method(name, domains=DOMAINS, **options)
    before = [whole.update(s) for s in stream[:4]]
    state = json.loads(json.dumps(whole.state_dict()))
    after = [whole.update(s) for s in stream[4:]]  # past the state
    resumed = method(name, domains=DOMAINS, **options)
    resumed.load_state_dict(state)
    np.testing.assert_array_equal(resumed.weights(), before[-1])
    for s, want in zip(stream[4:], after, strict=True):
        np.testing.assert_array_equal(resumed.update(s), want)
    assert resumed.state_dict() == whole.state_dict() or "nan" in json.dumps(state).lower()


@pytest.mark.parametrize(("name", "options"), ALL)
def test_ranks_that_reduce_in_another_order_agree(name, options):
    # the signals of two ranks differ in the last bits only; so do the weights, never more
    rng = np.random.default_rng(9)
    a, b = (method(name, domains=DOMAINS, **options) for _ in range(2))
    for step in range(5):
        parts = [rng.normal(0, 1, (3, 40)) for _ in range(4)]
        target = rng.normal(0, 1, (40, 2))
        for m, order in ((a, parts), (b, parts[::-1])):
            dot = sum(p @ p.T for p in order)
            m.update(
                Signals(
                    step=step, grad_dot=dot, grad_target=sum(p @ target for p in order),
                    grad_norm2=np.diagonal(dot), grad_var=np.ones(3), loss_sum=[1.0, 2.0, 3.0],
                    tokens=[1, 1, 1], samples=[1, 1, 1], extra={"target_losses": [1.0, 2.0]},
                )
            )  # fmt: skip
        # SLSQP stops where it likes within its tolerance; the rules are smooth
        atol = 1e-5 if name == "tikmix" else 1e-12
        np.testing.assert_allclose(a.weights(), b.weights(), rtol=1e-9, atol=atol)


@settings(max_examples=150, deadline=None)
@given(
    which=st.sampled_from([o for o in ALL if o[0] != "tikmix"]),
    exponents=st.lists(st.floats(-290, 290), min_size=9, max_size=9),
    signs=st.lists(st.sampled_from([-1.0, 1.0, 0.0, NAN]), min_size=9, max_size=9),
)
def test_extreme_signals_give_weights_or_an_error(which, exponents, signs):
    name, options = which
    values = (np.array(signs) * 10.0 ** np.array(exponents)).reshape(3, 3)
    positive = np.abs(values)
    dot = (values + values.T) / 2
    dot[np.diag_indices(3)] = np.diagonal(positive)
    m = method(name, domains=DOMAINS, **options)
    before = m.state_dict()
    signals = Signals(
        step=0, grad_dot=dot, grad_target=values[:, :2], grad_norm2=positive[0],
        grad_var=positive[1], loss_sum=positive[2], tokens=[1, 1, 1], samples=[1, 1, 1],
        extra={"target_losses": [1.0, 1e-300]},
    )  # fmt: skip
    try:
        w = m.update(signals)
    except ValueError:
        np.testing.assert_array_equal(json.dumps(m.state_dict()), json.dumps(before))
    else:
        assert np.isfinite(w).all()
        assert w.sum() == pytest.approx(1.0, abs=1e-12)


def test_a_weight_of_zero_stays_and_an_underflown_one_comes_back():
    m = method(
        "doge", domains=DOMAINS, target="out-of-domain", initial=[0.0, 0.5, 0.5], lr=1.0, mu=1.0
    )
    w = m.update(Signals(step=0, grad_target=[9.0, 0.0, -2000.0]))
    np.testing.assert_array_equal(w, [0.0, 1.0, 0.0])
    w = m.update(Signals(step=1, grad_target=[9.0, 0.0, 2000.0]))
    np.testing.assert_allclose(w, [0.0, 0.5, 0.5], rtol=1e-12)


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("dga", {"beta": 1.0}, "beta"),
        ("dga", {"eta": -1.0}, "eta"),
        ("dga", {"feedback": "both"}, "feedback"),
        ("dga", {"basis": [[1.0, 2.0]]}, "basis"),
        ("dga", {"initial_w": [1.0]}, "initial_w"),
        ("doge", {"mu": 0.0}, "mu"),
        ("doge", {"dw_min": 2.0, "dw_max": 1.0}, "dw_min"),
        ("doge", {"variant": "mine"}, "variant"),
        ("doge", {"clip": 1}, "clip"),
        ("doge", {"reweight_eps": 1.5}, "reweight_eps"),
        ("grape", {"mu_z": 0.0}, "mu_z"),
        ("grape", {"gradients": "log", "variant": "map_ema"}, "gradients"),
        ("grape", {"initial_z": [0.0, 0.0]}, "weights"),
        ("pike", {"batch_size": 0}, "batch_size"),
        ("pike", {}, "batch_size"),
        ("pike", {"batch_size": 4, "tau": 0.0}, "tau"),
        ("pike", {"batch_size": 4, "y_power": 3}, "y_power"),
        ("rb", {"lam": -1.0}, "lam"),
        ("rb", {"p_eval": [1.0]}, "p_eval"),
        ("rb", {"gradients": "median"}, "gradients"),
        ("tikmix", {"influence": [[1.0, 2.0]]}, "influence"),
        ("tikmix", {"influence": [[1.0, NAN, 2.0]]}, "influence"),
        ("tikmix", {"normalise": "min"}, "normalise"),
    ],
)
def test_bad_options_are_named(name, options, named):
    with pytest.raises((ValueError, TypeError), match=named):
        method(name, domains=DOMAINS, **options)


NORMS = {"grad_norm2": [1.0] * 3, "grad_var": [1.0] * 3}


@pytest.mark.parametrize(
    ("name", "options", "signals", "named"),
    [
        ("dga", {}, {}, "grad_target"),
        ("doge", {}, {}, "grad_dot"),
        ("doge", {"target": "out-of-domain"}, {"grad_dot": DOT}, "grad_target"),
        ("doge", {"variant": "code"}, {"grad_dot": -DOT}, "diagonal"),
        ("doge", {}, {"grad_dot": DOT, "extra": {"lr": -1.0}}, "lr"),
        ("grape", {}, {"grad_target": TARGET}, "target_losses"),
        ("grape", {}, {"grad_target": TARGET, "extra": {"target_losses": [1.0]}}, "target_losses"),
        ("grape", {}, {"grad_target": TARGET, "extra": {"target_losses": [0.0, 1.0]}}, "> 0"),
        ("grape", {"initial_z": [1.0]}, {"grad_target": TARGET}, "target tasks"),
        ("grape", {"estimate": "sampled"}, {}, "mix_target"),
        ("pike", {"batch_size": 4}, {"grad_norm2": [1.0] * 3}, "grad_var"),
        ("pike", {"batch_size": 4, "tau": 1.0}, NORMS, "loss_sum"),
        ("rb", {}, {"grad_dot": DOT, "extra": {"gradients": "sums"}}, "gradients"),
        ("tikmix", {}, {}, "influence"),
        ("tikmix", {}, {"extra": {"influence": [[1.0]]}}, "influence"),
        ("tikmix", {"source": "grad_target"}, {"grad_target": [1.0, NAN, 1.0]}, "grad_target"),
    ],
)  # fmt: skip
def test_bad_signals_are_named_and_change_nothing(name, options, signals, named):
    m = method(name, domains=DOMAINS, **options)
    before = json.dumps(m.state_dict())
    with pytest.raises((ValueError, TypeError), match=named):
        m.update(Signals(step=0, **signals))
    assert json.dumps(m.state_dict()) == before


def test_pike_estimator_bad_input():
    with pytest.raises(ValueError, match="2 rows"):
        estimate([[1.0, 2.0]], 1)
    with pytest.raises(ValueError, match="samples"):
        estimate([[1.0], [2.0]], 0)
