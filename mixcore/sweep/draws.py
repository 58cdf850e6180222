"""Mixtures to try, as points on the simplex: float64[runs, domains], rows sum to 1.

Sources: `regmix` follows mixture_config/synthesize_mixture.py of RegMix (Liu et al. 2024, arXiv
2407.01492, commit b004d3a): a Dirichlet around the tempered prior with strengths from 0.1 to 5, a
bound of 15 times the prior, a grid of 2e-4. `dirichlet` is one of fixed strength, the draw of Olmix
(2026, arXiv 2602.12237) and of CLIMB's first round. The Latin hypercube is scipy's; its rows reach
the simplex through the exponential distribution, which makes them uniform there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_DOMAINS, choice, integer
from mixcore.errors import ArgumentError, MixcoreError
from mixcore.methods.base import number

Floats = npt.NDArray[np.float64]
Random = np.random.Generator

GRID = 2e-4  # RegMix rounds to multiples of it, and drops what is below


def regmix(
    prior: Floats,
    runs: int,
    random: Random,
    *,
    temperature: float = 0.5,
    min_strength: float = 0.1,
    max_strength: float = 5.0,
    bound: float = 15.0,
    oversample: int = 100,
) -> Floats:
    """RegMix's draw.

    Args:
        prior: Shares of the data, float64[D], sum 1.
        runs: How many rows.
        random: Source of randomness.
        temperature: Exponent of the prior.
        min_strength: Least strength of the Dirichlet.
        max_strength: Largest; 15 strengths lie between, evenly in their logarithm.
        bound: No weight above bound x prior (the prior itself, not the tempered one).
        oversample: So many more are drawn, and chosen from at random.

    Raises:
        ArgumentError: Not enough different mixtures are within the bound.
    """
    number("temperature", temperature, 0, 10)
    number("bound", bound, 1)
    number("min_strength", min_strength, 0, above=True)
    number("max_strength", max_strength, min_strength)
    wanted = runs * integer("oversample", oversample, 1, 10_000)
    wanted = max(min(wanted, 20_000_000 // len(prior)), runs)  # memory: a few hundred MB at most
    tempered = prior**temperature
    tempered /= tempered.sum()
    strengths = np.geomspace(min_strength, max_strength, 15)
    kept: list[Floats] = []
    have = tried = 0
    while have < wanted and tried < 20 * wanted + 1000:
        some = min(max(wanted - have, 64), 1_000_000 // len(prior) + 1)
        alpha = tempered * random.choice(strengths, some)[:, None]
        gamma = random.standard_gamma(np.maximum(alpha, 1e-12))
        sums = gamma.sum(axis=1)
        x = gamma[sums > 0] / sums[sums > 0, None]
        x = x[(x <= bound * prior).all(axis=1)]
        kept.append(_on_grid(x))
        have += len(kept[-1])
        tried += some
    rows = _distinct(np.concatenate(kept)) if kept else np.empty((0, len(prior)))
    if len(rows) < runs:
        raise ArgumentError(
            f"draw 'regmix' found {len(rows)} different mixtures within bound={bound:g} times the "
            f"prior, {runs} are asked for: give a larger bound or another draw"
        )
    return rows[random.permutation(len(rows))[:runs]]


def dirichlet(
    prior: Floats, runs: int, random: Random, *, strength: float | None = None, least: float = 0.0
) -> Floats:
    """Dirichlet(strength x prior).

    Args:
        prior: The mean, float64[D]; a domain of weight 0 stays at 0.
        runs: How many rows.
        random: Source of randomness.
        strength: Sum of the parameters: large values stay near the prior. None: D.
        least: Weights below become 0.
    """
    strength = number("strength", len(prior) if strength is None else strength, 0, above=True)
    number("least", least, 0, 1)
    rows = np.empty((0, len(prior)))
    for _ in range(100):
        gamma = random.standard_gamma(strength * prior, (runs - len(rows), len(prior)))
        gamma[gamma < least * gamma.sum(axis=1, keepdims=True)] = 0.0
        rows = np.concatenate([rows, gamma[gamma.sum(axis=1) > 0]])
        if len(rows) == runs:
            return _normalised(rows)
    raise ArgumentError(f"strength is too small for a draw that is not all zero, got {strength}")


def latin_hypercube(prior: Floats, runs: int, random: Random) -> Floats:
    """Evenly over the whole simplex: each domain's value in each of `runs` strata once."""
    try:
        from scipy.stats import qmc
    except ImportError as e:
        raise MixcoreError(f"draw 'latin' needs scipy ({e}): pip install 'mixcore[methods]'") from e
    unit = np.asarray(qmc.LatinHypercube(len(prior), rng=random).random(runs), np.float64)
    x = -np.log1p(-np.clip(unit, 1e-12, 1 - 1e-12))
    return _normalised(x)


