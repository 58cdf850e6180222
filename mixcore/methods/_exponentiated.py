"""The multiplicative step of dga, doge, grape and pike: w_k <- w_k exp(score_k), normalised."""

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.methods.base import Floats, log, number
from mixcore.signals import Signals


def exponentiate(log_weights: Floats, scores: Floats) -> Floats:
    """Logarithm of w exp(score) / sum, without leaving the logarithm.

    A score of NaN means that nothing is known: that weight stays exactly what it was, and the
    others share what they had together. The logarithm is kept between updates, so that a weight
    which underflows to 0 can come back; one that started at 0 (-inf) stays 0.

    Raises:
        ArgumentError: A score is infinite; the signals or the step size are too large.
    """
    if np.isinf(scores).any():
        raise ArgumentError(f"the scores of an update must be finite, got {scores.tolist()}")
    known = ~np.isnan(scores)
    moved = log_weights + np.where(known, scores, 0.0)
    before, after = log_sum(log_weights[known]), log_sum(moved[known])
    if np.isneginf(before):  # nothing known, or only weights of 0
        return log_weights
    moved[known] += before - after
    return moved - log_sum(moved)


def log_sum(logits: Floats) -> float:
    """Logarithm of the sum of exponentials; -inf of nothing."""
    top = float(logits.max(initial=-np.inf))
    return top if np.isneginf(top) else top + float(np.log(np.exp(logits - top).sum()))


def smooth(log_weights: Floats, eps: float) -> Floats:
    """(1 - eps) w + eps / K, in logarithms; unchanged bit for bit where eps is 0."""
    if eps == 0.0:
        return log_weights
    return log((1.0 - eps) * np.exp(log_weights) + eps / len(log_weights))


def learning_rate(signals: Signals, default: float) -> float:
    """The learning rate in force: `signals.extra["lr"]`, else the option."""
    if "lr" not in signals.extra:
        return default
    return number("signals.extra['lr']", signals.extra["lr"], 0.0)


def by_task(name: str, value: object, tasks: int) -> Floats:
    """One finite float64 a target task."""
    array = np.array(value, dtype=np.float64)
    if array.shape != (tasks,) or not np.isfinite(array).all():
        raise ArgumentError(
            f"{name} must have one finite entry a target task ({tasks}), got {array.tolist()}"
        )
    return array


def columns(grad_target: Floats) -> Floats:
    """float64[D, N], also where there is one target and it came as float64[D]."""
    return grad_target[:, None] if grad_target.ndim == 1 else grad_target
