"""Olmix: a log-linear law a task, and a convex proposer with KL to the prior and caps."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mixcore import _checks
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.fit import register
from mixcore.fit._libraries import cvxpy
from mixcore.fit.base import Fit, RunsFitter
from mixcore.fit.exponential import ExponentialLaw, fit_exponential
from mixcore.fit.law import Law
from mixcore.fit.propose import Optimum, affordable, all_within, dirichlet, minimise, within
from mixcore.fit.regmix import predicted_objective
from mixcore.fit.runs import Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Corpus, Task, make_task
from mixcore.methods.base import choice, normalise, number, whole

MIN_WEIGHT = 1e-5  # below it the simulating proposer sets a weight to 0, as the authors' does
TOLERANCE = 1e-3  # and averages all mixtures so near to the best


@register
class Olmix(RunsFitter):
    """A log-linear law for each task, minimised under KL to the prior and a repetition cap.

    L_k(p) = exp(a_k) + exp(b_k . p), Huber loss on L;
    p* = argmin sum_k w_k L_k(p) + kl KL(p || prior), sum p = 1, 0 <= p_i <= cap_i size_i / budget.
    Convex: "exact" solves it with an interior-point solver. "simulated" searches as the authors'
    other proposer does, by rounds of Dirichlet draws around what was best, and has no KL term.

    Mixture reuse: when a domain set is edited, freeze the ratios inside groups that the edit does
    not touch and run the new swarm over the groups (`mix/<group>`). `reuse` gives those ratios; the
    answer is then about the domains inside: `{"web": {"news": 0.3, "forums": 0.7}}`.

    Args:
        kl: Weight of KL(p || prior) in the outcome's unit (0.1 in the authors' example
            configuration, 0.05 as a default of their function).
        proposer: "exact" or "simulated".
        huber_delta: In the outcome's unit (0.02 there).
        rounds: Of the simulating proposer (10 there).
        samples: Mixtures in each (100,000 there).
        reuse: Group -> domain -> ratio; None: no groups.
    """

    name = "olmix"
    paper = "Olmix 2026, 2602.12237"
    tractable = "a log-linear law per task from a swarm of small runs, then a convex program"

    def __init__(
        self,
        *,
        kl: float = 0.1,
        proposer: str = "exact",
        huber_delta: float = 0.02,
        rounds: int = 10,
        samples: int = 100_000,
        reuse: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        super().__init__()
        self.kl = number("kl", kl, 0)
        self.proposer = choice("proposer", proposer, ("exact", "simulated"))
        self.huber_delta = number("huber_delta", huber_delta, 0, above=True)
        self.rounds = whole("rounds", rounds, 1, 1000)
        self.samples = whole("samples", samples, 1, 10_000_000)
        self.reuse = None if reuse is None else checked_ratios(reuse)

    def collapse(
        self, corpus: Corpus | None, prior: Mapping[str, float] | None
    ) -> tuple[Corpus | None, Mapping[str, float] | None]:
        """Groups in place of their domains: a group ends where its first domain ends."""
        if self.reuse is None:
            return corpus, prior
        made = None
        if corpus is not None:
            sizes, epochs, total = dict(corpus.sizes), dict(corpus.max_epochs), dict(corpus.sizes)
            for group, ratios in self.reuse.items():
                lacking = [d for d in ratios if d not in sizes]
                if lacking:
                    raise ArgumentError(f"reuse has the domain {lacking[0]!r}, the sizes have not")
                inside = {d: r for d, r in ratios.items() if r > 0}
                size = min(sizes[d] / r for d, r in inside.items())
                most = min(epochs.get(d, math.inf) * sizes[d] / r for d, r in inside.items())
                total[group] = sum(total.pop(d) for d in ratios)
                for d in ratios:
                    del sizes[d]
                    epochs.pop(d, None)
                sizes[group] = size
                if math.isfinite(most):
                    epochs[group] = most / size
            made = Corpus(sizes, epochs, corpus.budget)
            if prior is None and all(map(math.isfinite, total.values())):
                return made, total
        if prior is not None:
            base = dict(prior)
            for group, ratios in self.reuse.items():
                base[group] = sum(base.pop(d, 0.0) for d in ratios)
            prior = base
        return made, prior

    def expand(self, found: Fit, corpus: Corpus | None) -> Fit:
        """Each group's weight times the frozen ratios inside it."""
        if self.reuse is None:
            return found
        lacking = [g for g in self.reuse if g not in found.task.domains]
        if lacking:
            raise ArgumentError(f"reuse has the group {lacking[0]!r}, the runs have not")
        names, weights, prior = [], [], []
        for d, w, p in zip(found.task.domains, found.weights, found.task.prior, strict=True):
            for member, ratio in self.reuse.get(d, {d: 1.0}).items():
                names.append(member)
                weights.append(w * ratio)
                prior.append(p * ratio)
        task = make_task(
            names,
            prior=dict(zip(names, prior, strict=True)),
            corpus=corpus,
            budget=found.task.budget,
            seed=found.task.seed,
        )
        note = "ratios inside groups are frozen; laws and predictions are about the groups"
        task = replace(task, target=found.task.target)
        return replace(
            found, task=task, weights=normalise(np.array(weights)), notes=(*found.notes, note)
        )

    def law(self, runs: Runs, column: str, task: Task) -> ExponentialLaw:
        """The log-linear law."""
        return fit_exponential(
            runs.weights, runs.outcome(column), column, huber_delta=self.huber_delta
        )

    def propose(self, laws: dict[str, Law], task: Task, runs: Runs) -> Optimum:
        """The convex optimum, or what the simulation ends at."""
        if self.proposer == "simulated":
            return simulated(laws, task, self.rounds, self.samples)
        return exact(laws, task, self.kl)


