"""CLIMB: rounds of proxy runs, each drawn from what the predictor of the last liked best."""

import numpy as np

from mixcore.fit import register
from mixcore.fit.base import RunsFitter
from mixcore.fit.law import Law
from mixcore.fit.propose import Optimum, affordable, all_within, best_of, dirichlet
from mixcore.fit.regmix import fit_trees, predicted_objective
from mixcore.fit.runs import Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.methods.base import normalise, number, whole

ROUNDS = (64, 32, 16)  # runs of the paper's three rounds


class SearchedInRounds(RunsFitter):
    """What CLIMB and DeMix share: trees over runs, simulated mixtures, mixtures to run next."""

    samples: int
    top: int
    next_runs: int | None

    def candidates(self, task: Task) -> Floats:
        """Simulated mixtures, float64[samples, D]."""
        raise NotImplementedError

    def score(self, laws: dict[str, Law], task: Task, mixtures: Floats) -> Floats:
        """What is to be small, float64[samples]."""
        return predicted_objective(laws, task, mixtures)

    def scheduled(self, num_runs: int) -> int:
        """How many runs the next round has."""
        raise NotImplementedError

    def propose(self, laws: dict[str, Law], task: Task, runs: Runs) -> Optimum:
        """The mean of the best; the next round is drawn from the best tenth of the candidates."""
        mixtures = all_within(self.candidates(task), task.most)
        values = self.score(laws, task, mixtures)
        best = best_of(mixtures, values, self.top)
        num = self.scheduled(len(runs)) if self.next_runs is None else self.next_runs
        pool = np.argsort(values, kind="stable")[: max(len(values) // 10, num)]
        drawn = np.random.default_rng(task.seed + 1).permutation(pool)[:num]
        self.extra = {"next": mixtures[np.sort(drawn)]} if num else {}
        if num:
            self.notes.append(f"{num} mixtures are proposed for the next round")
        value = float(predicted_objective(laws, task, best[None])[0])
        return Optimum(best, value, float("nan"))


@register
class Climb(SearchedInRounds):
    """The predictor's best after rounds of proxy runs; and the mixtures of the next round.

    Round 1 draws mixtures from a Dirichlet on the token counts. After each round LightGBM (L1 and
    L2 regularised, depth <= 4, >= 5 runs a leaf, early stop 20 on a tenth of the fitted mixtures)
    is fitted to all runs so far, random mixtures are ranked by it, and the next round's are drawn
    at random from the best of them. Give the runs of all rounds so far; `next` has the mixtures to
    run. The paper's rounds have 64, 32 and 16 runs; the answer after the last is the predictor's
    best.

    The strengths of L1 and L2 are not in the paper's text as far as it is known here; so are how
    many candidates are ranked and from how many of the best the next are drawn (a tenth).

    Args:
        samples: Candidates.
        top: How many of the best are averaged (1: the predictor's best).
        strength: Of the Dirichlet the candidates come from.
        next_runs: Mixtures of the next round; None: the paper's schedule; 0: none.
        rounds, learning_rate, l1, l2, depth, min_leaf, early_stop: Of the trees.
    """

    name = "climb"
    paper = "Diao et al. 2025, 2504.13161"
    tractable = "regression over proxy runs, whose mixtures each round moves to where it matters"

    def __init__(
        self,
        *,
        samples: int = 100_000,
        top: int = 1,
        strength: float = 1.0,
        next_runs: int | None = None,
        rounds: int = 1000,
        learning_rate: float = 0.05,
        l1: float = 0.01,
        l2: float = 0.01,
        depth: int = 4,
        min_leaf: int = 5,
        early_stop: int | None = 20,
    ) -> None:
        super().__init__()
        self.samples = whole("samples", samples, 1, 10_000_000)
        self.top = whole("top", top, 1, self.samples)
        self.strength = number("strength", strength, 0, above=True)
        self.next_runs = None if next_runs is None else whole("next_runs", next_runs, 0)
        self.rounds = whole("rounds", rounds, 1, 1_000_000)
        self.early_stop = None if early_stop is None else whole("early_stop", early_stop, 1)
        self.settings = {
            "learning_rate": number("learning_rate", learning_rate, 0, 1, above=True),
            "lambda_l1": number("l1", l1, 0),
            "lambda_l2": number("l2", l2, 0),
            "max_depth": whole("depth", depth, 1, 64),
            "min_data_in_leaf": whole("min_leaf", min_leaf, 1),
        }

    def least_runs(self, num_domains: int) -> int:
        """Two leaves, and a mixture that stops them."""
        return 4

    def scheduled(self, num_runs: int) -> int:
        """32 after the first round, 16 after the second, none after the third."""
        if num_runs < ROUNDS[0] + ROUNDS[1]:
            return ROUNDS[1]
        return ROUNDS[2] if num_runs < sum(ROUNDS) else 0

    def candidates(self, task: Task) -> Floats:
        """Dirichlet on the prior."""
        samples = affordable(self.samples, len(task.domains))
        return dirichlet(task.prior, samples, task.seed, self.strength, self.strength)

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """Regularised trees."""
        return fit_trees(
            runs.weights,
            runs.outcome(column),
            self.settings,
            rounds=self.rounds,
            early_stop=self.early_stop,
            groups=runs.groups(),
            seed=task.seed,
        )


def tempered(prior: Floats, power: float) -> Floats:
    """prior^power, normalised."""
    return normalise(np.where(prior > 0, np.maximum(prior, 1e-300) ** power, 0.0))
