"""The mixture of given models that makes a sample set most likely; MixMin and MDE share it."""

import numpy as np

from mixcore.fit.propose import Optimum, minimise
from mixcore.fit.table import Floats


def mixture_loss(log_p: Floats, shares: Floats, weights: Floats) -> tuple[float, Floats]:
    """-sum_x s_x log sum_i w_i exp(log_p_xi), and its derivatives by w.

    Args:
        log_p: float64[X, D].
        shares: s, float64[X], >= 0.
        weights: w, float64[D].
    """
    top = log_p.max(axis=1, keepdims=True)  # whole texts have likelihoods far below float64
    scaled = np.exp(log_p - top)
    mixed = scaled @ weights
    with np.errstate(divide="ignore"):
        value = -float((shares * (np.log(mixed) + top[:, 0])).sum())
    gradient = -((shares / np.maximum(mixed, 1e-300))[:, None] * scaled).sum(axis=0)
    return value, gradient


def most_likely(log_p: Floats, shares: Floats, most: Floats, start: Floats) -> Optimum:
    """The allowed mixture of least loss. Convex; ends when the Frank-Wolfe gap is below 1e-10.

    At the optimum all derivatives below a cap equal -sum_x s_x, not 0: a test of max |gradient|
    would never end the search, which is why the gap is tested.
    """
    scale = float(shares.sum())
    return minimise(
        lambda p: mixture_loss(log_p, shares, p),
        most,
        [start],
        tolerance=1e-10 * max(scale, 1e-300),
    )
