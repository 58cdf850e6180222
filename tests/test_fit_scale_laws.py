"""Laws with tokens and sizes: AutoScale, D-CPT, CMR, Apple's; known parameters are found again."""

import numpy as np
import pytest
from fit_runs import make_runs, mixtures, simplex_grid

from mixcore.errors import ArgumentError
from mixcore.fit import fit
from mixcore.fit.autoscale import carried_optimum
from mixcore.fit.task import Corpus

# AutoScale ---------------------------------------------------------------------------------------

EQUIVALENT = np.array([2e8, 1e8, 3e8])
GAMMA = np.array([0.05, 0.1, 0.15])


def tokens_loss(amounts):
    return ((EQUIVALENT + amounts) ** -GAMMA).sum(axis=-1) + 1.5


def perturbed(budget, factors=(1 / 3, 3)):
    """The base run and, for each domain, one run a factor: tokens of each domain."""
    base = np.full(3, budget / 3)
    return np.array(
        [base, *(np.where(np.arange(3) == i, base * f, base) for i in range(3) for f in factors)]
    )


def amount_runs(amounts, **outcomes):
    total = amounts.sum(axis=1)
    outcomes = outcomes or {"loss/x": tokens_loss(amounts)}
    return make_runs(amounts / total[:, None], outcomes, tokens=total)


def best_amounts(budget):
    grid = simplex_grid(400) * budget
    return grid[tokens_loss(grid).argmin()]


def test_ddo_finds_the_optimum_from_two_perturbations_a_domain():
    found = fit("autoscale", amount_runs(perturbed(1.2e9)), "loss/x")
    (law,) = found.parameters.values()
    assert law["largest_relative_residual"] < 1e-9
    best = tokens_loss(best_amounts(1.2e9))
    gained = tokens_loss(np.full(3, 4e8)) - tokens_loss(1.2e9 * found.weights)
    assert gained > 0.98 * (tokens_loss(np.full(3, 4e8)) - best)


def test_more_perturbations_tell_which_law_it_is():
    runs = amount_runs(perturbed(1.2e9, (1 / 20, 1 / 3, 3, 20)))
    found = fit("autoscale", runs, "loss/x")
    (law,) = found.parameters.values()
    assert law["laws"]["gamma"] == pytest.approx(GAMMA, rel=1e-6)
    assert law["laws"]["equivalent_tokens"] == pytest.approx(EQUIVALENT, rel=1e-6)
    assert found.weights == pytest.approx(best_amounts(1.2e9) / 1.2e9, abs=0.004)


def test_the_optimum_is_carried_between_budgets():
    both = np.vstack([perturbed(1.2e9), perturbed(4.8e9)])
    found = fit("autoscale", amount_runs(both), "loss/x", budget=4.8e9)
    assert found.weights == pytest.approx(best_amounts(4.8e9) / 4.8e9, abs=0.01)
    between = fit("autoscale", amount_runs(both), "loss/x", budget=2.4e9)
    assert between.weights == pytest.approx(best_amounts(2.4e9) / 2.4e9, abs=0.03)


def test_the_extrapolation_is_elementwise_geometric():
    first, second = np.array([1.0, 2.0, 1.0]), np.array([2.0, 6.0, 2.0])
    double = second * (second / first)
    got, _ = carried_optimum([first, second], float(double.sum()))
    assert got == pytest.approx(double, rel=1e-12)
    between, _ = carried_optimum([first, second], float((first * np.sqrt(second / first)).sum()))
    assert between == pytest.approx(first * np.sqrt(second / first), rel=1e-9)
    assert carried_optimum([second], 100.0)[1] == 10.0


def test_the_notebooks_variant_has_a_floor_and_reads_perplexity():
    runs = amount_runs(perturbed(1.2e9, (1 / 5, 3)))
    paper, code = (fit("autoscale", runs, "loss/x", variant=v) for v in ("paper", "code"))
    assert code.weights.min() >= 0.2 / 3 - 1e-9
    assert np.abs(paper.weights - code.weights).max() > 0.005  # its power has no free factor


def test_the_joint_law_takes_any_mixtures():
    weights = mixtures(40, 3)
    runs = make_runs(weights, {"loss/x": tokens_loss(1e9 * weights)}, tokens=1e9)
    found = fit("autoscale", runs, "loss/x", variant="joint")
    law = found.parameters["loss/x"]
    assert law["gamma"] == pytest.approx(GAMMA, rel=1e-4)
    assert found.quality["loss/x"].mre < 1e-6
    assert found.weights == pytest.approx(best_amounts(1e9) / 1e9, abs=0.004)


