"""One model a domain: MixMin, MDE, UtiliMax."""

import numpy as np
import pytest
from fit_runs import make_runs, mixtures, simplex_grid

from mixcore.errors import ArgumentError
from mixcore.fit import fit, fitter_class
from mixcore.fit.likelihoods import mixture_loss
from mixcore.fit.mde import Experts
from mixcore.fit.task import Corpus

TRUE = np.array([0.6, 0.3, 0.1])


def sources(vocabulary=50, seed=0):
    """Three unigram models that have much in common."""
    own, common = np.random.default_rng(seed).dirichlet(np.full(vocabulary, 0.3), (2, 3))
    return 0.6 * own + 0.4 * common[0]


def texts(num, length, models, seed=1):
    """Texts drawn whole from one source each, in the true mixture: counts, source."""
    rng = np.random.default_rng(seed)
    source = rng.choice(3, num, p=TRUE)
    return np.array([rng.multinomial(length, models[s]) for s in source]), source


def scores_file(tmp_path, num=600, length=4):
    models = sources()
    counts, _ = texts(num, length, models)
    log_p = counts @ np.log(models).T
    path = tmp_path / "scores.csv"
    rows = [f"{length},{','.join(map(repr, row))}" for row in log_p.tolist()]
    path.write_text("length,logp/d0,logp/d1,logp/d2\n" + "\n".join(rows) + "\n")
    return path, log_p


# MixMin ------------------------------------------------------------------------------------------


def test_mixmin_reaches_the_optimum_and_the_true_mixture(tmp_path):
    path, log_p = scores_file(tmp_path, num=3000)
    found = fit("mixmin", path, held_out=0.0)
    assert found.gap < 1e-7
    assert found.weights == pytest.approx(TRUE, abs=0.06)
    shares = np.full(len(log_p), 1 / 4 / len(log_p))
    grid = simplex_grid(60)
    best = min(mixture_loss(log_p, shares, p)[0] for p in grid)
    assert mixture_loss(log_p, shares, found.weights)[0] <= best + 1e-12


def test_the_gradient_at_the_optimum_is_not_zero_but_the_gap_is(tmp_path):
    # The trap of testing max |gradient|: at the optimum it is mean(1 / length).
    # The step too shrinks with the length, so 100 steps end far from the optimum.
    path, log_p = scores_file(tmp_path, num=400, length=100)
    found = fit("mixmin", path, held_out=0.0)
    shares = np.full(len(log_p), 1 / 100 / len(log_p))
    _, gradient = mixture_loss(log_p, shares, found.weights)
    assert np.abs(gradient).max() == pytest.approx(0.01, abs=1e-6)
    short = fit("mixmin", path, held_out=0.0, variant="code")
    assert short.gap > 1e-7
    long = fit("mixmin", path, held_out=0.0, variant="code", steps=5000)
    assert long.gap < 1e-6


def test_descent_never_raises_the_loss(tmp_path):
    _, log_p = scores_file(tmp_path, num=200)
    shares = np.full(len(log_p), 1 / 4 / len(log_p))
    losses = []
    for steps in (1, 2, 4, 8, 16, 64, 256):
        weights = fitter_class("mixmin")(variant="code", steps=steps).descend(log_p, shares)
        losses.append(mixture_loss(log_p, shares, weights)[0])
    assert (np.diff(losses) <= 1e-15).all()


def test_long_texts_do_not_underflow():
    log_p = np.array([[-5000.0, -5010.0], [-9000.0, -8990.0]])
    value, gradient = mixture_loss(log_p, np.full(2, 0.5), np.array([0.5, 0.5]))
    assert value == pytest.approx(7000 - 5 - np.log(0.5) - 2.5 + 0.0, abs=10)
    assert np.isfinite(gradient).all()


def test_mixmin_judges_on_texts_held_out_and_obeys_caps(tmp_path):
    path, _ = scores_file(tmp_path)
    corpus = Corpus({"d0": 10.0, "d1": 100.0, "d2": 100.0})
    found = fit("mixmin", path, corpus=corpus, cap=2, budget=100)
    assert found.weights[0] == pytest.approx(0.2, abs=1e-6)
    assert found.parameters["held_out"]["texts"] == 120
    assert any("on 120 texts held out" in note for note in found.notes)


def test_bad_scores(tmp_path):
    path = tmp_path / "s.csv"
    for text, message in [
        ("length,logp/a\n0,-1\n", "line 2, column 'length'"),
        ("length,logp/a\n4,0.5\n", "line 2, column 'logp/a'"),
        ("logp/a\n-1\n", "must have the columns length and logp/NAME"),
        ("length,logp/a,x\n4,-1,2\n", "column 'x' is not known"),
    ]:
        path.write_text(text)
        with pytest.raises(ArgumentError, match=message):
            fit("mixmin", path)
    path.write_text("length,logp/a\n4,-1\n")
    with pytest.raises(ArgumentError, match="takes no target"):
        fit("mixmin", path, "loss/x")


# MDE ---------------------------------------------------------------------------------------------


def experts_and_runs(num=25, noise=0.0, tokens=400):
    """Outcomes that are the experts' loss, bent, plus something linear in the mixture."""
    rng = np.random.default_rng(2)
    models = sources()
    of = {"x": models.T @ TRUE, "y": models.T @ np.roll(TRUE, 1)}
    drawn = {name: rng.choice(50, tokens, p=p) for name, p in of.items()}
    experts = Experts({name: np.log(models[:, t].T) for name, t in drawn.items()})
    weights = mixtures(num, 3)
    outcomes = {
        f"loss/{v}": 0.5
        + 0.8 * experts.loss(v, weights)
        + weights @ [0.1, -0.05, 0.0]
        + noise * rng.normal(size=num)
        for v in "xy"
    }
    return experts, make_runs(weights, outcomes)


