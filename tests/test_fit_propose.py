"""Minimisers on the capped simplex, and simulated mixtures."""

import numpy as np
import pytest
from fit_runs import exponential_runs, mixtures
from hypothesis import given
from hypothesis import strategies as st

from mixcore.errors import ArgumentError
from mixcore.fit.propose import affordable, all_within, best_of, dirichlet, gap, minimise, within
from mixcore.fit.task import Corpus, make_task


def quadratic(centre):
    return lambda p: (float(((p - centre) ** 2).sum()), 2 * (p - centre))


def test_the_minimum_of_a_quadratic_is_its_projection():
    found = minimise(quadratic(np.array([0.9, 0.5, -0.3])), np.ones(3), [np.full(3, 1 / 3)])
    assert found.weights == pytest.approx([0.7, 0.3, 0.0], abs=1e-8)
    assert found.gap <= 1e-8
    capped = minimise(
        quadratic(np.array([0.9, 0.5, -0.3])), np.array([0.5, 1, 1]), [np.ones(3) / 3]
    )
    assert capped.weights == pytest.approx([0.5, 0.5, 0.0], abs=1e-8)


def test_many_domains_go_without_quadratic_programming():
    rng = np.random.default_rng(0)
    centre = rng.dirichlet(np.ones(2000))
    found = minimise(quadratic(centre), np.ones(2000), [np.full(2000, 1 / 2000)], tolerance=1e-7)
    assert found.gap <= 1e-7
    assert found.value <= 1e-7


@given(st.integers(0, 1000), st.integers(2, 8))
def test_the_gap_bounds_what_any_mixture_could_gain(seed, num):
    rng = np.random.default_rng(seed)
    most = np.minimum(rng.uniform(1 / num, 1, num) + 0.05, 1)
    objective = quadratic(rng.normal(size=num))
    p = within(rng.dirichlet(np.ones(num)), most)
    value, gradient = objective(p)
    others = all_within(rng.dirichlet(np.ones(num), 50), most)
    best = min(objective(q)[0] for q in others)
    assert value - best <= gap(p, gradient, most) + 1e-12


@given(st.integers(0, 1000), st.integers(2, 8))
def test_rows_are_made_to_fit_as_one_mixture_is(seed, num):
    rng = np.random.default_rng(seed)
    most = rng.dirichlet(np.ones(num)) * rng.uniform(1.05, 3) + 1e-3
    rows = rng.dirichlet(np.full(num, 0.3), 20)
    rows[0] = np.eye(num)[0]
    fitted = all_within(rows, np.minimum(most, 1))
    assert (fitted <= np.minimum(most, 1) + 1e-12).all()
    assert fitted.sum(axis=1) == pytest.approx(np.ones(20), abs=1e-9)
    for row, got in zip(rows[1:], fitted[1:], strict=True):
        assert got == pytest.approx(within(row, np.minimum(most, 1)), abs=1e-6)


def test_dirichlet_draws_have_the_prior_as_mean_and_zeros_stay():
    prior = np.array([0.7, 0.3, 0.0])
    drawn = dirichlet(prior, 20_000, 0, 0.5, 5.0)
    assert drawn.mean(axis=0) == pytest.approx(prior, abs=0.01)
    assert (drawn[:, 2] == 0).all()
    tiny = dirichlet(np.full(4, 0.25), 500, 0, 1e-6, 1e-6)  # every gamma underflows
    assert tiny.sum(axis=1) == pytest.approx(np.ones(500))
    assert tiny.mean(axis=0) == pytest.approx(np.full(4, 0.25), abs=0.08)


def test_the_mean_of_the_best_not_the_best():
    rows = mixtures(5, 3)
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert best_of(rows, values, 2) == pytest.approx(rows[[1, 2]].mean(axis=0))
    with pytest.raises(ArgumentError, match="not all finite"):
        best_of(rows, np.full(5, np.nan), 2)


# Tasks -------------------------------------------------------------------------------------------


def test_targets_and_caps():
    corpus = Corpus({"a": 100.0, "b": 300.0}, {"b": 2.0})
    task = make_task(["a", "b"], {"loss/x": 3, "metric/y": 1}, corpus=corpus, cap=4, budget=500)
    assert task.target == {"loss/x": 0.75, "metric/y": -0.25}
    assert task.prior.tolist() == [0.25, 0.75]
    assert task.most.tolist() == [0.8, 1.0]
    assert task.epochs(np.array([0.5, 0.5])) == pytest.approx([2.5, 250 / 300])
    tighter = make_task(["a", "b"], "loss/x", corpus=corpus, cap=1.9, budget=500)
    assert tighter.most == pytest.approx([0.38, 1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cap": 4}, "cap=4 needs sizes"),
        ({"cap": 4, "corpus": Corpus({"a": 1.0, "b": 1.0})}, "cap=4 needs a budget"),
        ({"cap": 0, "corpus": Corpus({"a": 1.0, "b": 1.0}), "budget": 1}, "cap must be in"),
        ({"cap": 1, "corpus": Corpus({"a": 1.0, "b": 1.0}), "budget": 3}, "cannot be spent"),
        ({"budget": -1}, "budget must be in"),
        ({"corpus": Corpus({"a": 1.0})}, "the sizes lack the domain 'b'"),
        ({"corpus": Corpus({"a": 1.0, "b": 1.0, "c": 2.0})}, "a domain 'c' that the runs have not"),
        ({"prior": {"a": 1}}, "prior must name every domain; missing: \\['b'\\]"),
        ({"target": "x"}, "target must be columns loss/NAME or metric/NAME, got 'x'"),
        ({"target": ["loss/x", "loss/x"]}, "target names a column twice"),
        ({"target": {"loss/x": -1}}, "target\\['loss/x'\\] must be in"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_bad_tasks(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        make_task(["a", "b"], **({"target": "loss/x"} | arguments))


def test_runs_used_by_all():
    runs = exponential_runs(10)
    assert runs.domains == ("d0", "d1", "d2")


def test_the_largest_number_of_domains_is_minimised_over_and_simulated_within_memory():
    num = 65_536
    assert affordable(100_000, num) == 2048
    assert affordable(100_000, 17) == 100_000
    slopes = np.random.default_rng(0).normal(size=num)
    most = np.full(num, 2.0 / num)

    def objective(p):
        return float(slopes @ p + num / 2 * (p**2).sum()), slopes + num * p

    found = minimise(objective, most, [np.full(num, 1 / num)], tolerance=1e-6, steps=300)
    assert found.gap <= 1e-6
    assert found.weights.sum() == pytest.approx(1)
    assert (found.weights <= most + 1e-15).all()
    # Below their cap all derivatives are equal, at the cap they are lower.
    gradient = slopes + num * found.weights
    inside = (found.weights > 1e-9) & (found.weights < most * 0.999)
    assert np.ptp(gradient[inside]) < 0.1
    assert gradient[found.weights >= most].max() < gradient[inside].min() + 0.1
