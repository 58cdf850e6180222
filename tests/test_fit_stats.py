"""Errors, rank correlations, intervals and folds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mixcore.fit.stats import folds, interval, quality, ranks, spearman

VALUES = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=20)


@given(VALUES)
def test_ranks_are_those_of_scipy(values):
    assert ranks(np.array(values)).tolist() == (scipy_stats.rankdata(values) - 1).tolist()


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=30))
def test_spearman_is_that_of_scipy(pairs):
    a, b = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    got = spearman(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(got)
    else:
        assert got == pytest.approx(scipy_stats.spearmanr(a, b).statistic, abs=1e-12)


def test_quality_by_hand():
    q = quality(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 5.0]))
    assert q.mae == pytest.approx(2 / 3)
    assert q.rmse == pytest.approx(np.sqrt(2 / 3))
    assert q.mre == pytest.approx((1 / 3 + 1 / 5) / 3)
    assert q.r2 == pytest.approx(1 - 2 / 8)
    assert q.spearman == 1
    assert np.isnan(quality(np.ones(3), np.array([0.0, 1, 2])).spearman)
    assert quality(np.ones(3), np.array([0.0, 1, 2])).to_json()["mre"] is None


def test_the_interval_of_a_mean_is_the_normal_one():
    x = np.random.default_rng(0).normal(size=400)
    low, high = interval(lambda rows: float(x[rows].mean()), 400)
    half = 1.96 * x.std() / 20
    assert low == pytest.approx(x.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(x.mean() + half, abs=0.15 * half)


def test_runs_of_one_mixture_are_resampled_together():
    rng = np.random.default_rng(1)
    x = np.repeat(rng.normal(size=40), 10)  # ten seeds of each mixture, all alike
    groups = np.repeat(np.arange(40), 10)
    alone = interval(lambda rows: float(x[rows].mean()), 400)
    together = interval(lambda rows: float(x[rows].mean()), 400, groups)
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])


def test_too_few_for_an_interval():
    assert np.isnan(interval(lambda rows: 1.0, 2)).all()
    assert np.isnan(interval(lambda rows: float("nan"), 9)).all()


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(2, 6), st.integers(0, 3))
def test_folds_hold_every_row_out_once_and_split_no_group(labels, num, seed):
    groups = np.array(labels)
    seen = np.zeros(len(groups), dtype=int)
    for fitted, out in folds(groups, num, seed):
        assert not set(groups[fitted]) & set(groups[out])
        assert len(fitted) + len(out) == len(groups)
        seen[out] += 1
    assert (seen == 1).all()
