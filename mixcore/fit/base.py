"""Fitter: what every offline way of finding a mixture has in common, and Fit, its answer.

How to write one over runs (`mixcore/fit/<name>.py`, one paper): subclass `RunsFitter`, `@register`,
a row in `mixcore/fit/__init__.py`, `law` (what one outcome depends on) and, where the paper has its
own search, `propose`. Errors, rank correlations, caps and epochs are common and need nothing.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit.law import Law, SeenLaw, TooFewRunsError
from mixcore.fit.propose import Optimum, minimise
from mixcore.fit.runs import Runs, read_runs
from mixcore.fit.stats import Quality, folds, quality
from mixcore.fit.table import Floats, some
from mixcore.fit.task import Corpus, Task, check_target

FOLDS = 5
RUNS_A_DOMAIN = 3  # error curves of swarms collapse in runs / (domains + 1); Olmix: from 3 on
CORNERS = 64  # at most so many are searched from
REACH = 1.05  # weights above what any run had, by more than this factor, are called extrapolation


@dataclass(frozen=True)
class Fit:
    """A mixture, and how far to trust it.

    Attributes:
        method: Name of the fitter.
        task: What was asked for.
        weights: float64[D], sum 1, within the caps.
        options: The fitter's, as it was called.
        quality: Outcome -> how well held-out runs were predicted; `objective` for their sum.
        elsewhere: File -> outcome -> the same on runs given to judge by.
        predicted: Outcome -> prediction at the weights.
        predicted_prior: The same at the prior.
        laws: Outcome -> law.
        parameters: What was fitted, as plain values.
        gap: For exact proposers, how far from the law's optimum the objective can be; else None.
        notes: What a reader should know before trusting it.
        extra: Tables that a fitter adds (the next round's mixtures, the weights of every step).
    """

    method: str
    task: Task
    weights: Floats
    options: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Quality] = field(default_factory=dict)
    elsewhere: dict[str, dict[str, Quality]] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    predicted_prior: dict[str, float] = field(default_factory=dict)
    laws: dict[str, Law] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    gap: float | None = None
    notes: tuple[str, ...] = ()
    extra: dict[str, Floats] = field(default_factory=dict)

    @property
    def epochs(self) -> Floats | None:
        """float64[D], or None if sizes or budget are not known."""
        return self.task.epochs(self.weights)

    def to_json(self) -> dict[str, Any]:
        """All but the laws, in JSON's types."""
        epochs = self.epochs
        names = self.task.domains
        return {
            "method": self.method,
            "options": {k: _plain(v) for k, v in self.options.items()},
            "target": self.task.target,
            "budget": self.task.budget,
            "domains": [
                {
                    "name": d,
                    "weight": float(self.weights[i]),
                    "prior": float(self.task.prior[i]),
                    "epochs": None if epochs is None else float(epochs[i]),
                }
                for i, d in enumerate(names)
            ],
            "held_out": {c: q.to_json() for c, q in self.quality.items()},
            "elsewhere": {
                f: {c: q.to_json() for c, q in table.items()} for f, table in self.elsewhere.items()
            },
            "predicted": _plain(self.predicted),
            "predicted_prior": _plain(self.predicted_prior),
            "gap": self.gap,
            "parameters": _plain(self.parameters),
            "notes": list(self.notes),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Fitter:
    """A published way to find a mixture offline.

    Attributes:
        name: Short name.
        paper: Authors, year, arXiv id.
        reads: What it is fitted to: "runs" (`runs.csv`), or another file, see its docstring.
        tractable: How it makes the bilevel problem tractable, in one line.
        notes: What the last fit has to say, beside its numbers.
        extra: Tables that it adds.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    reads: ClassVar[str] = "runs"
    tractable: ClassVar[str]

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.extra: dict[str, Floats] = {}

    def read(self, path: str | os.PathLike[str]) -> Any:
        """Read the file that this fit is made from; what comes back has `domains`."""
        return read_runs(path)

    def collapse(
        self, corpus: Corpus | None, prior: Mapping[str, float] | None
    ) -> tuple[Corpus | None, Mapping[str, float] | None]:
        """Sizes and prior of what the runs are over, from those of the domains."""
        return corpus, prior

    def expand(self, found: "Fit", corpus: Corpus | None) -> "Fit":
        """The answer for the domains, from that for what the runs are over."""
        return found

    def fit(self, data: Any, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """Find the mixture.

        Args:
            data: What `read` returned.
            task: What is asked for.
            judges: Other runs to judge the predictions by; they are never fitted.
        """
        raise NotImplementedError


class RunsFitter(Fitter):
    """A fitter of laws to finished runs: rows are runs, columns mixture and outcomes.

    Attributes:
        axes: What the law depends on beside the mixture: "tokens", "params".
    """

    axes: tuple[str, ...] = ()

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """Fit one outcome."""
        raise NotImplementedError

    def least_runs(self, num_domains: int) -> int:
        """Fewest different mixtures that the law can be fitted to at all."""
        return num_domains + 2

    def propose(self, laws: dict[str, Law], task: Task, runs: Runs) -> Optimum:
        """The mixture that the laws call best: by default the minimum of the sum of laws."""
        return minimise_laws(laws, task, runs)

    def fit(self, data: Runs, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """Fit every target, judge it on held-out runs, propose a mixture.

        Domains that no run has drawn are left out of it: nothing is known of them.
        """
        self.notes, self.extra = list(task.notes), {}
        check_target(task, data)
        for runs in judges.values():
            if runs.domains != data.domains:
                raise ArgumentError(
                    f"{runs.file} must have the domains of the fitted runs, in their order, got "
                    f"{some(runs.domains)}"
                )
        seen = np.flatnonzero(data.weights.max(axis=0))
        if len(seen) == len(data.domains):
            return self.fit_seen(data, task, judges)
        unseen = [d for i, d in enumerate(data.domains) if i not in set(seen.tolist())]
        self.notes.append(
            f"no run drew from {some(unseen)}: nothing is known, weight 0 (what was fitted "
            "names the other domains only)"
        )
        within = {f: runs.on(seen) for f, runs in judges.items()}
        found = self.fit_seen(data.on(seen), task.on(seen), within)
        weights = np.zeros(len(data.domains))
        weights[seen] = found.weights
        return replace(
            found,
            task=task,
            weights=weights,
            laws={c: SeenLaw(law, seen) for c, law in found.laws.items()},
            extra={},
        )

    def fit_seen(self, data: Runs, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """The same where every domain was drawn."""
        self.check_runs(data, task)
        laws = {c: self.law(data, c, task) for c in task.target}
        held_out = self.judge(data, task)
        elsewhere = {f: predict_all(laws, runs, task) for f, runs in judges.items()}
        found = self.propose(laws, task, data)
        self.warn_about(found.weights, laws, data, task)
        return Fit(
            method=self.name,
            task=task,
            weights=found.weights,
            quality=held_out,
            elsewhere=elsewhere,
            predicted=_at(laws, found.weights, task),
            predicted_prior=_at(laws, task.prior, task),
            laws=laws,
            parameters={c: law.parameters() for c, law in laws.items()},
            gap=None if math.isnan(found.gap) else found.gap,
            notes=tuple(self.notes),
            extra=self.extra,
        )

    def check_runs(self, runs: Runs, task: Task) -> None:
        """Refuse too few runs and mixed scales; note few runs and mixtures that lie in a plane."""
        for axis in ("tokens", "params"):
            values = getattr(runs, axis)
            if values is not None and axis not in self.axes and len(np.unique(values)) > 1:
                raise ArgumentError(
                    f"{runs.file} has runs of {len(np.unique(values))} different {axis} "
                    f"({values.min():g} to {values.max():g}), which {self.name} has no place for: "
                    f"keep those of one (--only {axis}={values.max():g})"
                )
        seen = runs.weights.any(axis=0)
        domains, mixtures = int(seen.sum()), len(np.unique(runs.weights, axis=0))
        least = self.least_runs(domains)
        if mixtures < least:
            raise ArgumentError(
                f"{runs.file} has {mixtures} different mixtures of {domains} domains; {self.name} "
                f"needs at least {least}"
            )
        if mixtures < RUNS_A_DOMAIN * (domains + 1):
            self.notes.append(
                f"{mixtures} mixtures are few for {domains} domains: from "
                f"{RUNS_A_DOMAIN * (domains + 1)} on, 3 (domains + 1), fits were found to settle"
            )
        centred = runs.weights - runs.weights.mean(axis=0)
        rank = int(
            np.linalg.matrix_rank(centred, tol=1e-6 * max(1.0, float(np.abs(centred).max())))
        )
        if rank < domains - 1:
            self.notes.append(
                f"the mixtures vary in {rank} of {domains - 1} directions only (domains that keep "
                "their weight, or a fixed ratio, in all runs): what the fit says along the others "
                "is arbitrary"
            )

    def judge(self, runs: Runs, task: Task) -> dict[str, Quality]:
        """Fit without a fifth of the mixtures, predict those; each mixture is held out once."""
        mixtures = len(np.unique(runs.weights, axis=0))
        said = list(self.notes)
        for num in sorted({min(FOLDS, mixtures), mixtures}):  # if need be, one mixture at a time
            try:
                return self._judge(runs, task, num)
            except TooFewRunsError:
                continue
            finally:
                self.notes = list(said)  # what the folds said is about the folds
        self.notes.append("too few mixtures to hold any out: the fit is not judged")
        return {}

    def _judge(self, runs: Runs, task: Task, num: int) -> dict[str, Quality]:
        predicted = {c: np.full(len(runs), np.nan) for c in task.target}
        least = self.least_runs(len(runs.domains))
        for fitted, out in folds(runs.groups(), num, task.seed):
            part, rest = runs.some(fitted), runs.some(out)
            if len(np.unique(part.weights, axis=0)) < least:
                raise TooFewRunsError(f"{self.name} needs {least} mixtures")
            for column in task.target:
                law = self.law(part, column, task)
                predicted[column][out] = law.predict(rest.weights, rest.tokens, rest.params)
        return _compare(predicted, runs, task)

    def warn_about(self, weights: Floats, laws: dict[str, Law], runs: Runs, task: Task) -> None:
        """Note an answer outside what was tried."""
        most = runs.weights.max(axis=0)
        far = [
            f"{d} {w:.3g} (at most {m:.3g} in the runs)"
            for d, w, m in zip(task.domains, weights, most, strict=True)
            if w > max(m * REACH, m + 0.01)
        ]
        if far:
            self.notes.append(f"weights above those of any run are extrapolated: {some(far)}")


def minimise_laws(
    laws: Mapping[str, Law], task: Task, runs: Runs | None = None, tolerance: float = 1e-10
) -> Optimum:
    """The allowed mixture with the least sum of smooth laws, from the prior, uniform and best run.

    Laws that are not convex are also started from every domain's corner.
    """
    terms = [(c, laws[column]) for column, c in task.target.items()]

    def objective(p: Floats) -> tuple[float, Floats]:
        value, gradient = 0.0, np.zeros(len(p))
        for c, law in terms:
            v, g = law.value_and_gradient(p)
            value += c * v
            gradient = gradient + c * g
        return value, gradient

    num = len(task.domains)
    starts = [task.prior, np.full(num, 1 / num)]
    if runs is not None:
        best = int(task.objective({c: runs.outcome(c) for c in task.target}).argmin())
        starts.append(runs.weights[best])
    if not all(law.curvature in ("linear", "convex" if c > 0 else "concave") for c, law in terms):
        for i in range(min(num, CORNERS)):
            starts.append(np.full(num, 0.1 / num))
            starts[-1][i] += 0.9
        return minimise(objective, task.most, starts, tolerance=tolerance, steps=300)
    return minimise(objective, task.most, starts[:1], tolerance=tolerance)


def predict_all(laws: Mapping[str, Law], runs: Runs, task: Task) -> dict[str, Quality]:
    """How laws do on runs that they have not seen."""
    predicted = {c: law.predict(runs.weights, runs.tokens, runs.params) for c, law in laws.items()}
    return _compare(predicted, runs, task)


def _compare(predicted: dict[str, Floats], runs: Runs, task: Task) -> dict[str, Quality]:
    groups = runs.groups()
    actual = {c: runs.outcome(c) for c in predicted}
    table = {c: quality(p, actual[c], groups, task.seed) for c, p in predicted.items()}
    if len(table) > 1:
        total = task.objective(predicted), task.objective(actual)
        table["objective"] = quality(*total, groups, task.seed)
    return table


def _at(laws: Mapping[str, Law], weights: Floats, task: Task) -> dict[str, float]:
    values = {c: float(law.predict(weights[None])[0]) for c, law in laws.items()}
    return {c: v for c, v in values.items() if math.isfinite(v)}
