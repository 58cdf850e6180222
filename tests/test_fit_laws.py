"""The exponential and power laws of the mixture: known parameters and optima are found again."""

import json

import numpy as np
import pytest
from fit_runs import (
    EXPONENTIAL_FLOORS,
    EXPONENTIAL_SLOPES,
    exponential_runs,
    make_runs,
    mean_exponential,
    mixtures,
    simplex_grid,
)

from mixcore.errors import ArgumentError
from mixcore.fit import fit
from mixcore.fit.task import Corpus

LOSSES = ["loss/d0", "loss/d1", "loss/d2"]
GRID = simplex_grid(200)
BEST = GRID[mean_exponential(GRID).argmin()]


# Data Mixing Laws and Olmix ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixing_law", "olmix"])
def test_the_exponential_law_is_recovered(name):
    found = fit(name, exponential_runs(), LOSSES)
    for i, column in enumerate(LOSSES):
        law = found.parameters[column]
        assert law["floor"] == pytest.approx(EXPONENTIAL_FLOORS[i], abs=1e-9)
        assert law["slopes"][0] == pytest.approx(EXPONENTIAL_SLOPES[i], abs=1e-9)
        assert found.quality[column].mre < 1e-10
        assert found.quality[column].spearman == pytest.approx(1)


def test_the_optimum_is_the_best_of_all_mixtures():
    found = fit("mixing_law", exponential_runs(), LOSSES)
    assert found.gap < 1e-8
    assert found.weights == pytest.approx(BEST, abs=0.01)
    assert mean_exponential(found.weights) <= mean_exponential(GRID).min() + 1e-12


def test_noise_moves_the_optimum_little():
    found = fit("mixing_law", exponential_runs(80, noise=0.01), LOSSES)
    assert mean_exponential(found.weights) < mean_exponential(GRID).min() + 0.002
    assert mean_exponential(found.weights) < mean_exponential(np.full(3, 1 / 3))
    assert found.quality["loss/d0"].rmse == pytest.approx(0.01, rel=0.5)


def test_outliers_do_not_pull_the_fit():
    runs = exponential_runs(60)
    runs.outcomes["loss/d0"][::15] += 1.0
    law = fit("mixing_law", runs, "loss/d0").laws["loss/d0"]
    assert law.predict(runs.weights)[1] == pytest.approx(runs.outcomes["loss/d0"][1], abs=0.01)


def test_hidden_domains_fit_what_one_exponential_cannot():
    weights = mixtures(120, 3)
    slopes = np.array([[-3.0, 1.0, 0.2], [1.2, -2.5, 0.1]])
    y = 1.5 + np.exp(weights @ slopes.T).sum(axis=1)
    runs = make_runs(weights, {"loss/x": y})
    one = fit("mixing_law", runs, "loss/x").quality["loss/x"]
    two = fit("mixing_law", runs, "loss/x", hidden=2)
    assert two.quality["loss/x"].rmse < 0.02 * one.rmse
    got = np.array(sorted(two.parameters["loss/x"]["slopes"]))
    assert got == pytest.approx(slopes, abs=1e-3)


def test_step_and_size_laws_are_nested():
    mixes = mixtures(12, 3)
    tokens, params = np.array([1e9, 2e9, 4e9, 8e9]), np.array([1e7, 3e7, 1e8, 3e8])
    rows, t, n = (a.ravel() for a in np.meshgrid(np.arange(12), tokens, params, indexing="ij"))
    limit = 1.2 + np.exp(mixes @ EXPONENTIAL_SLOPES[0])
    # Each loss is a power law of steps at every size, and what it tends to, one of size.
    y = limit[rows] + 20 * n**-0.3 + (t / 1e9) ** -0.4
    runs = make_runs(mixes[rows], {"loss/d0": y}, tokens=t, params=n)
    found = fit("mixing_law", runs, "loss/d0", tokens=1e11, params=1e9)
    expected = limit + 20 * 1e9**-0.3 + 100**-0.4
    law = found.laws["loss/d0"]
    assert law.predict(mixes) == pytest.approx(expected, rel=1e-5)
    assert any("extrapolated to 1e+11 tokens" in note for note in found.notes)
    with pytest.raises(ArgumentError, match="several params: mixing_law needs params"):
        fit("mixing_law", runs, "loss/d0", tokens=1e11)
    with pytest.raises(ArgumentError, match="has 2 different tokens; its law needs 3"):
        fit("mixing_law", runs.some(t <= 2e9), "loss/d0", tokens=1e11, params=1e9)


