"""Aioli: the learning of A, the rounds, the update."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcore

DOMAINS = [mixcore.Domain(f"d{i}", 100) for i in range(4)]
TRUTH = np.array(
    [[0.9, 0.1, 0.0, 0.2], [0.0, 0.5, 0.1, 0.0], [0.3, 0.0, 0.4, 0.1], [0.0, 0.2, 0.0, 0.1]]
)


def make(num=4, **options):
    options = {"update_steps": 200, "lp_steps": 5} | options
    return mixcore.method("aioli", domains=DOMAINS[:num], **options)


def learn(method, truth=TRUTH, loss=None, step=0, delayed=0):
    """One round of learning on L <- L - A p; delayed: updates until weights are in force."""
    loss = np.full(len(truth), 10.0) if loss is None else loss
    queue = [method.weights()] * delayed
    method.update(mixcore.Signals(step=step, val_loss=loss))
    for _ in range(len(method.order())):
        queue.append(method.weights())
        in_force = queue.pop(0)
        loss = loss - truth @ in_force
        step += 5
        weights = method.update(mixcore.Signals(step=step, val_loss=loss, weights=in_force))
    return weights, loss, step


@pytest.mark.parametrize("factor", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_linear_model_is_recovered_exactly(factor, rounds):
    method = make(one_hot_factor=factor, lp_rounds=rounds, normalize_A=False, eta=0.5)
    seen = []
    plain = method.graph
    method.graph = lambda *a: seen.append(plain(*a)) or seen[-1]
    weights, _, _ = learn(method)
    assert seen[0] == pytest.approx(TRUTH, abs=1e-9)
    gain = np.exp(0.5 * TRUTH.sum(axis=0))
    assert weights == pytest.approx(gain / gain.sum(), rel=1e-9)


def test_smoothed_one_hot_falls_are_not_the_matrix_itself():
    """Without solving for M the columns would be blends of each other."""
    method = make(one_hot_factor=0.7)
    mixes = np.array([method.mixture(i) for i in range(4)])
    assert mixes[1] == pytest.approx([0.1, 0.7, 0.1, 0.1])
    falls = TRUTH @ mixes.T
    assert np.abs(falls - TRUTH).max() > 0.1
    assert method.graph(falls) == pytest.approx(TRUTH)
    assert method.graph(falls, mixes) == pytest.approx(TRUTH)


def test_mixes_that_were_in_force_are_what_counts():
    """With a lag of one update each fall is that of the mix before; A is found all the same."""
    method = make(one_hot_factor=0.7, normalize_A=False, initial=[0.1, 0.2, 0.3, 0.4], seed=None)
    seen = []
    plain = method.graph
    method.graph = lambda *a: seen.append(plain(*a)) or seen[-1]
    learn(method, delayed=1)
    assert seen[0] == pytest.approx(TRUTH, abs=1e-9)


def test_normalisation_by_hand():
    """A = [[1, -1], [2, 0]]: plus 1 is [[2, 0], [3, 1]], over 6; columns 5/6, 1/6."""
    truth = np.array([[1.0, -1.0], [2.0, 0.0]])
    weights, _, _ = learn(make(2, eta=3.0), truth)
    assert weights[0] / weights[1] == pytest.approx(np.exp(3 * 4 / 6))


def test_rounds_build_up_and_ema_starts_from_uniform():
    truth = np.array([[0.2, 0.1], [0.1, 0.1]])
    gain = 0.5 * (truth.sum(axis=0)[0] - truth.sum(axis=0)[1])
    method = make(2, eta=0.5, normalize_A=False)
    weights, loss, _ = learn(method, truth)
    assert weights[0] / weights[1] == pytest.approx(np.exp(gain))
    weights, _, _ = learn(method, truth, loss, step=200)
    assert weights[0] / weights[1] == pytest.approx(np.exp(2 * gain))
    smooth = make(2, eta=0.5, normalize_A=False, ema=0.25)
    learn(smooth, truth)
    weights, _, _ = learn(smooth, 2 * truth, step=200)  # 0.75 x 2 + 0.25 x 1
    assert weights[0] / weights[1] == pytest.approx(np.exp(1.75 * gain))


def test_diagonal():
    method = make(one_hot_factor=0.5, diagonal=True)
    falls = np.full((4, 4), 3.0)
    assert method.graph(falls).tolist() == np.diag([6.0] * 4).tolist()


def test_the_rounds():
    """Between its pieces of learning, and until update_steps are over, the weights stand."""
    method = make(2, update_steps=100, lp_steps=10, prior_steps=50, initial=[0.9, 0.1], seed=None)

    def at(step):
        return method.update(mixcore.Signals(step=step, val_loss=[5 - step / 100, 4.0])).tolist()

    assert at(20) == [0.9, 0.1]  # prior
    assert at(50) == [1, 0]  # the round begins
    assert at(55) == [1, 0]  # not lp_steps yet
    assert at(60) == [0, 1]
    followed = at(70)
    assert followed not in ([1, 0], [0, 1])
    assert at(80) == at(149) == followed
    assert at(150) == [1, 0]  # the next round


def test_the_fall_of_a_piece_is_from_its_beginning_to_its_end():
    """Updates inside a piece do not cut it short."""
    coarse, fine = make(2, lp_steps=10, seed=None), make(2, lp_steps=10, seed=None)
    for step in range(0, 21, 5):
        loss = np.array([5 - 0.01 * step**2, 4 - 0.02 * step])
        signals = mixcore.Signals(step=step, val_loss=loss)
        fine.update(signals)
        if step % 10 == 0:
            coarse.update(signals)
    assert fine.weights().tolist() == coarse.weights().tolist()


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_the_order_is_seeded_and_complete(seed, rounds):
    method = make(seed=seed, lp_rounds=rounds)
    assert method.order() == make(seed=seed, lp_rounds=rounds).order()
    for i in range(rounds):
        assert sorted(method.order()[4 * i : 4 * i + 4]) == [0, 1, 2, 3]


def test_orders_differ_between_rounds():
    method = make()
    orders = set()
    for k in range(12):
        orders.add(tuple(method.order()))
        learn(method, step=200 * k)
    assert len(orders) > 4
