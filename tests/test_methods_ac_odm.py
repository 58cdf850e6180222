"""ac_odm: the reward, what the steps move, a world where one domain is best, resume, bad input."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mixcore import Domain, Signals, method  # noqa: E402
from mixcore.methods._ddpg import DDPG  # noqa: E402

DOMAINS = [Domain(name, 100) for name in ("web", "code", "math")]
DOT = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]])  # W = 1.0, 1.4, 0.6


def domains(n):
    return [Domain(f"d{i}", 100) for i in range(n)]


def signals(rng, step, d=3, dot=None, **fields):
    return Signals(
        step=step,
        grad_dot=DOT + rng.normal(0, 0.02, (3, 3)) if dot is None else dot,
        loss_sum=rng.random(d) * 10,
        tokens=np.full(d, 10),
        draws=np.full(d, 5),
        **fields,
    )


def parameters(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()


def batch(rng, n=16):
    s, later = (rng.normal(size=(n, 4)).astype(np.float32) for _ in range(2))
    a = rng.dirichlet(np.ones(3), n).astype(np.float32)
    return s, a, rng.normal(size=n).astype(np.float32), later


def test_each_step_moves_its_own_network_only():
    ddpg = DDPG(4, 3, hidden=8, depth=1, lr=0.01, gamma=0.9, tau=0.1, seed=1)
    s, a, r, later = batch(np.random.default_rng(0))
    nets = {n: getattr(ddpg, n) for n in ("actor", "critic", "slow_actor", "slow_critic")}

    def moved(what):
        before = {n: parameters(net) for n, net in nets.items()}
        what()
        assert all(p.grad is None for net in nets.values() for p in net.parameters())
        return {n for n, net in nets.items() if not torch.equal(before[n], parameters(net))}

    assert moved(lambda: ddpg.learn_actor(s)) == {"actor"}
    assert moved(lambda: ddpg.learn_critic(s, a, r, later)) == {"critic"}
    assert moved(lambda: ddpg.imitate(s, a)) == {"actor"}
    assert moved(ddpg.follow) == {"slow_actor", "slow_critic"}


def test_the_actor_climbs_and_the_critic_fits():
    ddpg = DDPG(4, 3, hidden=32, depth=1, lr=0.01, gamma=0.5, tau=0.1, seed=1)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(300):
        s, a, _, later = batch(rng, 32)
        losses.append(ddpg.learn_critic(s, a, a[:, 2] * 2.0, later))  # the third action pays
        ddpg.learn_actor(s)
        ddpg.follow()
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:5])
    assert ddpg.act(batch(rng)[0][0])[2] > 0.9


def test_reward_by_hand():
    m = method("ac_odm", domains=DOMAINS, warmup=10, noise=0.0)
    rng = np.random.default_rng(0)
    w = np.array([0.5, 0.3, 0.2])
    m.update(signals(rng, 0, dot=DOT, weights=w))
    m.update(signals(rng, 1, dot=DOT, weights=w))
    align = np.array([1.0, 1.4, 0.6])
    z = (align - 1.0) / (align.std(ddof=1) + 1e-8)
    assert m._rewards == [pytest.approx(float(w @ z), rel=1e-9)]
    m = method("ac_odm", domains=DOMAINS, warmup=10, noise=0.0, variant="paper", xi=0.75)
    m.update(signals(rng, 0, dot=DOT, weights=w))
    m.update(signals(rng, 1, dot=DOT, weights=w))
    ema = 0.25 * align / w
    ema = 0.75 * ema + 0.25 * align / w
    assert m._rewards == [pytest.approx(float(w @ ema), rel=1e-12)]


def test_warm_up_stays_at_the_initial_weights_then_the_policy_speaks():
    m = method("ac_odm", domains=DOMAINS, warmup=5, noise=0.0, initial=[0.6, 0.3, 0.1])
    rng = np.random.default_rng(0)
    got = [m.update(signals(rng, k)) for k in range(8)]
    np.testing.assert_allclose(got[:5], [[0.6, 0.3, 0.1]] * 5, rtol=1e-12)
    assert np.abs(got[5] - [0.6, 0.3, 0.1]).max() > 1e-3


def test_the_policy_changes_at_an_update_and_not_when_frozen():
    rng = np.random.default_rng(0)
    for frozen in (False, True):
        m = method("ac_odm", domains=DOMAINS, warmup=2, frozen=frozen)
        for k in range(3):
            m.update(signals(rng, k))
        before = parameters(m._ddpg.actor)
        m.update(signals(rng, 3))
        assert torch.equal(before, parameters(m._ddpg.actor)) == frozen


def test_it_finds_the_domain_that_helps_the_others():
    m = method(
        "ac_odm", domains=DOMAINS, warmup=40, batch_size=32, noise=0.2, noise_after=0.02,
        tau=0.01, gamma=0.9, hidden=32,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    got = [m.update(signals(rng, k)) for k in range(140)]
    align = np.array([1.0, 1.4, 0.6])
    # mean reward of the chosen mixtures against uniform's (1.0)
    assert np.mean(got[-40:] @ align) > 1.2
    assert np.mean(got[-40:], axis=0).argmax() == 1


@pytest.mark.parametrize("options", [{}, {"variant": "paper"}, {"layers": 2, "noise_after": 0.05}])
def test_resume_through_json_is_exact(options):
    def make():
        return method(
            "ac_odm", domains=DOMAINS, warmup=4, batch_size=4, pool_size=6, hidden=8, **options
        )

    def stream(k):
        rng = np.random.default_rng(k)
        dot = DOT + rng.normal(0, 0.1, (3, 3))
        if k % 3 == 0:
            dot[1, :] = dot[:, 1] = np.nan
        extra = {"weight_norms": [1.0, k], "weight_moves": [k, 0.1]}
        return signals(rng, k, dot=dot, extra=extra)

    whole = make()
    for k in range(10):  # past the warm-up, with the pool full
        whole.update(stream(k))
    state = json.loads(json.dumps(whole.state_dict()))
    after = [whole.update(stream(k)) for k in range(10, 16)]
    resumed = make()
    resumed.load_state_dict(state)
    for k, want in zip(range(10, 16), after, strict=True):
        np.testing.assert_array_equal(resumed.update(stream(k)), want)
    assert json.dumps(resumed.state_dict()) == json.dumps(whole.state_dict())
    assert len(whole._rewards) == 6


def test_a_policy_goes_from_a_small_run_to_a_large_one():
    rng = np.random.default_rng(0)
    small = method("ac_odm", domains=DOMAINS, warmup=2)
    for k in range(6):
        small.update(signals(rng, k))
    large = method("ac_odm", domains=DOMAINS, warmup=2, frozen=True)
    large.load_state_dict(small.state_dict())
    s = signals(rng, 7)
    np.testing.assert_allclose(large.update(s), large._ddpg.act(large._states[-1]), rtol=1e-6)
    assert torch.equal(parameters(large._ddpg.actor), parameters(small._ddpg.actor))


@pytest.mark.parametrize("d", [1, 300])
def test_any_number_of_domains(d):
    m = method("ac_odm", domains=domains(d), warmup=1, hidden=8, batch_size=4)
    rng = np.random.default_rng(d)
    for k in range(4):
        g = rng.normal(size=(d, 5))
        w = m.update(signals(rng, k, d, dot=g @ g.T))
        assert np.isfinite(w).all()
        assert w.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e150, 1e300])
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_extreme_signals_give_weights_or_an_error(scale, variant):
    m = method("ac_odm", domains=DOMAINS, warmup=0, variant=variant, hidden=8, batch_size=4)
    rng = np.random.default_rng(0)
    for k in range(3):
        before = json.dumps(m.state_dict())
        s = Signals(
            step=k, grad_dot=DOT * scale, loss_sum=rng.random(3) * scale, tokens=[1, 1, 0],
            draws=[10**12, 0, 1],
        )  # fmt: skip
        said = ""
        try:
            w = m.update(s)
        except ValueError as e:
            said = str(e)
        if said:
            assert "reward" in said
            assert json.dumps(m.state_dict()) == before
        else:
            assert np.isfinite(w).all()


def test_bad_input():
    for options, named in (
        ({"variant": "theirs"}, "variant"),
        ({"gamma": 1.5}, "gamma"),
        ({"lr": 0.0}, "lr"),
        ({"pool_size": 0}, "pool_size"),
        ({"frozen": 1}, "frozen"),
        ({"seed": -1}, "seed"),
        ({"hiden": 8}, "hidden"),
    ):
        with pytest.raises((ValueError, TypeError), match=named):
            method("ac_odm", domains=DOMAINS, **options)
    rng = np.random.default_rng(0)
    m = method("ac_odm", domains=DOMAINS, layers=2)
    with pytest.raises(ValueError, match="weight_norms"):
        m.update(signals(rng, 0))
    with pytest.raises(ValueError, match="draws"):
        method("ac_odm", domains=DOMAINS).update(
            Signals(step=0, grad_dot=DOT, loss_sum=[1.0] * 3, tokens=[1] * 3)
        )


def test_a_damaged_state_is_refused_and_changes_nothing():
    rng = np.random.default_rng(0)
    m = method("ac_odm", domains=DOMAINS, warmup=1, hidden=8)
    for k in range(3):
        m.update(signals(rng, k))
    before = json.dumps(m.state_dict())
    for path, value in (
        (("_networks", "actor"), "AAAA"),
        (("_networks", "critic"), "AAAAAAA="),
        (("_networks", "actor_steps"), "AAAA"),
        (("_pool", "actions"), "AAAAAA=="),
        (("_pool", "rewards"), None),
        (("_networks", "slow_actor"), 3),
    ):
        state = json.loads(before)
        state["state"][path[0]][path[1]] = value
        with pytest.raises(ValueError, match="state"):
            m.load_state_dict(state)
        assert json.dumps(m.state_dict()) == before
    with pytest.raises(ValueError, match="actor must have"):
        method("ac_odm", domains=DOMAINS, hidden=16).load_state_dict(json.loads(before))
