"""Transfer between scales and outcomes: rank correlation, regret, how many runs are enough."""

import numpy as np
import pytest
from command_line import facts_of, refused, run
from fit_runs import exponential_runs, make_runs, mixtures

from mixcore.errors import ArgumentError
from mixcore.fit.runs import write_runs
from mixcore.fit.transfer import (
    Series,
    learning_curve,
    pairs_of,
    regret,
    regret_curve,
    series_of,
    transfer,
)


def two_scales(noise=0.0, num=60, seed=0):
    weights = mixtures(num, 3, seed)
    rng = np.random.default_rng(seed + 1)
    quality = weights @ [3.0, 1.0, 2.0]
    small = make_runs(weights, {"loss/x": quality + 2 + noise * rng.normal(size=num)}, file="small")
    large = make_runs(weights, {"loss/x": quality}, file="large")
    return Series("small", small, "loss/x"), Series("large", large, "loss/x")


def test_a_perfect_proxy():
    found = transfer(*two_scales())
    assert (found.spearman, found.low, found.high) == (1, 1, 1)
    assert (found.agreement, found.regret) == (1, 0)
    assert found.mixtures == 60
    assert found.curve[60] == 0
    assert found.curve[4] > found.curve[16] > 0
    assert found.enough == 60  # among fewer, the best is often not there


def test_noise_costs_rank_and_regret():
    quiet, loud = (transfer(*two_scales(noise)) for noise in (0.1, 2.0))
    assert 1 > quiet.spearman > 0.95 > 0.5 > loud.spearman
    assert quiet.low < quiet.spearman < quiet.high
    assert loud.high - loud.low > quiet.high - quiet.low
    assert loud.regret_high > quiet.regret_high
    assert loud.best_of[16] <= loud.best_of[1]


def test_a_proxy_that_says_nothing_has_no_number_of_runs_that_is_enough():
    weights = mixtures(60, 3)
    rng = np.random.default_rng(0)
    a, b = (make_runs(weights, {"loss/x": rng.normal(size=60)}, file=f) for f in "ab")
    found = transfer(Series("a", a, "loss/x"), Series("b", b, "loss/x"))
    assert found.low < 0
    assert found.enough is None


def test_the_interval_covers_the_truth():
    # 0.5 is the rank correlation of the population, nearly: x and x + noise.
    inside = 0
    rng = np.random.default_rng(0)
    truth = None
    for trial in range(60):
        x = rng.normal(size=(100_000 if trial == 0 else 40))
        y = x + 1.7 * rng.normal(size=len(x))
        if trial == 0:
            from mixcore.fit.stats import spearman

            truth = spearman(x, y)
            continue
        weights = mixtures(40, 3, seed=trial)
        runs = make_runs(weights, {"loss/a": x, "loss/b": y})
        found = transfer(Series("a", runs, "loss/a"), Series("b", runs, "loss/b"))
        inside += found.low <= truth <= found.high
    assert inside >= 50  # 95 % of 59 are 56


def test_regret_by_hand():
    x, y = np.array([3.0, 1.0, 2.0, 4.0]), np.array([0.0, 5.0, 2.0, 1.0])
    assert regret(x, y) == 5
    assert regret(x, y, 2) == 2
    assert regret(x, y, 3) == 0
    assert regret_curve(x, y, 0)[4] == pytest.approx(5 / y.std())


def test_metrics_count_the_other_way():
    small, large = two_scales()
    small.runs.outcomes["metric/qa"] = -small.runs.outcomes["loss/x"]
    found = transfer(Series("qa", small.runs, "metric/qa"), large)
    assert found.spearman == 1


def test_rounded_mixtures_match_and_seeds_are_averaged():
    small, large = two_scales()
    rounded = np.round(large.runs.weights, 3)
    rounded /= rounded.sum(axis=1, keepdims=True)
    twice = np.repeat(rounded, 2, axis=0)
    noise = np.tile([5.0, -5.0], 60)
    runs = make_runs(twice, {"loss/x": np.repeat(large.values, 2) + noise})
    found = transfer(small, Series("seeds", runs, "loss/x"))
    assert found.mixtures == 60
    assert found.spearman == pytest.approx(1)


def test_other_domain_sets_match_by_run_only():
    small, large = two_scales()
    other = make_runs(mixtures(60, 4), {"loss/x": large.values}, names=("a", "b", "c", "d"))
    assert transfer(small, Series("o", other, "loss/x")).spearman == 1
    with pytest.raises(ArgumentError, match="can be matched by id only"):
        transfer(small, Series("o", other, "loss/x"), match="mixture")
    far = make_runs(mixtures(60, 3, seed=7), {"loss/x": large.values})
    with pytest.raises(ArgumentError, match=r"share \d mixtures; at least 3"):
        transfer(small, Series("f", far, "loss/x"))


def test_series_and_pairs():
    runs = exponential_runs(20, params=np.where(np.arange(20) < 10, 1e6, 1e7))
    split = series_of({"r": runs}, ["loss/d0"], by="params")
    assert [s.name for s in split] == ["r params=1e+06 loss/d0", "r params=1e+07 loss/d0"]
    assert len(split[0].runs) == 10
    assert len(pairs_of(split)) == 1
    assert len(pairs_of(series_of({"r": exponential_runs(5)}))) == 6
    with pytest.raises(ArgumentError, match="has no column tokens"):
        series_of({"r": runs}, by="tokens")


def test_the_learning_curve_rises_and_refuses():
    runs = exponential_runs(80, noise=0.2)
    curve = learning_curve("olmix", runs, "loss/d0", repeats=4)
    assert list(curve) == [6, 12, 24, 48, 64]
    means = [mean for mean, _, _ in curve.values()]
    assert means[-1] > means[0]
    assert all(low <= mean <= high for mean, low, high in curve.values())
    for name, message in [("chameleon", "is not fitted to runs"), ("no", "no fit is named")]:
        with pytest.raises(ArgumentError, match=message):
            learning_curve(name, runs, "loss/d0")
    with pytest.raises(ArgumentError, match="olmix needs 6 and more"):
        learning_curve("olmix", exponential_runs(5), "loss/d0")


# Command line ------------------------------------------------------------------------------------


def test_the_command(tmp_path):
    small, large = two_scales(0.1)
    for series in (small, large):
        write_runs(tmp_path / f"{series.name}.csv", series.runs)
    files = [str(tmp_path / f"{n}.csv") for n in ("small", "large")]
    (facts,) = facts_of("transfer", *files)["transfers"]
    assert facts["proxy"] == "small loss/x"
    assert facts["target"] == "large loss/x"
    assert 0.9 < facts["low"] < facts["spearman"] < facts["high"]
    out = run("transfer", *files).stdout
    assert "From proxy to target" in out
    learned = facts_of("transfer", files[0], "-t", "loss/x", "--learn", "olmix")
    assert list(learned["learning_curve"]) == ["6", "12", "24", "48"]
    assert (
        "rank correlation"
        in run("transfer", files[0], "-t", "loss/x", "--learn", "olmix").stdout.lower()
    )
    assert "nothing to compare" in refused("transfer", files[0])
    assert "no outcome 'loss/y'" in refused("transfer", *files, "-t", "loss/y")
    assert "--learn needs one --outcome" in refused("transfer", *files, "--learn", "olmix")
