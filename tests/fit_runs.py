"""Runs made from known laws, for the tests of the fits."""

import numpy as np

from mixcore.fit.runs import Runs

EXPONENTIAL_FLOORS = np.array([1.6, 1.9, 1.3])
EXPONENTIAL_SLOPES = np.array([[-0.9, 0.4, 0.3], [0.5, -1.1, 0.2], [0.3, 0.35, -0.7]])


def make_runs(weights, outcomes, tokens=None, params=None, names=None, file="runs.csv"):
    """Runs over domains d0, d1, ... with these outcomes."""
    num = len(weights)

    def full(values):
        return None if values is None else np.broadcast_to(np.asarray(values, float), (num,)).copy()

    return Runs(
        file,
        tuple(f"r{i}" for i in range(num)),
        tuple(f"d{i}" for i in range(weights.shape[1])) if names is None else names,
        weights,
        {c: np.asarray(v, dtype=np.float64) for c, v in outcomes.items()},
        full(tokens),
        full(params),
    )


def mixtures(num, domains, seed=0, strength=1.0):
    return np.random.default_rng(seed).dirichlet(np.full(domains, strength), num)


def exponential_runs(num=40, noise=0.0, seed=0, **options):
    """Three domains; loss/d0, d1, d2 = c + exp(t . p), and noise."""
    weights = mixtures(num, 3, seed)
    rng = np.random.default_rng(seed + 1)
    outcomes = {
        f"loss/d{i}": EXPONENTIAL_FLOORS[i]
        + np.exp(weights @ EXPONENTIAL_SLOPES[i])
        + noise * rng.normal(size=num)
        for i in range(3)
    }
    return make_runs(weights, outcomes, **options)


def mean_exponential(weights):
    """The mean of the three losses, without noise."""
    return (EXPONENTIAL_FLOORS + np.exp(np.atleast_2d(weights) @ EXPONENTIAL_SLOPES.T)).mean(axis=1)


def simplex_grid(step=100):
    """All mixtures of three domains in multiples of 1 / step."""
    a, b = np.meshgrid(np.arange(step + 1), np.arange(step + 1), indexing="ij")
    inside = a + b <= step
    return np.column_stack([a[inside], b[inside], step - a[inside] - b[inside]]) / step
