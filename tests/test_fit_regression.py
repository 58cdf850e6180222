"""RegMix, CLIMB and DeMix: regression over many runs, and its traps."""

import numpy as np
import pytest
from fit_runs import exponential_runs, make_runs, mean_exponential, mixtures, simplex_grid

from mixcore.errors import ArgumentError
from mixcore.fit import fit
from mixcore.fit import regmix as module
from mixcore.fit.regmix import fit_linear, fit_trees
from mixcore.fit.task import Corpus

LOSSES = ["loss/d0", "loss/d1", "loss/d2"]
BEST = mean_exponential(simplex_grid()).min()
UNIFORM = float(mean_exponential(np.full(3, 1 / 3))[0])
QUICK = {"samples": 4000, "rounds": 300, "learning_rate": 0.05, "min_leaf": 5}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("regmix", {**QUICK, "top": 32}),
        ("climb", {"samples": 4000, "rounds": 300}),
        ("demix", {"samples": 4000, "top": 64}),
        ("demix", {"samples": 4000, "top": 64, "model": "lightgbm"}),
    ],
)
def test_the_answer_is_near_the_best_mixture(name, options):
    found = fit(name, exponential_runs(200, noise=0.002), LOSSES, **options)
    assert mean_exponential(found.weights) < BEST + 0.006
    assert found.quality["loss/d0"].spearman > 0.97
    assert found.weights.sum() == pytest.approx(1)


def test_what_judges_the_trees_never_stops_them(monkeypatch):
    runs = exponential_runs(60)
    groups = runs.groups()
    seen = []
    library = module.lightgbm()
    real = library.train

    def train(options, data, rounds, valid_sets, callbacks):
        seen.append((data, list(valid_sets)))
        return real(options, data, rounds, valid_sets=valid_sets, callbacks=callbacks)

    monkeypatch.setattr(library, "train", train)
    fit("regmix", runs, "loss/d0", **QUICK)
    assert len(seen) == 6  # five folds and the fit
    assert all(valid == [] for _, valid in seen)
    seen.clear()
    fit("regmix", runs, "loss/d0", early_stop=3, **QUICK)
    assert [len(valid) for _, valid in seen] == [1] * 6
    sizes = [(data.num_data(), valid[0].num_data()) for data, valid in seen]
    assert all(fitted + stopping == 48 for fitted, stopping in sizes[1:])
    assert sum(sizes[0]) == 60  # the fit itself, then its folds
    assert len(np.unique(groups)) == 60


def test_seeds_of_one_mixture_are_not_on_both_sides():
    # Ten seeds of each of 12 mixtures with random outcomes: nothing can be learned, and a split
    # that tore mixtures apart would show a rank correlation near 1.
    rng = np.random.default_rng(0)
    weights = np.repeat(mixtures(12, 3), 10, axis=0)
    y = np.repeat(rng.normal(size=12), 10) + 1e-3 * rng.normal(size=120)
    found = fit("regmix", make_runs(weights, {"loss/x": y}), "loss/x", **QUICK)
    assert found.quality["loss/x"].spearman < 0.6
    torn = np.arange(120) % 2 == 0
    law = fit_trees(
        weights[torn],
        y[torn],
        {"min_data_in_leaf": 5},
        rounds=300,
        early_stop=None,
        groups=np.arange(60),
        seed=0,
    )
    assert np.corrcoef(law.predict(weights[~torn]), y[~torn])[0, 1] > 0.9


def test_the_mean_of_the_top_damps_noise():
    worst = {1: [], 64: []}
    for seed in range(3):
        runs = exponential_runs(60, noise=0.03, seed=seed)
        for top in (1, 64):
            found = fit("regmix", runs, LOSSES, **QUICK, top=top)
            worst[top].append(float(mean_exponential(found.weights)[0]))
    assert np.mean(worst[64]) < np.mean(worst[1])


def test_caps_hold_for_every_simulated_mixture():
    corpus = Corpus({"d0": 10.0, "d1": 50.0, "d2": 1000.0})
    options = {"regmix": QUICK, "climb": {"samples": 2000}, "demix": {"samples": 2000, "top": 16}}
    for name, given in options.items():
        found = fit(name, exponential_runs(90), LOSSES, corpus=corpus, cap=4, budget=400, **given)
        assert found.weights[0] <= 0.1 + 1e-9
        assert found.weights[1] <= 0.5 + 1e-9
        if "next" in found.extra:
            assert (found.extra["next"] <= [0.1 + 1e-9, 0.5 + 1e-9, 1]).all()


def test_the_same_seed_gives_the_same_answer():
    runs = exponential_runs(60, noise=0.01)
    a, b, c = (fit("regmix", runs, LOSSES, seed=s, **QUICK).weights for s in (1, 1, 2))
    assert a.tobytes() == b.tobytes()
    assert a.tobytes() != c.tobytes()


def test_trees_that_cannot_split_are_refused():
    with pytest.raises(ArgumentError, match=r"no split in 30 runs.*min_leaf \(now 20\)"):
        fit("regmix", exponential_runs(30), "loss/d0")


def test_the_linear_law_is_exact_where_it_is_true():
    weights = mixtures(20, 4)
    slopes = np.array([3.0, 1.0, 2.0, 4.0])
    runs = make_runs(weights, {"loss/x": weights @ slopes})
    found = fit("regmix", runs, "loss/x", model="linear", samples=5000)
    assert found.parameters["loss/x"]["slopes"] == pytest.approx(slopes)
    assert found.weights.argmax() == 1
    collinear = np.column_stack([weights[:, :2], weights[:, 2:].sum(axis=1)[:, None] / [2, 2]])
    assert np.isfinite(fit_linear(collinear, weights @ slopes).slopes).all()


# Rounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runs", "following"), [(64, 32), (96, 16), (112, 0)])
def test_climb_proposes_the_next_round_from_the_best(runs, following):
    found = fit("climb", exponential_runs(runs), LOSSES, samples=4000, rounds=200)
    if not following:
        assert "next" not in found.extra
        return
    proposed = found.extra["next"]
    assert proposed.shape == (following, 3)
    random = mixtures(2000, 3, seed=9)
    assert mean_exponential(proposed).mean() < mean_exponential(random).mean() - 0.015


def test_demix_ranks_so_that_no_task_outweighs_by_scale():
    runs = exponential_runs(24)
    small = fit("demix", runs, LOSSES, samples=3000, top=50)
    runs.outcomes["loss/d0"] = 1000 * runs.outcomes["loss/d0"]
    large = fit("demix", runs, LOSSES, samples=3000, top=50)
    assert large.weights == pytest.approx(small.weights, abs=1e-12)
    assert small.extra["next"].shape == (12, 3)
    assert fit("demix", runs, LOSSES, samples=100, top=5, next_runs=0).extra == {}