def test_autoscale_refuses_runs_without_a_base():
    weights = mixtures(20, 3)
    runs = make_runs(weights, {"loss/x": np.ones(20)}, tokens=1e9)
    with pytest.raises(ArgumentError, match="no base run beside which each of the 3 domains"):
        fit("autoscale", runs, "loss/x")
    with pytest.raises(ArgumentError, match="must have the column tokens"):
        fit("autoscale", make_runs(weights, {"loss/x": np.ones(20)}), "loss/x")
    flat = amount_runs(perturbed(1e9), **{"loss/x": np.full(7, 2.0)})
    with pytest.raises(ArgumentError, match="falls with no domain's tokens"):
        fit("autoscale", flat, "loss/x")


# D-CPT -------------------------------------------------------------------------------------------

DCPT = {"E": 1.2, "alpha": 0.3, "eta": 0.7, "beta": 0.2, "epsilon": 0.1, "gamma": 0.6, "C": 0.2}


def dcpt_runs():
    ratio = np.tile([0.05, 0.2, 0.4, 0.6, 0.8, 0.95], 9)
    size = np.repeat([1e8, 3e8, 1e9], 18)
    tokens = np.tile(np.repeat([1e9, 3e9, 1e10], 6), 3)

    def loss(r):
        return (
            1.2
            + 3 * (size / 3e8) ** -0.3
            + 0.5 * r**0.7 * (tokens / 3e9) ** -0.2
            + 0.2 / (r + 0.1) ** 0.6
        )

    mixes = np.column_stack([ratio, 1 - ratio])
    outcomes = {"loss/d0": loss(ratio), "loss/d1": loss(1 - ratio)}
    return make_runs(mixes, outcomes, tokens=tokens, params=size)


def test_dcpt_is_recovered():
    found = fit("dcpt", dcpt_runs(), "loss/d0")
    law = found.parameters["loss/d0"]
    for name, value in DCPT.items():
        assert law[name] == pytest.approx(value, rel=1e-4), name
    assert found.quality["loss/d0"].mre < 1e-6
    ratio = np.linspace(0, 1, 20_001)
    loss = 0.5 * ratio**0.7 * (1e10 / 3e9) ** -0.2 + 0.2 / (ratio + 0.1) ** 0.6
    assert found.weights[0] == pytest.approx(ratio[loss.argmin()], abs=1e-3)


def test_dcpt_keeps_the_general_loss_within_its_limit():
    runs = dcpt_runs()
    own, other = (fit("dcpt", runs, t, starts=20) for t in ("loss/d0", "loss/d1"))
    law = own.laws["loss/d0"]
    most = float(np.mean([law.predict(f.weights[None])[0] for f in (own, other)]))
    limited = fit("dcpt", runs, "loss/d1", limit={"loss/d0": most}, starts=20)
    assert limited.predicted["loss/d0"] <= most
    assert limited.predicted["loss/d0"] == pytest.approx(most, abs=1e-4)
    with pytest.raises(ArgumentError, match=r"no ratio of the two domains keeps loss/d0 <= 0\.1"):
        fit("dcpt", runs, "loss/d1", limit={"loss/d0": 0.1}, starts=5)


def test_dcpt_without_scales_and_other_refusals():
    runs = dcpt_runs()
    one = runs.some((runs.tokens == 1e9) & (runs.params == 1e8))
    with pytest.raises(ArgumentError, match="has 6 runs to fit 6 parameters"):
        fit("dcpt", one, "loss/d0")
    three = make_runs(mixtures(20, 3), {"loss/d0": np.ones(20)})
    with pytest.raises(ArgumentError, match=r"is about two domains.*has 3"):
        fit("dcpt", three, "loss/d0")
    with pytest.raises(ArgumentError, match="needs losses named after the domains"):
        fit("dcpt", make_runs(mixtures(20, 2), {"loss/x": np.ones(20)}), "loss/x")


# CMR ---------------------------------------------------------------------------------------------

RATIO = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])


def cmr_runs(tokens=(1e9,)):
    """loss/d0 is general: 2 + 0.5 R^1.5 (T / 1e9)^-0.3; d1 is new."""
    r, t = (a.ravel() for a in np.meshgrid(RATIO, tokens))
    general = 2 + 0.5 * r**1.5 * (t / 1e9) ** -0.3
    outcomes = {"loss/d0": general, "loss/d1": 1 + 0.3 * r**-0.4}
    return make_runs(np.column_stack([1 - r, r]), outcomes, tokens=t)


CMR = {"general": "loss/d0", "base_loss": 2.0, "tolerance": 0.05}


def test_cmr_finds_the_critical_ratio():
    found = fit("cmr", cmr_runs(), "loss/d1", **CMR)
    assert found.weights[1] == pytest.approx(0.1 ** (1 / 1.5), abs=1e-4)
    assert found.parameters["loss/d0"] == pytest.approx({"a": 0.5, "s": 1.5, "b": 2.0}, rel=1e-6)
    assert found.parameters["loss/d1"]["s"] == pytest.approx(-0.4, rel=1e-6)
    assert found.predicted["loss/d0"] <= 2.05 + 1e-9


