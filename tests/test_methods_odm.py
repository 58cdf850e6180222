"""ODM: known answers of each variant, and what 8.4 of the literature's pitfalls asks of it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcore

DOMAINS = [mixcore.Domain("a", 900), mixcore.Domain("b", 90), mixcore.Domain("c", 10)]


def make(num=3, **options):
    return mixcore.method("odm", domains=DOMAINS[:num], **options)


def loss(step, values, **more):
    values = np.array(values, dtype=float)
    tokens = np.where(np.isnan(values), 0, 4)
    sums = np.nan_to_num(values) * 4
    return mixcore.Signals(step=step, loss_sum=sums, tokens=tokens, **more)


def test_paper_by_hand():
    """K = 2, t = 100: eps = sqrt(ln 2 / 200) = 0.0588705...; R = 0.9 R + 0.1 L / pi."""
    method = make(2, initial_reward="zero")
    got = method.update(loss(100, [3.0, 2.0]))
    eps, last = math.sqrt(math.log(2) / 200), 0.5
    r = [0.1 * 3 / 0.5, 0.1 * 2 / 0.5]
    odds = math.exp(last * (r[0] - r[1]))
    p = (1 - 2 * eps) * odds / (1 + odds) + eps
    assert eps == pytest.approx(0.0588705, abs=1e-7)
    assert got == pytest.approx([p, 1 - p], rel=1e-12)
    # The second update divides by what was in force, and its exponent is the last eps.
    got = method.update(loss(400, [3.0, 2.0], weights=[0.25, 0.75]))
    r = [0.9 * r[0] + 0.1 * 3 / 0.25, 0.9 * r[1] + 0.1 * 2 / 0.75]
    odds = math.exp(eps * (r[0] - r[1]))
    eps = math.sqrt(math.log(2) / 800)
    p = (1 - 2 * eps) * odds / (1 + odds) + eps
    assert got == pytest.approx([p, 1 - p], rel=1e-12)


def test_code_by_hand():
    """Smoothed perplexity, linear: after two updates R = s (1 - s) e^L1 + (1 - s) e^L2."""
    method = make(variant="code", smoothing_factor=0.5)
    method.update(loss(1000, [1.0, 2.0, 3.0]))
    got = method.update(loss(2000, [2.0, 2.0, 1.0]))
    first, second = np.exp([1.0, 2.0, 3.0]), np.exp([2.0, 2.0, 1.0])
    r = 0.25 * first + 0.5 * second
    eps = math.sqrt(math.log(3) / (3 * 2000))
    assert got == pytest.approx((1 - 3 * eps) * r / r.sum() + eps, rel=1e-12)


def test_exp3_by_hand():
    method = make(2, variant="exp3", initial=[0.8, 0.2])
    got = method.update(loss(50, [2.0, np.nan]))
    odds = math.exp(0.5 * 2.0 / 10 / 0.8)
    eps = math.sqrt(math.log(2) / 100)
    assert got[0] == pytest.approx((1 - 2 * eps) * odds / (1 + odds) + eps, rel=1e-12)


def test_naive_validation_by_hand():
    method = make(variant="naive_validation")
    assert method.needs == ("val_loss",)
    got = method.update(mixcore.Signals(step=300, val_loss=[1.0, 2.0, 5.0]))
    e = np.exp(np.array([0, 0.25, 1]) / 3)
    eps = math.sqrt(math.log(3) / 900)
    assert got == pytest.approx((1 - 3 * eps) * e / e.sum() + eps, rel=1e-12)


def test_ema_by_hand():
    """f = 2 / (1 + t): 1 at t = 1, 0.5 at t = 3."""
    method = make(variant="ema", initial=[0.5, 0.3, 0.2])
    assert method.update(loss(1, [1.0, 3.0, 4.0])) == pytest.approx([1 / 8, 3 / 8, 4 / 8])
    r = np.array([2.0, 3.0, 2.0])
    assert method.update(loss(3, [3.0, 3.0, 0.0])) == pytest.approx(r / r.sum())
    method = make(variant="ema_softmax")
    e = np.exp([1.0, 3.0, 4.0])
    assert method.update(loss(1, [1.0, 3.0, 4.0])) == pytest.approx(e / e.sum())


def test_the_two_paths_of_the_code_differ_on_one_stream():
    linear, softmax = make(variant="code"), make(variant="code_softmax")
    for t in range(1000, 1010):
        a = linear.update(loss(t, [1.0, 2.0, 3.0]))
        b = softmax.update(loss(t, [1.0, 2.0, 3.0]))
    assert np.abs(a - b).max() > 0.05
    e = np.exp([1.0, 2.0, 3.0])
    assert a == pytest.approx(e / e.sum(), abs=0.03)  # in proportion to perplexity


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=5))
def test_the_last_eps_cancels_in_the_code_variant_alone(steps):
    """Only the last step matters to "code"; "code_softmax" also feels the one before."""
    rows = [[1.0, 2.0, 3.0]] * len(steps)

    def run(variant, first_step):
        method = make(variant=variant)
        for t, row in zip([first_step, *steps[1:]], rows, strict=True):
            weights = method.update(loss(t, row))
        return weights

    assert run("code", 1).tolist() == run("code", 10**6).tolist()
    if len(steps) == 2 and steps[1] > 100:
        assert run("code_softmax", 1).tolist() != run("code_softmax", 10**6).tolist()


@pytest.mark.parametrize("variant", ["paper", "code", "code_softmax"])
def test_an_unseen_domain_is_not_starved(variant):
    method = make(variant=variant, initial_reward="first")
    for t in range(10_000, 10_050):
        weights = method.update(loss(t, [2.0, 3.0, np.nan]))
    assert weights[2] == pytest.approx(weights[:2].mean(), rel=0.3)
    # Its first observation counts fully, as if it had always been so.
    seen = method.update(loss(10_050, [2.0, 3.0, 6.0], weights=[1 / 3] * 3))
    assert seen[2] > seen[1] > seen[0]


def test_zero_starts_leave_an_unseen_domain_to_exploration_in_the_code_variant():
    method = make(variant="code")
    weights = method.update(loss(10_000, [2.0, 3.0, np.nan]))
    assert weights[2] == pytest.approx(math.sqrt(math.log(3) / 30_000))


def test_every_domain_keeps_eps():
    method = make()
    for t in range(1, 200):
        weights = method.update(loss(t, [100.0, 0.0, 0.0]))
        assert weights.min() >= min(1 / 3, math.sqrt(math.log(3) / (3 * t))) * (1 - 1e-9)


def test_warmup_keeps_the_weights_and_takes_no_reward():
    method = make(initial=[0.7, 0.2, 0.1], warmup_steps=10)
    for t in range(1, 11):
        assert method.update(loss(t, [9.0, 1.0, 1.0])).tolist() == method.weights().tolist()
    assert method.weights() == pytest.approx([0.7, 0.2, 0.1])
    fresh = make(initial=[0.7, 0.2, 0.1])
    row = loss(11, [1.0, 2.0, 3.0])
    assert method.update(row).tolist() == fresh.update(row).tolist()


def test_perplexity_of_a_huge_loss_takes_all_but_exploration():
    method = make(variant="code")
    weights = method.update(loss(1000, [1000.0, 2.0, 3.0]))
    eps = math.sqrt(math.log(3) / 3000)
    assert weights == pytest.approx([1 - 2 * eps, eps, eps])
