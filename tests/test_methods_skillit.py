"""Skill-It: known answers of the rule and of each switch."""

import math

import numpy as np
import pytest

import mixcore

DOMAINS = [mixcore.Domain(n, 100) for n in ("a", "b", "c")]
CHAIN = [[1, 1, 0], [0, 1, 1], [0, 0, 1]]  # a helps b, b helps c


def make(**options):
    return mixcore.method("skillit", domains=DOMAINS, **options)


def feed(method, *rows):
    for step, row in enumerate(rows):
        weights = method.update(mixcore.Signals(step=step, val_loss=row))
    return weights


def softmax(x):
    e = np.exp(np.asarray(x, dtype=float))
    return e / e.sum()


def test_by_hand():
    """The start is p ~ exp(eta A 1); then A L = [1 + 2, 2 + 3, 3] for L = [1, 2, 3]."""
    method = make(graph=CHAIN, eta=0.5)
    assert method.weights() == pytest.approx(softmax([1.0, 1.0, 0.5]))
    assert feed(method, [1, 2, 3]) == pytest.approx(softmax([1.5, 2.5, 1.5]))


def test_the_window_and_that_it_does_not_build_up():
    """w = 2: the sum of the last two losses, from the prior each time, not onto the last p."""
    method = make(eta=0.1, window=2)
    rows = [[9, 9, 1], [1, 2, 3], [4, 4, 5]]
    assert feed(method, rows[0]) == pytest.approx(softmax([0.9, 0.9, 0.1]))
    assert feed(method, rows[1]) == pytest.approx(softmax([1.0, 1.1, 0.4]))
    assert feed(method, rows[2]) == pytest.approx(softmax([0.5, 0.6, 0.8]))
    # With a window of all updates it is the multiplicative rule.
    whole = make(eta=0.1, window=100)
    product = np.ones(3)
    for row in rows:
        product = product * np.exp(0.1 * np.array(row))
        assert feed(whole, row) == pytest.approx(product / product.sum())


def test_targets_are_columns_and_take_the_mean():
    """Only c counts: A[:, c] = [0, 1, 1], its losses 3 and 5, mean 4."""
    method = make(graph=CHAIN, targets=["c"], eta=0.5)
    assert method.weights() == pytest.approx(softmax([0, 0.5, 0.5]))
    assert feed(method, [1, 2, 3], [7, 7, 5]) == pytest.approx(softmax([0, 2, 2]))
    summed = make(graph=CHAIN, targets=["c"], eta=0.5, aggregate="sum")
    assert feed(summed, [1, 2, 3], [7, 7, 5]) == pytest.approx(softmax([0, 4, 4]))


def test_switches_of_the_code():
    assert make(graph=CHAIN, half_edges=True).weights() == pytest.approx(softmax([0.75, 0.75, 0.5]))
    relative = make(eta=1, window=1, normalize_loss=True)
    assert feed(relative, [4, 2, 1], [2, 2, 2]) == pytest.approx(softmax([0.5, 1, 2]))
    # eta rises as the losses fall: 12 -> 6 doubles it.
    schedule = make(eta=0.1, window=1, eta_schedule=True)
    assert feed(schedule, [4, 4, 4], [1, 2, 3]) == pytest.approx(softmax([0.2, 0.4, 0.6]))
    # The off-diagonal entries are halved after each update.
    fading = make(graph=CHAIN, eta=1, window=1, dynamic_lambda=True)
    assert feed(fading, [1, 2, 3]) == pytest.approx(softmax([3, 5, 3]))
    assert feed(fading, [1, 2, 3]) == pytest.approx(softmax([2, 3.5, 3]))
    assert feed(fading, [1, 2, 3]) == pytest.approx(softmax([1.5, 2.75, 3]))
    # Lone nodes stay at 1 / D; the others share the rest.
    graph = [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    lone = make(graph=graph, eta=1, ignore_lone_nodes=True)
    p = 2 / 3 * softmax([2, 1])
    assert lone.weights() == pytest.approx([*p, 1 / 3])
    assert feed(lone, [1, 3, 9])[2] == pytest.approx(1 / 3)


def test_prior_initial_and_first_loss():
    prior = make(prior=[2, 1, 1], eta=1)
    assert prior.weights() == pytest.approx(np.array([2, 1, 1]) / 4)
    assert feed(prior, [0, math.log(2), 0]) == pytest.approx(np.array([2, 2, 1]) / 5)
    assert make(initial=[2, 1, 1]).weights().tolist() == [0.5, 0.25, 0.25]
    first = make(eta=1, initial_loss=[1, 1, 1])
    assert feed(first, [0, 1, 2]) == pytest.approx(softmax([1, 2, 3]))


def test_a_domain_that_was_never_measured_counts_as_the_mean():
    got = feed(make(eta=1), [1, 3, np.nan])
    assert got == pytest.approx(softmax([1, 3, 2]))
    assert feed(make(eta=1, window=1), [1, 3, 5], [1, np.nan, 5]) == pytest.approx(
        softmax([1, 3, 5])
    )