def exact(laws: Mapping[str, Law], task: Task, kl: float) -> Optimum:
    """Minimum of the objective + kl KL(p || prior), by an interior-point solver (Clarabel).

    Raises:
        ArgumentError: A law is not of the exponential kind, or the solver gives up.
    """
    cp = cvxpy()
    p = cp.Variable(len(task.domains), nonneg=True)
    terms, most = [], task.most
    for column, c in task.target.items():
        law = laws[column]
        assert isinstance(law, ExponentialLaw), "olmix fits no other"
        terms.append(c * law.sign * cp.sum(cp.exp(law.slopes @ p)))
    free = task.prior > 0
    limit = np.where(free, most, 0.0) if kl else most
    limits = [cp.sum(p) == 1, p <= limit]
    if limit.sum() < 1:
        raise ArgumentError("the caps of the domains with a prior leave the budget unspent")
    if kl:
        terms.append(kl * cp.sum(cp.rel_entr(p[free], task.prior[free])))
    problem = cp.Problem(cp.Minimize(sum(terms)), limits)
    with warnings.catch_warnings():  # how good the answer is, its gap says
        warnings.simplefilter("ignore", UserWarning)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    if p.value is None or not np.isfinite(p.value).all():
        raise ArgumentError(f"the proposer found no mixture: the solver says {problem.status}")
    kept = np.flatnonzero(limit)

    def objective(q: Floats) -> tuple[float, Floats]:
        full = np.zeros(len(most))
        full[kept] = q
        value, gradient = 0.0, np.zeros(len(most))
        for column, c in task.target.items():
            v, g = laws[column].value_and_gradient(full)
            value, gradient = value + c * v, gradient + c * g
        if not kl:
            return value, gradient[kept]
        ratio = np.log(np.maximum(q, 1e-300) / task.prior[kept])
        return value + kl * float((q * ratio).sum()), gradient[kept] + kl * (ratio + 1)

    # The interior point is near; a few steps from it bring the last digits, and its gap.
    start = normalise(np.clip(p.value[kept], 1e-12, limit[kept]))
    last = minimise(objective, limit[kept], [start], tolerance=1e-12)
    found = np.zeros(len(most))
    found[kept] = last.weights
    return Optimum(found, last.value, last.gap)


def simulated(laws: dict[str, Law], task: Task, rounds: int, samples: int) -> Optimum:
    """What rounds of Dirichlet draws end at.

    In each, strengths are log-uniform in [1, 100] x 2 (round + 1); the centre then moves half way
    to the mean of all mixtures within 1e-3 of the best.
    """
    centre, best = task.prior, task.prior
    samples = affordable(samples, len(task.domains))
    for step in range(rounds):
        factor = 2.0 * (step + 1)
        drawn = dirichlet(centre, samples, task.seed + step, factor, 100.0 * factor)
        mixtures = all_within(drawn, task.most)
        values = predicted_objective(laws, task, mixtures)
        best = mixtures[values - values.min() < TOLERANCE].mean(axis=0)
        best = within(normalise(np.where(best < MIN_WEIGHT, 0.0, best)), task.most)
        centre = (best + centre) / 2
    value = float(predicted_objective(laws, task, best[None])[0])
    return Optimum(best, value, float("nan"))


def checked_ratios(reuse: object) -> dict[str, dict[str, float]]:
    """Ratios inside each group, normalised; no domain in two groups."""
    if not isinstance(reuse, Mapping) or not all(isinstance(r, Mapping) for r in reuse.values()):
        raise ArgumentTypeError(f"reuse must map groups to their domains' ratios, got {reuse!r}")
    made, owner = {}, dict[str, str]()
    for group, ratios in reuse.items():
        values = _checks.weights(f"reuse[{group!r}]", ratios, [str(d) for d in ratios])
        made[str(group)] = dict(zip(map(str, ratios), normalise(values).tolist(), strict=True))
        for d in made[str(group)]:
            if d in owner:
                raise ArgumentError(f"reuse has the domain {d!r} in {owner[d]!r} and in {group!r}")
            owner[d] = str(group)
    return made
