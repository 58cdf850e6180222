"""From wanted losses to a mixture, with laws that say which losses a mixture gives.

First the squared excess over the goals, sum_i max(f_i(alpha) - goal_i, 0)^2, is made as small as it
gets. If it can be 0, the goals can be reached, and of all mixtures that do the one nearest to the
prior is given (least KL(alpha | prior)); if not, the one that comes nearest to the goals. Both are
local searches (scipy's SLSQP) from many starts; laws that are not convex may hide a better answer.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import integer
from mixcore.errors import ArgumentError, DataError, MixcoreError
from mixcore.methods.base import number

Floats = npt.NDArray[np.float64]
Predict = Callable[[Floats], Floats]  # [R, D] mixtures -> [R] losses


@dataclass(frozen=True, eq=False)
class Goal:
    """What `reach` found.

    Attributes:
        weights: float64[D], the mixture.
        reached: Whether every goal is met, within `tolerance`.
        losses: Name -> loss that the law predicts there.
        excess: Name -> how much is missing to the goal, 0 where it is met.
        kl: KL(weights | prior), in nats.
    """

    weights: Floats
    reached: bool
    losses: dict[str, float]
    excess: dict[str, float]
    kl: float


def reach(
    laws: Mapping[str, Any],
    goals: Mapping[str, float],
    prior: Sequence[float] | Floats,
    *,
    starts: int = 16,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Goal:
    """The mixture that reaches the goals, or the nearest to them that there is.

    Example:
        >>> law = lambda w: 2 + np.exp(-3 * w[:, 0])
        >>> reach({"web": law}, {"web": 2.2}, [0.5, 0.5]).reached
        True

    Args:
        laws: Validation set -> a function of mixtures float64[R, D] that gives float64[R], or an
            object with such a `predict`, as the laws of `mixcore.fit`.
        goals: Validation set -> loss to be reached, in the law's unit.
        prior: Float64[D], positive: where to stay near. A mixture's domains are those of the laws.
        starts: Local searches.
        tolerance: An excess below it counts as none.
        seed: Of the starts.

    Raises:
        ArgumentError: A goal without a law, or a prior that is none.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as e:
        raise MixcoreError(f"reach needs scipy ({e}): pip install 'mixcore[methods]'") from None
    wanted = {name: number(f"goal of {name!r}", value) for name, value in goals.items()}
    if not wanted or wanted.keys() - laws.keys():
        raise ArgumentError(f"goals must be among the laws {sorted(laws)}, got {sorted(wanted)}")
    base = np.asarray(prior, np.float64)
    if base.ndim != 1 or len(base) < 2 or not np.isfinite(base).all() or (base <= 0).any():
        raise ArgumentError(f"prior must be positive numbers, two or more, got {base.tolist()}")
    base = base / base.sum()
    integer("starts", starts, 1, 10_000)
    functions = [getattr(laws[n], "predict", laws[n]) for n in wanted]
    targets = np.array(list(wanted.values()))

    def losses(w: Floats) -> Floats:
        return np.array([float(f(w[None, :])[0]) for f in functions])

    def excess(w: Floats) -> float:
        over: Floats = np.maximum(losses(w) - targets, 0)
        return float(over @ over)

    def divergence(w: Floats) -> float:
        inside = np.maximum(w, 1e-300)
        return float((w * np.log(inside / base)).sum())

    on_simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    box = [(0.0, 1.0)] * len(base)
    options = {"maxiter": 500, "ftol": 1e-14}

    def search(objective: Callable[[Floats], float], start: Floats, *more: Any) -> Floats:
        found = minimize(
            objective, start, method="SLSQP", bounds=box, constraints=[on_simplex, *more],
            options=options,
        )  # fmt: skip
        inside = np.clip(found.x, 0, 1)
        w: Floats = inside / inside.sum()
        return w

    random = np.random.default_rng(seed)
    begin = [base, *random.dirichlet(np.ones(len(base)), starts - 1)]
    nearest = [search(excess, start) for start in begin]
    best = min(nearest, key=excess)
    if (losses(best) - targets).max() <= tolerance:
        meets = {"type": "ineq", "fun": lambda w: targets - losses(w)}
        inside = [w for w in (base, *nearest) if (losses(w) - targets).max() <= tolerance]
        closer = [search(divergence, w, meets) for w in inside]
        inside += [w for w in closer if (losses(w) - targets).max() <= tolerance]
        best = min(inside, key=divergence)
    predicted = losses(best)
    over = np.maximum(predicted - targets, 0)
    return Goal(
        best,
        bool((over <= tolerance).all()),
        dict(zip(wanted, predicted.tolist(), strict=True)),
        dict(zip(wanted, over.tolist(), strict=True)),
        divergence(best),
    )


def read_laws(path: str | os.PathLike[str]) -> tuple[list[str], dict[str, Predict]]:
    """Exponential mixing laws from JSON: L(w) = c + k exp(sum_j t_j w_j) (arXiv 2403.16952).

    The file: `{"domains": ["web", "code"], "laws": {"web": {"c": 2.0, "k": 1.5, "t": [-2, 0.1]}}}`.

    Returns:
        The domains, and name -> function of mixtures.

    Raises:
        DataError: The file is something else.
    """
    try:
        facts = json.loads(Path(path).read_text())
        domains = [str(d) for d in facts["domains"]]
        laws = {
            n: _exponential(v["c"], v["k"], v["t"], len(domains)) for n, v in facts["laws"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: no laws of the form c, k, t: {e!r}") from None
    if len(domains) < 2 or not laws:
        raise DataError(f"{path}: at least two domains and a law are needed")
    return domains, laws


def _exponential(c: float, k: float, t: Sequence[float], num: int) -> Predict:
    slopes = np.array(t, np.float64)
    if slopes.shape != (num,) or not np.isfinite([c, k, *slopes]).all():
        raise ValueError(f"t must have {num} finite entries, got {t}")
    return lambda w: c + k * np.exp(w @ slopes)