def test_metrics_are_made_large():
    runs = exponential_runs()
    runs.outcomes["metric/qa"] = 1 - 0.1 * runs.outcomes["loss/d0"]
    by_loss, by_metric = (fit("olmix", runs, t, kl=0) for t in ("loss/d0", "metric/qa"))
    assert by_metric.weights == pytest.approx(by_loss.weights, abs=1e-4)
    assert by_metric.predicted["metric/qa"] > by_metric.predicted_prior["metric/qa"]


def test_kl_pulls_to_the_prior_and_the_exact_proposer_finds_the_optimum():
    runs = exponential_runs()
    corpus = Corpus({"d0": 5.0, "d1": 1.0, "d2": 4.0})
    far = [
        float(
            np.abs(fit("olmix", runs, LOSSES, corpus=corpus, kl=kl).weights - [0.5, 0.1, 0.4]).max()
        )
        for kl in (0.0, 0.1, 10.0)
    ]
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.01
    found = fit("olmix", runs, LOSSES, corpus=corpus, kl=0.1)
    positive = GRID[(GRID > 0).all(axis=1)]
    value = mean_exponential(positive) + 0.1 * (positive * np.log(positive / [0.5, 0.1, 0.4])).sum(
        axis=1
    )
    assert found.weights == pytest.approx(positive[value.argmin()], abs=0.006)
    assert found.gap < 1e-7


def test_the_repetition_cap_binds_and_shows_in_epochs():
    corpus = Corpus({"d0": 100.0, "d1": 10.0, "d2": 1000.0})
    for name in ("olmix", "mixing_law", "regmix"):
        options = {"samples": 2000} if name == "regmix" else {}
        found = fit(name, exponential_runs(80), LOSSES, corpus=corpus, cap=4, budget=400, **options)
        assert found.epochs.max() <= 4 + 1e-9
        assert found.weights[1] <= 0.1 + 1e-9
        assert found.weights.sum() == pytest.approx(1)


def test_simulated_and_exact_proposers_agree():
    exact = fit("olmix", exponential_runs(), LOSSES, kl=0)
    simulated = fit("olmix", exponential_runs(), LOSSES, proposer="simulated", samples=5000)
    assert mean_exponential(simulated.weights) - mean_exponential(exact.weights) < 5e-4


