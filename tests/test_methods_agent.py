"""agent, its reference policy (conservative Q-learning) and ac_odm."""

import json
import logging
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mixcore  # noqa: E402
from mixcore import Domain, Signals, method  # noqa: E402
from mixcore.policy import Policy, train_policy  # noqa: E402

DOMAINS = [Domain(name, 100) for name in ("web", "code", "math")]


def domains(n):
    return [Domain(f"d{i}", 100) for i in range(n)]


def signals(step, **fields):
    return Signals(step=step, **fields)


# The agent ------------------------------------------------------------------------------------


def test_agent_asks_a_callable_an_object_and_sees_the_history():
    seen = []

    class Policy:
        def act(self, history):
            seen.append(history)
            return {"web": 1.0, "code": 2.0, "math": 1.0}

    m = method("agent", domains=DOMAINS, policy=Policy(), initial=[1.0, 1.0, 2.0])
    first = m.update(
        signals(
            10, loss_sum=[20.0, 0.0, 9.0], tokens=[10, 0, 3], val_loss=[2.5, np.nan, 3.5],
            extra={"feedback": [0.3, 0.1]},
        )
    )  # fmt: skip
    np.testing.assert_allclose(first, [0.25, 0.5, 0.25])
    assert seen[0] == [
        {
            "step": 10,
            "weights": [0.25, 0.25, 0.5],
            "loss": [2.0, None, 3.0],
            "val_loss": [2.5, None, 3.5],
            "feedback": [0.3, 0.1],
        }
    ]
    m.update(signals(20, weights=[0.2, 0.2, 0.6]))
    assert [e["step"] for e in seen[1]] == [10, 20]
    assert seen[1][1]["weights"] == [0.2, 0.2, 0.6]  # in force, whatever the policy had said
    np.testing.assert_allclose(
        method("agent", domains=DOMAINS, policy=lambda h: [3, 0, 1]).update(signals(0)),
        [0.75, 0.0, 0.25],
    )


def test_feedback_from_losses_carries_absent_domains_forward():
    m = method("agent", domains=DOMAINS, policy=lambda h: [1, 1, 1], feedback="val_loss")
    m.update(signals(0, val_loss=[1.0, 2.0, np.nan]))
    m.update(signals(1, val_loss=[np.nan, 1.5, 3.0]))
    assert [e["feedback"] for e in m.history] == [[-1.0, -2.0, None], [-1.0, -1.5, -3.0]]


def test_a_late_agent_leaves_the_weights_and_says_so(caplog):
    gate, asked = threading.Event(), []

    def slow(history):
        asked.append(len(history))
        assert gate.wait(30)
        return [0.0, 0.0, 1.0]

    m = method("agent", domains=DOMAINS, policy=slow, initial=[0.5, 0.3, 0.2], lag=1, timeout=0.0)
    with caplog.at_level(logging.WARNING, logger="mixcore.agent"):
        np.testing.assert_allclose(m.update(signals(0)), [0.5, 0.3, 0.2], rtol=1e-15)
        assert (m.late, m.note, m.silent) == (0, "", True)  # asked, not due yet
        for k in (1, 2):
            np.testing.assert_allclose(m.update(signals(k)), [0.5, 0.3, 0.2], rtol=1e-15)
            assert m.late == k
            assert "late" in m.note
            assert m.silent
    assert sum("late" in r.message for r in caplog.records) == 2
    assert asked == [1]  # one question at a time
    pending = m._pending
    gate.set()
    assert pending.done.wait(30)
    np.testing.assert_array_equal(
        m.update(signals(3)), [0.0, 0.0, 1.0]
    )  # at the first that finds it
    assert (m.late, m.note, m.silent) == (2, "", False)
    assert m._pending.done.wait(30)
    assert asked == [1, 4]


