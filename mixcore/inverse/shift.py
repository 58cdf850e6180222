"""Label shift: what mixture of true classes gives the predictions seen of an erring classifier.

M[a, b] is the probability of predicting a where b is true, q[a] how often a was predicted. Two
estimators of pi in q = M pi: the maximum-likelihood one by expectation maximisation (Saerens,
Latinne, Decaestecker 2002, on the confusion matrix), and the least-squares one on the simplex
(Lipton, Wang, Smola 2018, arXiv 1802.03916, constrained).
"""

import numpy as np
import numpy.typing as npt

from mixcore.errors import ArgumentError, MixcoreError

Floats = npt.NDArray[np.float64]


def em(confusion: Floats, predicted: Floats, *, tolerance: float = 1e-10) -> Floats:
    """The mixture of largest likelihood, pi[b] <- pi[b] sum_a q[a] M[a, b] / (M pi)[a], repeated.

    Example:
        >>> em(np.array([[0.9, 0.2], [0.1, 0.8]]), np.array([0.55, 0.45]))
        array([0.5, 0.5])

    Args:
        confusion: float64[D, D], columns sum to 1.
        predicted: float64[D], sums to 1.
        tolerance: Ends where no entry moves by more; after 100,000 steps in any case.
    """
    confusion, predicted = _checked(confusion, predicted)
    mixture = np.full(confusion.shape[1], 1 / confusion.shape[1])
    for _ in range(100_000):
        expected = confusion @ mixture
        ratio = np.divide(predicted, expected, out=np.zeros_like(predicted), where=expected > 0)
        new = mixture * (confusion.T @ ratio)
        new /= new.sum()
        moved = float(abs(new - mixture).max())
        mixture = new
        if moved < tolerance:
            break
    return mixture


def least_squares(confusion: Floats, predicted: Floats) -> Floats:
    """The mixture on the simplex with the least |M pi - q|^2.

    Example:
        >>> least_squares(np.array([[0.9, 0.2], [0.1, 0.8]]), np.array([0.55, 0.45]))
        array([0.5, 0.5])
    """
    confusion, predicted = _checked(confusion, predicted)
    try:
        from scipy.optimize import nnls
    except ImportError as e:
        raise MixcoreError(
            f"least_squares needs scipy ({e}): pip install 'mixcore[methods]'"
        ) from e
    # On the simplex M pi - q = (M - q 1') pi: the least |(M - q 1') pi| with pi >= 0, sum 1. The
    # row of ones below weighs enough for the sum; what is left of its error is divided out.
    shifted = confusion - predicted[:, None]
    scale = 1e4
    rows = np.vstack([shifted, np.full(len(predicted), scale)])
    mixture = np.asarray(nnls(rows, np.append(np.zeros(len(predicted)), scale))[0], np.float64)
    result: Floats = mixture / mixture.sum()
    return result


def _checked(confusion: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    m, q = np.asarray(confusion, np.float64), np.asarray(predicted, np.float64)
    if m.ndim != 2 or m.shape[0] != m.shape[1] or q.shape != (len(m),):
        raise ArgumentError(
            f"confusion must be D x D and predicted D, got shapes {m.shape} and {q.shape}"
        )
    for name, value in (("confusion", m), ("predicted", q)):
        if not np.isfinite(value).all() or (value < 0).any():
            raise ArgumentError(f"{name} must be finite and >= 0, got {value.tolist()}")
        if (abs(value.sum(axis=0) - 1) > 1e-6).any():
            raise ArgumentError(f"{name} must sum to 1 in every column, got {value.tolist()}")
    return m, q
