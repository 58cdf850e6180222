"""How good predictions are: errors, rank correlation, and intervals by bootstrap."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore.fit.table import Floats

Ints = npt.NDArray[np.int64]
LEVEL = 0.95  # of every interval
RESAMPLES = 1000


@dataclass(frozen=True)
class Quality:
    """How predictions of one outcome compare with what came out.

    Attributes:
        runs: How many were compared.
        mae: Mean absolute error.
        rmse: Root of the mean squared error.
        mre: Mean of |error / outcome|; NaN where an outcome is 0.
        r2: 1 - squared error / variance; NaN if all outcomes are the same.
        spearman: Rank correlation; NaN if predictions or outcomes are all the same.
        low, high: Its 95 % interval, by a bootstrap over mixtures; NaN for fewer than 3.
    """

    runs: int
    mae: float
    rmse: float
    mre: float
    r2: float
    spearman: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """The numbers, None for NaN and inf."""
        return {k: v if math.isfinite(v) else None for k, v in vars(self).items()}


def quality(
    predicted: Floats, actual: Floats, groups: Ints | None = None, seed: int = 0
) -> Quality:
    """Compare predictions with outcomes.

    Args:
        predicted: float64[R].
        actual: float64[R].
        groups: int64[R]; runs of one mixture share a number and are resampled together.
        seed: Of the bootstrap.
    """
    error = predicted - actual
    spread = float(((actual - actual.mean()) ** 2).sum())
    relative = np.abs(error / actual) if actual.all() else np.array([np.nan])
    low, high = interval(
        lambda rows: spearman(predicted[rows], actual[rows]), len(actual), groups, seed
    )
    return Quality(
        runs=len(actual),
        mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt((error**2).mean())),
        mre=float(relative.mean()),
        r2=1 - float((error**2).sum()) / spread if spread > 0 else float("nan"),
        spearman=spearman(predicted, actual),
        low=low,
        high=high,
    )


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation, ties sharing their mean rank; NaN if one side is all the same."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size > 0 else float("nan")


def ranks(values: Floats) -> Floats:
    """Ranks from 0; equal values share the mean of theirs."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    mean: Floats = (last - (counts - 1) / 2)[number.reshape(-1)]
    return mean


def interval(
    statistic: Callable[[Ints], float], num: int, groups: Ints | None = None, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of rows, resampling whole groups of rows.

    Rows of one mixture are not independent: resampled one by one, they would make the interval too
    narrow. NaN for fewer than 3 groups, or where the statistic is NaN in most resamples.
    """
    labels = np.arange(num) if groups is None else groups
    kinds = np.unique(labels)
    if len(kinds) < 3:
        return float("nan"), float("nan")
    members = [np.flatnonzero(labels == k) for k in kinds]
    single = len(kinds) == num
    rng = np.random.default_rng(seed)
    values = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, len(kinds), len(kinds))
        rows = drawn if single else np.concatenate([members[k] for k in drawn])
        values[i] = statistic(rows)
    values = values[~np.isnan(values)]
    if len(values) < RESAMPLES / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def folds(groups: Ints, num: int, seed: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """Split rows into (fitted, held out) `num` times; no group is on both sides.

    Every row is held out once. With fewer groups than `num`, each group is its own fold.
    """
    kinds = np.unique(groups)
    order = np.random.default_rng(seed).permutation(len(kinds))
    part = np.empty(len(kinds), dtype=np.int64)
    part[order] = np.arange(len(kinds)) % min(num, len(kinds))
    of_row = part[np.searchsorted(kinds, groups)]
    for k in range(min(num, len(kinds))):
        yield np.flatnonzero(of_row != k), np.flatnonzero(of_row == k)
