"""RegMix: regress the outcome on the mixture, simulate many mixtures, take the mean of the best."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit._libraries import lightgbm
from mixcore.fit.base import RunsFitter
from mixcore.fit.law import Law, TooFewRunsError
from mixcore.fit.propose import Optimum, affordable, all_within, best_of, dirichlet
from mixcore.fit.runs import Runs
from mixcore.fit.stats import folds
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.methods.base import choice, number, whole


class TreesLaw(Law):
    """Gradient-boosted trees over the weights."""

    smooth = False

    def __init__(self, booster: Any) -> None:
        self.booster = booster

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The outcome at mixtures."""
        result: Floats = np.asarray(self.booster.predict(weights, num_threads=1))
        return result

    def parameters(self) -> dict[str, Any]:
        """How many trees there are, and how much each domain's splits gained (sum 1)."""
        gains = self.booster.feature_importance("gain")
        total = gains.sum()
        return {
            "trees": self.booster.num_trees(),
            "gain": (gains / total if total > 0 else gains).tolist(),
        }


class LinearLaw(Law):
    """outcome = sum_i b_i p_i; the constant is in the b, as the p sum to 1."""

    curvature = "linear"

    def __init__(self, slopes: Floats) -> None:
        self.slopes = slopes

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The outcome at mixtures."""
        result: Floats = weights @ self.slopes
        return result

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """The outcome and the slopes."""
        return float(weights @ self.slopes), self.slopes

    def parameters(self) -> dict[str, Any]:
        """B."""
        return {"slopes": self.slopes.tolist()}


def fit_trees(
    weights: Floats,
    outcome: Floats,
    settings: dict[str, Any],
    *,
    rounds: int,
    early_stop: int | None,
    groups: npt.NDArray[np.int64],
    seed: int,
) -> TreesLaw:
    """LightGBM, one thread, deterministic.

    Args:
        weights: float64[R, D].
        outcome: float64[R].
        settings: LightGBM's own.
        rounds: Most trees.
        early_stop: Stop when so many rounds bring nothing on a tenth of the mixtures, taken from
            those that are fitted and never from those that judge the fit; None: all rounds.
        groups: int64[R]; what stops the fit shares no group with what is fitted.
        seed: Of the trees and of that tenth.

    Raises:
        ArgumentError: Too few runs for any split: the trees would predict the same everywhere.
    """
    library = lightgbm()
    options = {
        "objective": "regression",
        "metric": "l2",
        "verbosity": -1,
        "seed": seed,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        **settings,
    }
    callbacks, valid = [], []
    rows = np.arange(len(outcome))
    if early_stop is not None:
        rows, out = next(folds(groups, 10, seed))
        if len(out) == 0 or len(rows) == 0:
            raise ArgumentError("early_stop needs at least 2 different mixtures")
        callbacks = [library.early_stopping(early_stop, verbose=False)]
    data = library.Dataset(
        weights[rows], outcome[rows], params={"verbosity": -1}, free_raw_data=True
    )
    if early_stop is not None:
        valid = [library.Dataset(weights[out], outcome[out], reference=data)]
    booster = library.train(options, data, rounds, valid_sets=valid, callbacks=callbacks)
    if not booster.feature_importance("split").any():
        raise TooFewRunsError(
            f"the trees found no split in {len(rows)} runs and would predict the same everywhere: "
            f"give more runs or a smaller min_leaf (now {settings['min_data_in_leaf']})"
        )
    return TreesLaw(booster)


def fit_linear(weights: Floats, outcome: Floats) -> LinearLaw:
    """Least squares; where mixtures are collinear, the smallest such slopes."""
    slopes, *_ = np.linalg.lstsq(weights, outcome, rcond=1e-10)
    return LinearLaw(np.asarray(slopes))


def predicted_objective(laws: dict[str, Law], task: Task, mixtures: Floats) -> Floats:
    """The objective of simulated mixtures, predicted."""
    return task.objective({c: laws[c].predict(mixtures) for c in task.target})


@register
class RegMix(RunsFitter):
    """Regress each outcome on the mixture, simulate mixtures, take the mean of the best.

    outcome = f(p), f by LightGBM or linear; p* = mean of the `top` of `samples` mixtures from
    Dirichlet(strength x prior) by predicted objective. The mean damps the predictor's noise, which
    the arg-min would follow.

    The reference notebook stops its trees early on the test split. Here nothing that judges the fit
    is ever used to make it: `early_stop` takes a tenth of the fitted mixtures instead. Its search
    has no bound on usage; here every simulated mixture is made to obey the caps.

    Args:
        model: "lightgbm" or "linear".
        samples: Simulated mixtures (100,000 in the reference notebook).
        top: How many of the best are averaged (128 there).
        strength: Of the Dirichlet (1 there, on the prior as it is).
        rounds: Trees, at learning_rate (1000 at 0.01 there).
        learning_rate: Of the trees.
        early_stop: Rounds without gain on a tenth of the fitted mixtures; None: no early stop.
        min_leaf: Fewest runs in a leaf (LightGBM's 20).
    """

    name = "regmix"
    paper = "Liu, Zheng, Muennighoff et al. 2024, 2407.01492"
    tractable = "learns L_val(p) from hundreds of tiny runs by regression, then searches it"

    def __init__(
        self,
        *,
        model: str = "lightgbm",
        samples: int = 100_000,
        top: int = 128,
        strength: float = 1.0,
        rounds: int = 1000,
        learning_rate: float = 0.01,
        early_stop: int | None = None,
        min_leaf: int = 20,
    ) -> None:
        super().__init__()
        self.model = choice("model", model, ("lightgbm", "linear"))
        self.samples = whole("samples", samples, 1, 10_000_000)
        self.top = whole("top", top, 1, self.samples)
        self.strength = number("strength", strength, 0, above=True)
        self.rounds = whole("rounds", rounds, 1, 1_000_000)
        self.learning_rate = number("learning_rate", learning_rate, 0, 1, above=True)
        self.early_stop = None if early_stop is None else whole("early_stop", early_stop, 1)
        self.min_leaf = whole("min_leaf", min_leaf, 1)

    def least_runs(self, num_domains: int) -> int:
        """Trees need two leaves; the linear law one run a slope."""
        return 2 if self.model == "lightgbm" else num_domains + 1

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """Trees or a linear law."""
        if self.model == "linear":
            return fit_linear(runs.weights, runs.outcome(column))
        return fit_trees(
            runs.weights,
            runs.outcome(column),
            {"learning_rate": self.learning_rate, "min_data_in_leaf": self.min_leaf},
            rounds=self.rounds,
            early_stop=self.early_stop,
            groups=runs.groups(),
            seed=task.seed,
        )

    def propose(self, laws: dict[str, Law], task: Task, runs: Runs) -> Optimum:
        """The mean of the best simulated mixtures."""
        samples = affordable(self.samples, len(task.domains))
        if samples < self.samples:
            self.notes.append(f"{samples} mixtures are simulated, of {len(task.domains)} domains")
        drawn = dirichlet(task.prior, samples, task.seed, self.strength, self.strength)
        mixtures = all_within(drawn, task.most)
        values = predicted_objective(laws, task, mixtures)
        best = best_of(mixtures, values, self.top)
        return Optimum(best, float(predicted_objective(laws, task, best[None])[0]), float("nan"))
