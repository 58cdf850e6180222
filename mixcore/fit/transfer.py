"""How far what is found at one scale, objective or validation set holds at another.

A series is one outcome of one set of runs. Two series are compared over the mixtures that both
have: rank correlation with an interval, the share of pairs of mixtures that both put in the same
order, and the regret of taking from the first what is to be good in the second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit import fitter_class
from mixcore.fit.base import RunsFitter
from mixcore.fit.law import TooFewRunsError
from mixcore.fit.runs import METRIC, Runs
from mixcore.fit.stats import Ints, interval, spearman
from mixcore.fit.table import Floats
from mixcore.fit.task import make_task

REPEATS = 400
NEAR = 0.001  # L1 distance a domain up to which two mixtures are one: tables are rounded
GOOD = 0.05  # regret, in spreads of the outcome, that is called small


@dataclass(frozen=True)
class Series:
    """One outcome of one set of runs; lower is better (metrics have their sign turned).

    Attributes:
        name: `runs`, and the outcome.
        runs: The set.
        column: The outcome.
    """

    name: str
    runs: Runs
    column: str

    @property
    def values(self) -> Floats:
        """float64[R]."""
        values = self.runs.outcome(self.column)
        return -values if self.column.startswith(METRIC) else values


@dataclass(frozen=True)
class Transfer:
    """From one series (the proxy) to another (the target).

    Attributes:
        proxy, target: Names.
        mixtures: How many both have.
        spearman, low, high: Rank correlation and its 95 % interval.
        agreement: Share of pairs of mixtures that both put in the same order.
        regret: Target's outcome of the proxy's best mixture less that of the target's best, in
            its unit; with its 95 % interval over which mixtures were tried.
        regret_in_spreads: The same by the standard deviation of the target's outcome.
        best_of: k -> regret if the proxy's k best were tried at the target.
        curve: n -> mean regret in spreads, against the best of all, if the proxy chose among n
            random mixtures.
        enough: Least n of the curve at which the mean regret is at most GOOD more than with all;
            None where the rank correlation is not clearly above 0: then no number is.
    """

    proxy: str
    target: str
    mixtures: int
    spearman: float
    low: float
    high: float
    agreement: float
    regret: float
    regret_low: float
    regret_high: float
    regret_in_spreads: float
    best_of: dict[int, float]
    curve: dict[int, float]
    enough: int | None

    def to_json(self) -> dict[str, Any]:
        """In JSON's types."""
        return {k: None if v != v else v for k, v in vars(self).items()}


def transfer(proxy: Series, target: Series, *, match: str = "auto", seed: int = 0) -> Transfer:
    """Compare two series.

    Example:
        >>> small, large = read_runs("1m.csv"), read_runs("60m.csv")
        >>> transfer(Series("1M", small, "loss/web"), Series("60M", large, "loss/web")).spearman

    Args:
        proxy: The one chosen by.
        target: The one that matters.
        match: "mixture", "run" (ids), or "auto": mixtures if both have the same domains.
        seed: Of bootstrap and subsets.

    Raises:
        ArgumentError: They share fewer than 3 mixtures.
    """
    x, y = matched(proxy, target, match)
    low, high = interval(lambda rows: spearman(x[rows], y[rows]), len(x), None, seed)
    regret_low, regret_high = interval(lambda rows: regret(x[rows], y[rows]), len(x), None, seed)
    spread = float(y.std())
    ordered = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    pairs = ordered[np.triu_indices(len(x), 1)]
    curve = regret_curve(x, y, seed) if spread > 0 else {}
    final = curve[len(x)] if curve else float("nan")
    enough = [n for n, value in curve.items() if value <= final + GOOD and low > 0]
    tried = [k for k in (1, 2, 4, 8, 16) if k <= len(x)]
    return Transfer(
        proxy=proxy.name,
        target=target.name,
        mixtures=len(x),
        spearman=spearman(x, y),
        low=low,
        high=high,
        agreement=float((pairs > 0).mean()),
        regret=regret(x, y),
        regret_low=regret_low,
        regret_high=regret_high,
        regret_in_spreads=regret(x, y) / spread if spread > 0 else float("nan"),
        best_of={k: regret(x, y, k) for k in tried},
        curve=curve,
        enough=min(enough) if enough else None,
    )


def matched(proxy: Series, target: Series, match: str) -> tuple[Floats, Floats]:
    """The two outcomes of the mixtures that both have, means over seeds; float64[M] each."""
    a, b = proxy.runs, target.runs
    if match == "auto":
        match = "mixture" if a.domains == b.domains else "run"
    if a is b:
        groups = [np.flatnonzero(a.groups() == g) for g in np.unique(a.groups())]
        pairs = [(rows, rows) for rows in groups]
    elif match == "run":
        places = {name: i for i, name in enumerate(b.names)}
        pairs = [
            (np.array([i]), np.array([places[name]]))
            for i, name in enumerate(a.names)
            if name in places
        ]
    else:
        if a.domains != b.domains:
            raise ArgumentError(
                f"{a.file} and {b.file} have other domains: their runs can be matched by id only"
            )
        pairs = _by_mixture(a, b)
    if len(pairs) < 3:
        raise ArgumentError(
            f"{proxy.name} and {target.name} share {len(pairs)} "
            f"{'mixtures' if match == 'mixture' else 'run ids'}; at least 3 are needed"
        )
    x = np.array([proxy.values[i].mean() for i, _ in pairs])
    y = np.array([target.values[j].mean() for _, j in pairs])
    return x, y