def test_mde_recovers_the_linear_form_and_its_optimum():
    experts, runs = experts_and_runs()
    found = fit("mde", runs, ["loss/x", "loss/y"], experts=experts, alpha=1e-12)
    assert found.parameters["loss/x"]["factors"] == pytest.approx([0.8], abs=1e-5)
    assert found.quality["loss/x"].mre < 1e-5
    grid = simplex_grid(80)
    true = sum(0.8 * experts.loss(v, grid) + grid @ [0.1, -0.05, 0.0] for v in "xy")
    assert found.weights == pytest.approx(grid[true.argmin()], abs=0.02)
    assert found.gap < 1e-8


def test_the_feature_is_what_few_runs_need():
    experts, runs = experts_and_runs(noise=0.002)
    with_it = fit("mde", runs, "loss/x", experts=experts).quality["loss/x"]
    without = fit("regmix", runs, "loss/x", model="linear", samples=100, top=1).quality["loss/x"]
    assert with_it.rmse < 0.5 * without.rmse


@pytest.mark.parametrize("model", ["lightgbm", "gp", "none"])
def test_other_regressors_of_mde(model):
    experts, runs = experts_and_runs(40)
    found = fit("mde", runs, "loss/x", experts=experts, model=model, samples=1000)
    assert found.quality["loss/x"].spearman > (0.9 if model == "gp" else 0.7)
    assert found.weights.sum() == pytest.approx(1)


def test_mde_averages_per_token_not_per_text():
    experts = Experts({"x": np.log(np.array([[0.9, 0.1], [0.2, 0.6]]))})
    got = experts.loss("x", np.array([[0.5, 0.5]]))[0]
    assert got == pytest.approx(-(np.log(0.5) + np.log(0.4)) / 2)


def test_bad_experts(tmp_path):
    _, runs = experts_and_runs()
    path = tmp_path / "e.npz"
    for arrays, message in [
        ({"x": np.zeros((4, 2)) - 1}, "must have one column a domain \\(3\\), got 2"),
        ({"x": np.ones((4, 3))}, "finite log-probabilities <= 0"),
        ({}, "has no arrays"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(ArgumentError, match=message):
            fit("mde", runs, "loss/x", experts=str(path))
    path.write_text("no")
    with pytest.raises(ArgumentError, match=r"is no \.npz file"):
        fit("mde", runs, "loss/x", experts=str(path))
    with pytest.raises(ArgumentError, match="needs the option experts"):
        fit("mde", runs, "loss/x")


# UtiliMax ----------------------------------------------------------------------------------------


def test_equal_utilities_are_uniform_and_fill_up_like_unimax():
    runs = make_runs(np.eye(3), {"loss/a": np.full(3, 2.0)})
    found = fit("utilimax", runs, "loss/a")
    assert found.weights == pytest.approx(np.full(3, 1 / 3), abs=1e-6)
    assert any("all datasets are alike to loss/a" in note for note in found.notes)
    corpus = Corpus({"d0": 1.0, "d1": 20.0, "d2": 100.0})
    capped = fit("utilimax", runs, "loss/a", corpus=corpus, cap=1, budget=30)
    assert capped.weights == pytest.approx([1 / 30, 29 / 60, 29 / 60], abs=1e-6)


def test_utilimax_solves_its_convex_program(tmp_path):
    path = tmp_path / "u.csv"
    utility = np.array([[1.0, 0.0], [0.2, 0.9], [0.1, 0.3]])
    rows = [f"d{i},{a},{b}" for i, (a, b) in enumerate(utility)]
    path.write_text("domain,utility/p,utility/q\n" + "\n".join(rows) + "\n")
    found = fit("utilimax", path, risk=0.3)
    grid = simplex_grid(200)
    value = np.linalg.norm(grid @ utility - 1, axis=1) + 0.3 * (grid**2).sum(axis=1)
    assert found.weights == pytest.approx(grid[value.argmin()], abs=0.006)
    assert found.gap < 1e-6
    assert found.predicted["p"] == pytest.approx(float(utility[:, 0] @ found.weights))


def test_ablations_become_utilities():
    weights = np.vstack([np.eye(3), np.eye(3)[:1]])
    runs = make_runs(weights, {"loss/a": [1, 2, 3, 2.0], "metric/b": [0, 1, 0.5, 0.2]})
    found = fit("utilimax", runs, ["loss/a", "metric/b"])
    table = found.parameters["utility"]
    assert table["d0"] == pytest.approx([1.0, 0.0])
    assert table["d1"] == pytest.approx([2 / 3, 1.0])
    assert table["d2"] == pytest.approx([0.0, (0.5 - 0.1) / 0.9])
    with pytest.raises(ArgumentError, match="has no run of 'd2' alone"):
        fit("utilimax", make_runs(weights[:2], {"loss/a": [1, 2.0]}), "loss/a")


def test_bad_utilities(tmp_path):
    path = tmp_path / "u.csv"
    for text, message in [
        ("domain,utility/p\na,1.5\n", "line 2, column 'utility/p'"),
        ("domain,utility/p\na,1\na,0\n", "has a domain twice"),
        ("domain\na\n", "must have mix/NAME and loss/NAME"),
    ]:
        path.write_text(text)
        with pytest.raises(ArgumentError, match=message):
            fit("utilimax", path)