def test_mixture_reuse_freezes_ratios_inside_groups():
    runs = exponential_runs(names=("web", "d1", "d2"))
    corpus = Corpus({"news": 30.0, "forums": 20.0, "d1": 100.0, "d2": 100.0}, {"forums": 1.0})
    reuse = {"web": {"news": 3, "forums": 1}}
    found = fit("olmix", runs, LOSSES, corpus=corpus, budget=200, reuse=reuse, kl=0.01)
    weights = dict(zip(found.task.domains, found.weights.tolist(), strict=True))
    assert weights["news"] == pytest.approx(3 * weights["forums"])
    assert sum(weights.values()) == pytest.approx(1)
    epochs = dict(zip(found.task.domains, found.epochs.tolist(), strict=True))
    assert epochs["forums"] <= 1 + 1e-9
    flat = fit("olmix", runs, LOSSES, kl=0.01, prior={"web": 50, "d1": 100, "d2": 100})
    assert weights["news"] + weights["forums"] == pytest.approx(flat.weights[0], abs=1e-6)
    for bad, message in [
        ({"web": {"x": 1}}, "the domain 'x', the sizes have not"),
        ({"web": {"news": 1}, "b": {"news": 1}}, "in 'web' and in 'b'"),
        ({"web": {"news": -1}}, "reuse\\['web'\\]"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            fit("olmix", runs, LOSSES, corpus=corpus, budget=200, reuse=bad)


# BiMix -------------------------------------------------------------------------------------------

ALPHA, FACTOR = np.array([0.19, 0.05, 0.12]), np.array([2.0, 1.2, 2.9])


def bimix_runs(num=12, tokens=None):
    weights = mixtures(num, 3, strength=2.0)
    scale = FACTOR if tokens is None else 0.8 + 30 * np.asarray(tokens)[:, None] ** -0.2 * FACTOR
    y = scale * weights**-ALPHA
    return make_runs(weights, {f"loss/d{i}": y[:, i] for i in range(3)}, tokens=tokens)


def test_bimix_is_recovered_and_its_optimum_solves_the_conditions():
    found = fit("bimix", bimix_runs(), LOSSES)
    for i, column in enumerate(LOSSES):
        assert found.parameters[column]["alpha"][i] == pytest.approx(ALPHA[i], abs=1e-9)
        assert found.parameters[column]["C"][i] == pytest.approx(FACTOR[i], abs=1e-9)
    slopes = FACTOR * ALPHA * found.weights ** (-ALPHA - 1)
    assert slopes == pytest.approx(np.full(3, slopes[0]), rel=1e-9)
    assert found.gap < 1e-9


def test_bimix_under_a_cap():
    corpus = Corpus({"d0": 10.0, "d1": 100.0, "d2": 100.0})
    found = fit("bimix", bimix_runs(), LOSSES, corpus=corpus, cap=2, budget=100)
    assert found.weights[0] == pytest.approx(0.2)
    slopes = (FACTOR * ALPHA * found.weights ** (-ALPHA - 1))[1:]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-8)
    assert found.gap < 1e-9


def test_bimix_with_steps_is_read_at_the_budget():
    tokens = np.tile([1e9, 3e9, 1e10], 6)
    runs = bimix_runs(18, tokens)
    found = fit("bimix", runs, LOSSES, budget=1e11)
    p = np.array([[0.2, 0.3, 0.5]])
    scale = 0.8 + 30 * 1e11**-0.2 * FACTOR
    for i, column in enumerate(LOSSES):
        expected = scale[i] * p[0, i] ** -ALPHA[i]
        assert found.laws[column].predict(p)[0] == pytest.approx(expected, rel=1e-5)
    assert found.quality["loss/d0"].mre < 1e-6


def test_bimix_takes_other_validation_sets_by_the_sum():
    weights = mixtures(40, 3, strength=2.0)
    y = (FACTOR * weights**-ALPHA).sum(axis=1)
    runs = make_runs(weights, {"loss/x": y})
    found = fit("bimix", runs, "loss/x", variant="olmix")
    assert found.quality["loss/x"].mre < 1e-6
    grid = GRID[(GRID > 0).all(axis=1)]
    assert found.weights == pytest.approx(
        grid[(FACTOR * grid**-ALPHA).sum(axis=1).argmin()], abs=0.01
    )
    with pytest.raises(ArgumentError, match="no domain is named 'x'"):
        fit("bimix", runs, "loss/x")


def test_bimix_leaves_out_runs_without_the_domain():
    runs = bimix_runs()
    weights = runs.weights.copy()
    weights[3] = [0.0, 0.4, 0.6]
    outcomes = {c: v.copy() for c, v in runs.outcomes.items()}
    outcomes["loss/d0"][3] = 9.9
    found = fit("bimix", make_runs(weights, outcomes), "loss/d0")
    assert found.parameters["loss/d0"]["alpha"][0] == pytest.approx(ALPHA[0], abs=1e-9)


# What runs are refused or noted ------------------------------------------------------------------


def test_too_few_runs_are_refused_and_few_are_noted():
    with pytest.raises(
        ArgumentError, match="4 different mixtures of 3 domains; olmix needs at lea"
    ):
        fit("olmix", exponential_runs(4), LOSSES)
    found = fit("olmix", exponential_runs(8), LOSSES)
    assert any("8 mixtures are few for 3 domains: from 12 on" in note for note in found.notes)
    enough = fit("olmix", exponential_runs(12), LOSSES)
    assert not any("are few" in note for note in enough.notes)
    alone = fit("olmix", exponential_runs(5), LOSSES)
    assert alone.quality == {}
    assert any("the fit is not judged" in note for note in alone.notes)


def test_collinear_mixtures_are_noted():
    weights = mixtures(30, 3)
    weights[:, 1] = 2 * weights[:, 0]
    weights /= weights.sum(axis=1, keepdims=True)
    y = 1 + np.exp(weights @ EXPONENTIAL_SLOPES[0])
    found = fit("olmix", make_runs(weights, {"loss/d0": y}), "loss/d0")
    assert any("vary in 1 of 2 directions only" in note for note in found.notes)


def test_a_domain_that_no_run_drew_gets_nothing():
    runs = exponential_runs()
    weights = np.column_stack([runs.weights, np.zeros(40)])
    wider = make_runs(weights, runs.outcomes)
    for name in ("olmix", "mixing_law", "bimix", "regmix"):
        options = {"samples": 2000, "min_leaf": 5} if name == "regmix" else {}
        target = LOSSES if name != "regmix" else "loss/d0"
        found = fit(name, wider, target, **options)
        assert found.weights[3] == 0
        assert any("no run drew from d3" in note for note in found.notes)


def test_scales_are_not_mixed_by_laws_without_an_axis():
    tokens = np.where(np.arange(40) < 20, 1e9, 2e9)
    runs = exponential_runs(tokens=tokens)
    with pytest.raises(ArgumentError, match=r"2 different tokens .*olmix has no place for"):
        fit("olmix", runs, LOSSES)
    assert fit("olmix", runs.some(tokens == 1e9), LOSSES).weights.sum() == pytest.approx(1)


def test_bad_names_and_options():
    runs = exponential_runs()
    for name, options, message in [
        ("olmx", {}, "no fit is named 'olmx'; did you mean 'olmix'"),
        ("olmix", {"round": 1}, "fit 'olmix' has no option 'round'.*did you mean 'rounds'"),
        ("olmix", {"kl": -1}, "kl must be in"),
        ("olmix", {"proposer": "best"}, "proposer must be one of"),
        ("mixing_law", {"hidden": 0}, "hidden must be in"),
        ("bimix", {"variant": "x"}, "variant must be one of"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            fit(name, runs, LOSSES, **options)
    with pytest.raises(ArgumentError, match="no outcome 'loss/d9'"):
        fit("olmix", runs, "loss/d9")
    with pytest.raises(ArgumentError, match=r"target is missing; runs\.csv has: loss/d0"):
        fit("olmix", runs)
    runs.outcomes["metric/m"] = np.ones(40)
    with pytest.raises(ArgumentError, match="bimix is a law of losses"):
        fit("bimix", runs, "metric/m")


@pytest.mark.parametrize("name", ["mixing_law", "olmix", "bimix", "regmix"])
@pytest.mark.parametrize("kind", ["constant", "one domain", "one-hot", "huge", "sparse"])
def test_degenerate_runs_give_weights_or_one_error(name, kind):
    weights = mixtures(30, 3)
    y = np.random.default_rng(0).normal(3, 0.1, 30)
    if kind == "constant":
        y = np.full(30, 2.0)
    elif kind == "one domain":
        weights = np.ones((30, 1))
    elif kind == "one-hot":
        weights = np.tile(np.eye(3), (10, 1))
    elif kind == "huge":
        y = y * 1e300
    else:
        weights = np.where(weights < 0.3, 0, weights)
        weights /= weights.sum(axis=1, keepdims=True)
    options = {"samples": 200, "rounds": 20, "min_leaf": 5} if name == "regmix" else {}
    try:
        with np.errstate(all="ignore"):
            found = fit(name, make_runs(weights, {"loss/d0": y}), "loss/d0", **options)
    except ArgumentError:
        return
    assert np.isfinite(found.weights).all()
    assert found.weights.sum() == pytest.approx(1)
    json.dumps(found.to_json(), allow_nan=False)