def test_lag_decides_when_an_answer_counts():
    def policy(history):
        return np.eye(3)[len(history) % 3]

    m = method("agent", domains=DOMAINS, policy=policy, lag=2)
    got = [m.update(signals(k)).tolist() for k in range(6)]
    uniform = [1 / 3] * 3
    # asked at updates 0, 2, 4; answered two later, whatever the thread's speed
    assert got[2:] == [[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(got[:2], [uniform] * 2, rtol=1e-15)


def test_an_agent_that_fails():
    def broken(history):
        raise KeyError("no such score")

    for policy, says in (
        (broken, "no such score"),
        (lambda h: [1.0, -1.0, 0.0], ">= 0"),
        (lambda h: [1.0, 1.0], "one entry a domain"),
        (lambda h: [0.0, 0.0, 0.0], "positive sum"),
        (lambda h: [1.0, float("nan"), 0.0], "finite"),
        (lambda h: None, "sequence"),
    ):
        m = method("agent", domains=DOMAINS, policy=policy)
        with pytest.raises(ValueError, match=says):
            m.update(signals(0))
        kept = method("agent", domains=DOMAINS, policy=policy, on_error="previous")
        np.testing.assert_allclose(kept.update(signals(0)), [1 / 3] * 3, rtol=1e-15)
        assert kept.errors == 1
        assert says in kept.note


def test_agent_bad_options(tmp_path):
    for options, named in (
        ({"policy": 3}, "policy"),
        ({"policy": len, "lag": -1}, "lag"),
        ({"policy": len, "timeout": -1.0}, "timeout"),
        ({"policy": len, "feedback": "mood"}, "feedback"),
        ({"policy": len, "on_error": "ignore"}, "on_error"),
        ({"policy": tmp_path / "none.json"}, "none.json"),
        ({}, "policy"),
    ):
        with pytest.raises((ValueError, TypeError), match=named):
            method("agent", domains=DOMAINS, **options)
    m = method("agent", domains=DOMAINS, policy=len)
    with pytest.raises(ValueError, match="feedback"):
        m.update(signals(0, extra={"feedback": [np.inf]}))
    assert m.history == []
    m = method("agent", domains=DOMAINS, policy=len, feedback="val_loss")
    with pytest.raises(ValueError, match="val_loss"):
        m.update(signals(0))


def test_agent_resume_with_a_question_open():
    def policy(history):
        return np.array([1.0, 2.0, 3.0]) + [e["feedback"][0] for e in history][-1]

    def stream(k):
        return signals(k, extra={"feedback": [float(k) ** 0.5]})

    for lag in (0, 1, 2):
        whole = method("agent", domains=DOMAINS, policy=policy, lag=lag)
        for k in range(5):
            whole.update(stream(k))
        state = json.loads(json.dumps(whole.state_dict()))
        after = [whole.update(stream(k)) for k in range(5, 10)]
        resumed = method("agent", domains=DOMAINS, policy=policy, lag=lag)
        resumed.load_state_dict(state)
        for k, want in zip(range(5, 10), after, strict=True):
            np.testing.assert_array_equal(resumed.update(stream(k)), want)
        assert resumed.state_dict() == whole.state_dict()


def test_a_controller_decides_nothing_while_the_agent_is_late():
    gate = threading.Event()

    def slow(history):
        assert gate.wait(30)
        return [0.0, 0.5, 0.5]

    ledger = mixcore.Ledger(DOMAINS, weights=[0.7, 0.2, 0.1], batch_size=10)
    m = method("agent", domains=DOMAINS, policy=slow, lag=1, timeout=0.0)
    controller = mixcore.Controller(ledger, m, 1, lag_steps=0)
    assert [controller.step(p) for p in (10, 20, 30)] == [None] * 3
    np.testing.assert_allclose(ledger.weights_at(10**6), [0.7, 0.2, 0.1], rtol=1e-9)
    gate.set()
    assert m._pending.done.wait(30)
    assert controller.step(40) == 40
    np.testing.assert_allclose(ledger.weights_at(40), [0.0, 0.5, 0.5], atol=1e-9)


# The reference policy -------------------------------------------------------------------------


def gain(weights, scores):
    """The synthetic world: a score grows by its weight and by what it still lacks."""
    return 0.3 * weights * (1.0 - scores)


def run(rng, act, steps=15):
    scores, weights, entries = rng.uniform(0, 0.8, 3), np.full(3, 1 / 3), []
    for _ in range(steps):
        scores = scores + gain(weights, scores)
        entries.append({"weights": weights.tolist(), "feedback": scores.tolist()})
        weights = act(entries)
    return entries


@pytest.fixture(scope="module")
def recorded():
    rng = np.random.default_rng(0)
    return [run(rng, lambda entries: rng.dirichlet(np.ones(3))) for _ in range(60)]


@pytest.fixture(scope="module")
def policy(recorded):
    return train_policy(
        recorded, window=2, gamma=0.3, alpha=0.2, imitation=0.05, samples=8, hidden=32,
        warm_steps=200, steps=1500, batch_size=64, lr=3e-3, seed=2,
    )  # fmt: skip


def held_out(count):
    rng = np.random.default_rng(99)
    for _ in range(count):
        before = rng.uniform(0, 0.8, 3)
        w = rng.dirichlet(np.ones(3))
        after = before + gain(w, before)
        uniform = [1 / 3] * 3
        yield (
            [
                {"weights": uniform, "feedback": before.tolist()},
                {"weights": w.tolist(), "feedback": after.tolist()},
            ],
            after,
        )


def test_cql_prefers_the_better_action_on_held_out_states(policy):
    chosen, uniform, best, right = [], [], [], []
    for history, scores in held_out(300):
        w = policy.act(history)
        assert w.sum() == pytest.approx(1.0)
        chosen.append(gain(w, scores).sum())
        uniform.append(gain(np.full(3, 1 / 3), scores).sum())
        best.append(0.3 * (1 - scores).max())
        right.append(w.argmax() == scores.argmin())
    share = (np.mean(chosen) - np.mean(uniform)) / (np.mean(best) - np.mean(uniform))
    assert np.mean(right) > 0.75
    assert share > 0.75  # of the way from uniform to the best mixture of the moment


def test_a_run_steered_by_the_policy_beats_uniform(policy):
    def final(act):
        rng = np.random.default_rng(7)
        return np.mean([sum(run(rng, act)[-1]["feedback"]) for _ in range(20)])

    assert final(policy.act) > final(lambda entries: np.full(3, 1 / 3)) + 0.02


def test_the_critic_is_held_down_where_nobody_went():
    # recorded mixtures stay near uniform and their gains are noise: without the conservative term
    # the policy runs into a corner that was never tried, with it it stays nearer to the data
    rng = np.random.default_rng(3)
    runs = []
    for _ in range(30):
        entries, f = [], 0.0
        for _ in range(10):
            f += rng.normal()
            w = rng.dirichlet(np.full(3, 60.0))
            entries.append({"weights": w.tolist(), "feedback": [f]})
        runs.append(entries)

    def distance(alpha):
        p = train_policy(
            runs, window=1, gamma=0.0, alpha=alpha, imitation=0.0, warm_steps=200, steps=300,
            samples=8, hidden=32, seed=2,
        )  # fmt: skip
        return np.mean([np.abs(p.act(r[:5]) - 1 / 3).sum() for r in runs])

    assert distance(5.0) < 0.5 * distance(0.0)


def test_policy_file_and_agent(policy, tmp_path):
    path = tmp_path / "policy.json"
    policy.save(path)
    again = Policy.load(path)
    history = next(held_out(1))[0]
    np.testing.assert_array_equal(again.act(history), policy.act(history))
    m = method("agent", domains=DOMAINS, policy=str(path))
    got = [
        m.update(signals(k, weights=e["weights"], extra={"feedback": e["feedback"]}))
        for k, e in enumerate(history)
    ]
    np.testing.assert_allclose(got[-1], policy.act(history), rtol=1e-14)
    # what an agent recorded trains the next policy
    assert train_policy([m.history], window=1, steps=1, warm_steps=1).act(m.history).shape == (3,)


def test_training_repeats_and_leaves_the_global_generator_alone(recorded):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    options = {"window": 1, "warm_steps": 5, "steps": 5}
    one, two = (train_policy(recorded[:3], **options, seed=4) for _ in range(2))
    other = train_policy(recorded[:3], **options, seed=5)
    np.testing.assert_array_equal(before, torch.get_rng_state())
    history = recorded[4][:3]
    np.testing.assert_array_equal(one.act(history), two.act(history))
    assert not np.array_equal(one.act(history), other.act(history))


def test_policy_bad_input(recorded, policy, tmp_path):
    for trajectories, named in (
        ([], "trajectories"),
        ([recorded[0][:1]], "two entries"),
        ([[{"weights": [1.0]}] * 2], "feedback"),
        ([[{"weights": [1.0, -1.0], "feedback": [0.0]}] * 2], "weights"),
        ([[{"weights": [1.0], "feedback": [np.nan]}] * 2], "feedback"),
        ([recorded[0], [{"weights": [1.0], "feedback": [0.0]}] * 2], "trajectory"),
    ):
        with pytest.raises(ValueError, match=named):
            train_policy(trajectories, steps=1, warm_steps=1)
    for options in ({"gamma": 2.0}, {"feedback_weights": [1.0]}, {"window": 0}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            train_policy(recorded, **options)
    with pytest.raises(ValueError, match="history"):
        policy.act([])
    with pytest.raises(ValueError, match="3 weights"):
        policy.act([{"weights": [1.0], "feedback": [1.0]}])
    path = tmp_path / "p.json"
    policy.save(path)
    body = json.loads(path.read_text())
    for damage in (
        {"format": "other"},
        {"window": 3},
        {"num_domains": 2},
        {"layers": []},
        {"mean": "x"},
    ):
        path.write_text(json.dumps({**body, **damage}))
        with pytest.raises(ValueError, match="policy"):
            Policy.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        Policy.load(path)