def one_hot(prior: Floats, runs: int, random: Random, *, smooth: float = 0.0) -> Floats:
    """One domain a run, in order; as many rows as domains.

    Args:
        prior: Of D domains.
        runs: Must be D.
        random: Not used.
        smooth: Part of the prior mixed in.
    """
    number("smooth", smooth, 0, 1)
    if runs != len(prior):
        raise ArgumentError(f"runs must be the number of domains, {len(prior)}, got {runs}")
    rows: Floats = (1 - smooth) * np.eye(len(prior)) + smooth * prior
    return rows


def factor(prior: Floats, runs: int, random: Random, *, by: float = 3.0) -> Floats:
    """The prior, then each domain times `by` and divided by it: 2 D + 1 rows (AutoScale's 3)."""
    number("by", by, 1, above=True)
    if runs != 2 * len(prior) + 1:
        raise ArgumentError(f"runs must be 2 x domains + 1 = {2 * len(prior) + 1}, got {runs}")
    rows = np.tile(prior, (runs, 1))
    for d in range(len(prior)):
        rows[1 + 2 * d, d] *= by
        rows[2 + 2 * d, d] /= by
    return _normalised(rows)


DRAWS: dict[str, Callable[..., Floats]] = {
    "regmix": regmix,
    "dirichlet": dirichlet,
    "latin": latin_hypercube,
    "one_hot": one_hot,
    "factor": factor,
}


def draw(
    kind: str, prior: object, runs: int | None = None, seed: int = 0, **options: Any
) -> Floats:
    """Mixtures to try.

    Example:
        >>> draw("dirichlet", [0.7, 0.3], 2, strength=10.0).sum(axis=1)
        array([1., 1.])

    Args:
        kind: One of DRAWS.
        prior: Share of each domain; normalised.
        runs: Rows; None: 2 D + 1 for "factor", else D for "one_hot", else 3 (D + 1), which Olmix
            gives as the least for its fit.
        seed: The same seed, the same rows.
        options: Of the draw.

    Returns:
        float64[runs, D], >= 0, rows sum to 1.
    """
    choice("draw", kind, tuple(DRAWS))
    weights = np.array(prior, dtype=np.float64)
    if weights.ndim != 1 or not 1 <= len(weights) <= MAX_DOMAINS:
        raise ArgumentError(f"prior must be one number a domain, got shape {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ArgumentError("prior must be finite, >= 0 and not all zero")
    weights /= weights.sum()
    num = len(weights)
    default = {"factor": 2 * num + 1, "one_hot": num}.get(kind, 3 * (num + 1))
    runs = integer("runs", default if runs is None else runs, 1, 10_000_000)
    random = np.random.default_rng(integer("seed", seed, 0, (1 << 64) - 1))
    try:
        rows = DRAWS[kind](weights, runs, random, **options)
    except TypeError as e:
        if "unexpected keyword" not in str(e):
            raise
        raise ArgumentError(f"draw {kind!r}: {e}") from None
    return rows


def _on_grid(x: Floats) -> Floats:
    x = np.where(x < GRID, 0.0, x)
    x = x[x.sum(axis=1) > 0]
    x = np.round(_normalised(x) / GRID) * GRID
    return _normalised(x[x.sum(axis=1) > 0])


def _normalised(x: Floats) -> Floats:
    rows: Floats = x / x.sum(axis=1, keepdims=True)
    return rows


def _distinct(x: Floats) -> Floats:
    _, first = np.unique(np.round(x / 1e-5).astype(np.int64), axis=0, return_index=True)
    return x[np.sort(first)]