def _by_mixture(a: Runs, b: Runs) -> list[tuple[Ints, Ints]]:
    """Rows of one mixture in both; each mixture of b goes to the nearest of a, and to one only."""
    groups_a, groups_b = a.groups(), b.groups()
    first_a = np.array([np.flatnonzero(groups_a == g)[0] for g in np.unique(groups_a)])
    first_b = np.array([np.flatnonzero(groups_b == g)[0] for g in np.unique(groups_b)])
    pairs, taken = [], set()
    for i in first_a:
        far = np.abs(b.weights[first_b] - a.weights[i]).sum(axis=1)
        j = int(far.argmin())
        if far[j] <= NEAR * len(a.domains) and j not in taken:
            taken.add(j)
            rows_b = np.flatnonzero(groups_b == groups_b[first_b[j]])
            pairs.append((np.flatnonzero(groups_a == groups_a[i]), rows_b))
    return pairs


def regret(x: Floats, y: Floats, tried: int = 1) -> float:
    """Y of the best among the `tried` least x, less the least y."""
    chosen = np.argsort(x, kind="stable")[:tried]
    return float(y[chosen].min() - y.min())


def regret_curve(x: Floats, y: Floats, seed: int) -> dict[int, float]:
    """N -> mean of (y of the least x among n random mixtures, less the least y of all) / spread."""
    rng = np.random.default_rng(seed)
    spread, best = float(y.std()), float(y.min())
    sizes = [n for n in (4, 8, 16, 32, 64, 128, 256, 512, 1024) if n < len(x)]
    curve = {}
    for n in sizes:
        picks = [rng.permutation(len(x))[:n] for _ in range(REPEATS)]
        chosen = [p[int(x[p].argmin())] for p in picks]
        curve[n] = float((y[chosen].mean() - best) / spread)
    return curve | {len(x): regret(x, y) / spread}


def series_of(
    files: Mapping[str, Runs], outcomes: Sequence[str] = (), by: str | None = None
) -> list[Series]:
    """Every outcome of every set of runs; `by` splits the sets by params or tokens.

    Args:
        files: Name -> runs.
        outcomes: Columns; none: all that every set has.
        by: "params", "tokens" or None.
    """
    sets: dict[str, Runs] = {}
    for name, runs in files.items():
        values = None if by is None else getattr(runs, by)
        if by is not None and values is None:
            raise ArgumentError(f"{runs.file} has no column {by}")
        if values is None:
            sets[name] = runs
        else:
            for v in np.unique(values):
                sets[f"{name} {by}={v:g}"] = runs.some(values == v)
    wanted = list(outcomes)
    if not wanted:
        all_columns = [list(runs.outcomes) for runs in sets.values()]
        wanted = [c for c in all_columns[0] if all(c in columns for columns in all_columns)]
        if not wanted:
            raise ArgumentError("the files share no outcome; name those to compare")
    return [
        Series(f"{name} {column}", runs, column)
        for name, runs in sets.items()
        for column in wanted
        if column in runs.outcomes or runs.outcome(column) is not None
    ]


def pairs_of(series: Sequence[Series]) -> list[tuple[Series, Series]]:
    """Pairs worth comparing: one outcome in two sets (earlier to later), two outcomes in one."""
    made = []
    for i, a in enumerate(series):
        for b in series[i + 1 :]:
            if a.runs is not b.runs and a.column == b.column:
                made.append((a, b))
            elif a.runs is b.runs:
                made += [(a, b), (b, a)]
    return made


def learning_curve(
    name: str,
    runs: Runs,
    column: str,
    judge: Runs | None = None,
    *,
    repeats: int = 5,
    seed: int = 0,
    **options: Any,
) -> dict[int, tuple[float, float, float]]:
    """How well a fit to n random mixtures ranks the others (or the runs of `judge`).

    Returns:
        n -> (mean, least, largest) rank correlation over the repeats. The n double, from the fewest
        that the fit can do with to four fifths of the mixtures (all, with a judge).
    """
    cls = fitter_class(name)
    if not issubclass(cls, RunsFitter):
        raise ArgumentError(f"{name} is not fitted to runs")
    made = cls(**options)
    task = make_task(runs.domains, column, seed=seed)
    groups = runs.groups()
    kinds = np.unique(groups)
    most = len(kinds) if judge is not None else int(0.8 * len(kinds))
    least = made.least_runs(len(runs.domains)) + 1
    if most < least:
        raise ArgumentError(f"{runs.file} has {len(kinds)} mixtures; {name} needs {least} and more")
    sizes = [least * 2**i for i in range(20) if least * 2**i < most] + [most]
    curve = {}
    rng = np.random.default_rng(seed)
    for n in sizes:
        found = []
        for _ in range(repeats if n < len(kinds) else 1):
            chosen = np.isin(groups, rng.permutation(kinds)[:n])
            part = runs.some(chosen)
            test = judge if judge is not None else runs.some(~chosen)
            try:
                law = made.law(part, column, task)
            except TooFewRunsError:
                continue
            found.append(
                spearman(law.predict(test.weights, test.tokens, test.params), test.outcome(column))
            )
        good = [f for f in found if f == f]
        if good:
            curve[n] = (float(np.mean(good)), min(good), max(good))
    return curve