def test_the_critical_ratio_is_carried_to_more_tokens():
    # R(T) = (0.1 (T / 1e9)^0.3)^(1 / 1.5): a power of T
    found = fit("cmr", cmr_runs((1e9, 2e9, 4e9, 8e9)), "loss/d1", budget=1.6e10, **CMR)
    assert found.weights[1] == pytest.approx((0.1 * 16**0.3) ** (1 / 1.5), abs=1e-3)
    assert list(found.parameters["critical_ratio_by_tokens"]) == [
        "1e+09",
        "2e+09",
        "4e+09",
        "8e+09",
    ]


def test_cmr_refusals():
    with pytest.raises(ArgumentError, match="needs the option general, base_loss"):
        fit("cmr", cmr_runs(), "loss/d1")
    with pytest.raises(ArgumentError, match="needs one target"):
        fit("cmr", cmr_runs(), "loss/d0", **CMR)
    with pytest.raises(ArgumentError, match="no ratio of the two domains keeps"):
        fit("cmr", cmr_runs(), "loss/d1", general="loss/d0", base_loss=1.0)


# Apple's -----------------------------------------------------------------------------------------

C, G = np.array([0.5, 0.8, 0.3]), np.array([0.4, 0.7, 0.5])


def apple_runs(joint, num=90):
    weights = mixtures(num, 3)
    size = np.resize([1e8, 3e8, 1e9], num)
    tokens = np.repeat([1e9, 4e9, 2e10], num // 3)
    base = 1 + 1 / (C * weights**G).sum(axis=1)
    a, b = 0.4, 0.6
    if joint:
        a, b = (weights @ [0.2, 0.5, 0.9]) ** 1.3, (weights @ [0.9, 0.4, 0.3]) ** 0.8
    loss = base + a * (size / 3e8) ** -0.35 + b * (tokens / 4e9) ** -0.28
    return make_runs(weights, {"loss/x": loss}, tokens=tokens, params=size)


def test_the_additive_law_is_recovered_and_its_optimum_has_no_scale():
    runs = apple_runs(joint=False)
    found = fit("apple_law", runs, "loss/x", starts=2)
    law = found.parameters["loss/x"]
    assert law["E"] == pytest.approx(1, rel=1e-6)
    assert law["C"] == pytest.approx(C, rel=1e-6)
    assert law["gamma"] == pytest.approx(G, rel=1e-6)
    assert law["A"]["exponent"] == pytest.approx(0.35, rel=1e-6)
    assert found.quality["loss/x"].mre < 1e-8
    grid = simplex_grid(200)
    assert found.weights == pytest.approx(grid[(C * grid**G).sum(axis=1).argmax()], abs=0.006)
    large = fit("apple_law", runs, "loss/x", starts=2, budget=1e13, params=1e12)
    assert large.weights == pytest.approx(found.weights, abs=1e-6)


def test_the_joint_law_moves_with_scale():
    runs = apple_runs(joint=True)
    small = fit("apple_law", runs, "loss/x", variant="joint", starts=4, budget=1e9, params=1e8)
    assert small.quality["loss/x"].mre < 1e-6
    law = small.laws["loss/x"]
    grid = simplex_grid(100)
    for size, tokens in ((1e8, 1e9), (1e11, 1e13)):
        at = law.at(tokens, size)
        true = (
            1 / (C * np.maximum(grid, 1e-12) ** G).sum(axis=1)
            + (grid @ [0.2, 0.5, 0.9]) ** 1.3 * (size / 3e8) ** -0.35
            + (grid @ [0.9, 0.4, 0.3]) ** 0.8 * (tokens / 4e9) ** -0.28
        )
        assert grid[at.predict(grid).argmin()] == pytest.approx(grid[true.argmin()], abs=0.011)
    p = np.array([0.3, 0.5, 0.2])
    value, gradient = law.value_and_gradient(p)
    steps = [
        (law.predict((p + h)[None])[0] - law.predict((p - h)[None])[0]) / 2e-6
        for h in 1e-6 * np.eye(3)
    ]
    assert gradient == pytest.approx(steps, rel=1e-4)
    assert value == pytest.approx(law.predict(p[None])[0])


def test_too_few_runs_for_the_joint_law():
    runs = apple_runs(joint=True).some(np.arange(12))
    with pytest.raises(ArgumentError, match="has 12 runs to fit 12 parameters"):
        fit("apple_law", runs, "loss/x", variant="joint")


def test_caps_hold_in_scale_laws():
    corpus = Corpus({"d0": 1e8, "d1": 1e9, "d2": 1e9})
    runs = amount_runs(perturbed(1.2e9))
    found = fit("autoscale", runs, "loss/x", corpus=corpus, cap=2, budget=1.2e9)
    assert found.epochs.max() <= 2 + 1e-9
