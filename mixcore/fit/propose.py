"""From a predictor to a mixture: exact minimisers with a certificate, and simulated mixtures.

Every mixture obeys 0 <= p <= most and sums to 1; `most` are the repetition caps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit._libraries import scipy
from mixcore.fit.table import Floats
from mixcore.guards import fit as nearest
from mixcore.methods.base import normalise

Smooth = Callable[[Floats], tuple[float, Floats]]  # p -> value, gradient
SLSQP_MOST = 300  # its steps cost D^3


@dataclass(frozen=True)
class Optimum:
    """A mixture and how far from the best it can be.

    Attributes:
        weights: float64[D].
        value: Objective there.
        gap: Frank-Wolfe gap: if the objective is convex, no allowed mixture is better by more.
    """

    weights: Floats
    value: float
    gap: float


def within(weights: Floats, most: Floats) -> Floats:
    """The allowed mixture nearest to weights, in KL."""
    return nearest(weights, np.zeros(len(weights)), most)


def all_within(mixtures: Floats, most: Floats) -> Floats:
    """Rows made to fit: p_i = min(k w_i, most_i), the rest in proportion; float64[N, D]."""
    full = np.zeros(mixtures.shape, dtype=bool)
    p = mixtures
    for _ in range(mixtures.shape[1]):
        over = (p > most) & ~full
        if not over.any():
            break
        full |= over
        free = 1 - np.where(full, most, 0.0).sum(axis=1)
        rest = np.where(full, 0.0, mixtures).sum(axis=1)
        # A row whose free domains all have weight 0 fills what is left in proportion to the room.
        scale = np.divide(free, rest, out=np.zeros_like(free), where=rest > 1e-290)
        p = np.where(full, most, mixtures * scale[:, None])
        stuck = (rest <= 1e-290) & (free > 0)
        if stuck.any():
            room = np.where(full[stuck], 0.0, most)
            p[stuck] += room * (free[stuck] / room.sum(axis=1))[:, None]
    return p


def gap(p: Floats, gradient: Floats, most: Floats) -> float:
    """g.p - min over allowed s of g.s: 0 at a KKT point, at least f(p) - min f for convex f."""
    order = np.argsort(gradient, kind="stable")
    filled = np.minimum(np.cumsum(most[order]), 1.0)
    best = float((gradient[order] * np.diff(filled, prepend=0.0)).sum())
    return max(float((gradient * p).sum()) - best, 0.0)


def minimise(
    objective: Smooth,
    most: Floats,
    starts: list[Floats],
    *,
    tolerance: float = 1e-9,
    steps: int = 2000,
) -> Optimum:
    """The allowed mixture with the least value of a smooth objective, from several starts.

    Sequential quadratic programming (scipy's SLSQP), then entropic mirror descent with a line
    search from where that ends, until the Frank-Wolfe gap is below the tolerance. For more than 300
    domains mirror descent alone: O(D log D) a step.
    """
    best: Optimum | None = None
    for start in starts:
        p = within(start, most)
        if len(p) <= SLSQP_MOST:
            p = _slsqp(objective, most, p)
        found = _mirror(objective, most, p, tolerance, steps)
        if best is None or found.value < best.value:
            best = found
    assert best is not None, "there is at least one start"
    return best


def _slsqp(objective: Smooth, most: Floats, p: Floats) -> Floats:
    found = scipy("optimize").minimize(
        objective,
        p,
        jac=True,
        method="SLSQP",
        bounds=list(zip(np.zeros(len(p)), most, strict=True)),
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    if not np.isfinite(found.x).all():
        return p
    reached = np.clip(found.x, 0.0, most)
    if not reached.any() or abs(reached.sum() - 1) > 1e-3:
        return p
    reached = within(normalise(reached), most)
    return reached if objective(reached)[0] <= objective(p)[0] else p


def _mirror(objective: Smooth, most: Floats, p: Floats, tolerance: float, steps: int) -> Optimum:
    """P <- argmin over allowed q of eta g.q + KL(q || p), eta doubled or halved by its success."""
    value, gradient = objective(p)
    eta = 1.0 / max(float(np.abs(gradient - gradient.mean()).max()), 1e-300)
    for _ in range(steps):
        if gap(p, gradient, most) <= tolerance:
            break
        shifted = gradient - gradient.min()
        while eta > 1e-300:
            q = within(np.maximum(p, 1e-280) * np.exp(-np.minimum(eta * shifted, 600.0)), most)
            there, slope = objective(q)
            # Sufficient decrease; a step that gains nothing in float64 ends the search.
            if there < value + 0.25 * float((gradient * (q - p)).sum()):
                break
            eta /= 2
        else:
            break
        if np.array_equal(q, p):
            break
        p, value, gradient = q, there, slope
        eta *= 2
    return Optimum(p, value, gap(p, gradient, most))


def dirichlet(prior: Floats, num: int, seed: int, low: float = 1.0, high: float = 1.0) -> Floats:
    """Mixtures from Dirichlet(strength x prior), float64[num, D].

    The strength is log-uniform in [low, high]. Domains of prior 0 stay at 0.
    """
    rng = np.random.default_rng(seed)
    strength = (
        np.exp(rng.uniform(np.log(low), np.log(high), num)) if high > low else np.full(num, low)
    )
    shape = strength[:, None] * prior
    drawn = rng.standard_gamma(shape)
    sums = drawn.sum(axis=1)
    # With tiny shapes every gamma can underflow to 0: the limit is one domain at random.
    for row in np.flatnonzero(sums <= 0):
        drawn[row, rng.choice(len(prior), p=prior)] = 1.0
    mixtures: Floats = drawn / drawn.sum(axis=1, keepdims=True)
    return mixtures


def affordable(samples: int, num_domains: int) -> int:
    """How many mixtures to simulate: as asked for, but at most a gibibyte of them."""
    return max(min(samples, (1 << 27) // num_domains), 1)


def best_of(mixtures: Floats, values: Floats, top: int) -> Floats:
    """Mean of the `top` mixtures of least value: averaging damps the predictor's noise."""
    if not np.isfinite(values).all():
        raise ArgumentError("the predictions of the simulated mixtures are not all finite")
    order = np.argsort(values, kind="stable")[:top]
    return normalise(mixtures[order].mean(axis=0))
