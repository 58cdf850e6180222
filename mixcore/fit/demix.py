"""DeMix, its ranking side: predict the scores of merged component models, search by mean rank."""

import numpy as np

from mixcore.fit import register
from mixcore.fit._libraries import sklearn
from mixcore.fit.climb import SearchedInRounds, tempered
from mixcore.fit.law import Law
from mixcore.fit.propose import affordable, dirichlet
from mixcore.fit.regmix import LinearLaw, fit_trees
from mixcore.fit.runs import Runs
from mixcore.fit.stats import ranks
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.methods.base import choice, number, whole


@register
class DeMix(SearchedInRounds):
    """Regress the scores of merged models on the merge weights, search by the mean rank of tasks.

    One component model a domain is trained; the proxy of a mixture is the components' weights
    merged in that ratio, so a "run" costs an evaluation. The runs are those evaluations: `mix/` the
    merge ratios, `loss/` or `metric/` the scores. (Merging and evaluating are the user's.)

    Ridge (alpha 0.5) on up to 32 runs, LightGBM (300 rounds at 0.01) beyond; candidates from
    Dirichlet(strength x prior^0.7), strengths in [0.5, 5]; each task ranks all candidates, and the
    mean of the `top` with the least mean rank is the answer. Ranks have no unit, so no task
    outweighs another by its scale. Rounds of n, n / 2, n / 4 mixtures: `next` has the next one's.

    Args:
        model: "auto" (by the number of runs), "ridge" or "lightgbm".
        samples: Candidates (200,000 in the authors' code).
        top: Averaged (1280 there).
        alpha: Of the ridge.
        rounds, learning_rate, min_leaf: Of the trees.
        next_runs: Mixtures of the next round; None: half as many as there are; 0: none.
    """

    name = "demix"
    paper = "DeMix 2026, 2602.00747"
    tractable = "merged component models stand in for trained ones; ranks are regressed"

    def __init__(
        self,
        *,
        model: str = "auto",
        samples: int = 200_000,
        top: int = 1280,
        alpha: float = 0.5,
        rounds: int = 300,
        learning_rate: float = 0.01,
        min_leaf: int = 5,
        next_runs: int | None = None,
    ) -> None:
        super().__init__()
        self.model = choice("model", model, ("auto", "ridge", "lightgbm"))
        self.samples = whole("samples", samples, 1, 10_000_000)
        self.top = whole("top", top, 1, self.samples)
        self.alpha = number("alpha", alpha, 0)
        self.rounds = whole("rounds", rounds, 1, 1_000_000)
        self.learning_rate = number("learning_rate", learning_rate, 0, 1, above=True)
        self.min_leaf = whole("min_leaf", min_leaf, 1)
        self.next_runs = None if next_runs is None else whole("next_runs", next_runs, 0)

    def least_runs(self, num_domains: int) -> int:
        """A ridge is determined by any two."""
        return 3

    def scheduled(self, num_runs: int) -> int:
        """Half as many."""
        return num_runs // 2

    def candidates(self, task: Task) -> Floats:
        """Dirichlet on the tempered prior."""
        samples = affordable(self.samples, len(task.domains))
        return dirichlet(tempered(task.prior, 0.7), samples, task.seed, 0.5, 5.0)

    def score(self, laws: dict[str, Law], task: Task, mixtures: Floats) -> Floats:
        """The mean rank over the targets, weighted by their magnitudes."""
        total = np.zeros(len(mixtures))
        for column, c in task.target.items():
            total += abs(c) * ranks(np.sign(c) * laws[column].predict(mixtures))
        return total

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """A ridge or trees."""
        y = runs.outcome(column)
        if self.model == "ridge" or (self.model == "auto" and len(runs) <= 32):
            ridge = sklearn("linear_model").Ridge(alpha=self.alpha).fit(runs.weights, y)
            return LinearLaw(np.asarray(ridge.coef_) + float(ridge.intercept_))
        return fit_trees(
            runs.weights,
            y,
            {"learning_rate": self.learning_rate, "min_data_in_leaf": self.min_leaf},
            rounds=self.rounds,
            early_stop=None,
            groups=runs.groups(),
            seed=task.seed,
        )
