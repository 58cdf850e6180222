"""What the methods that look at losses share: reading them, filling gaps, the exponential step."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixcore.domains import Domain
from mixcore.methods.base import Floats, Weights, log, per_domain, softmax
from mixcore.signals import Signals

SOURCES = ("train", "val")
# Larger losses are taken as this large, so that sums over 65,536 domains stay finite.
HUGE = 1e300


def loss_needs(source: str) -> tuple[str, ...]:
    """Fields of Signals that `measured` reads."""
    return ("val_loss",) if source == "val" else ("loss_sum", "tokens")


def measured(signals: Signals, source: str) -> Floats:
    """Mean loss per token of the window or of the held-out data: float64[D], NaN where absent."""
    return bounded(signals.val_loss if source == "val" else signals.loss)


def bounded(values: Any) -> Floats:
    """Values within +-1e300, NaN kept."""
    result: Floats = np.clip(values, -HUGE, HUGE)
    return result


def losses(name: str, value: Weights | None, domains: Sequence[Domain]) -> Floats | None:
    """Check an option that holds one constant loss a domain, or None."""
    return None if value is None else bounded(per_domain(name, value, domains, negative=True))


def filled(values: Floats) -> Floats:
    """NaN (a domain that was never seen) replaced by the mean of the others; 0 if there is none.

    The mean is the one value that makes an unknown domain neither better nor worse than the rest.
    """
    unknown = np.isnan(values)
    if not unknown.any():
        return values
    return np.where(unknown, 0.0 if unknown.all() else values[~unknown].mean(), values)


def uniformly_mixed(weights: Floats, c: float) -> Floats:
    """(1 - c) p + c / D: no domain falls below c / D, and the sum stays 1."""
    return (1 - c) * weights + c / len(weights)


def exponential_step(weights: Floats, scores: Floats, c: float = 0.0) -> Floats:
    """p_i <- (1 - c) p_i exp(s_i) / sum_j p_j exp(s_j) + c / D, in log space."""
    return uniformly_mixed(softmax(log(weights) + bounded(scores)), c)
