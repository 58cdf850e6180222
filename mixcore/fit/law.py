"""Law: what one outcome depends on, fitted; inverse mixing and transfer read it too."""

import copy
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mixcore.errors import ArgumentError
from mixcore.fit.table import Floats


class TooFewRunsError(ArgumentError):
    """A law has more parameters than there are runs, or its trees found no split."""


class Law:
    """What one outcome depends on, fitted.

    Example:
        >>> law = fitted.laws["loss/web"]
        >>> law.predict(np.array([[0.5, 0.5]]))  # of a model of law.params on law.tokens

    Attributes:
        tokens, params: Where the law is read if `predict` is given none; None: it has no such axis.
        curvature: "convex" or "concave" in the mixture, "linear", or "" for neither.
        smooth: `value_and_gradient` works.
    """

    tokens: float | None = None
    params: float | None = None
    curvature: str = ""
    smooth: bool = True

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The outcome at mixtures float64[R, D]: float64[R]."""
        raise NotImplementedError

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """The outcome at one mixture float64[D], and its derivatives by the weights."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """The fitted numbers, as plain values."""
        return {}

    def at(self, tokens: float | None = None, params: float | None = None) -> Self:
        """The same law, read at another budget or size."""
        moved = copy.copy(self)
        moved.tokens = self.tokens if tokens is None else tokens
        moved.params = self.params if params is None else params
        return moved


class SeenLaw(Law):
    """A law of some of the domains; NaN at mixtures of others."""

    def __init__(self, law: Law, seen: npt.NDArray[np.int64]) -> None:
        self.law, self.seen = law, seen
        self.tokens, self.params = law.tokens, law.params
        self.curvature, self.smooth = law.curvature, law.smooth

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The outcome at mixtures."""
        law = self.law.at(self.tokens, self.params)
        inside = np.isclose(weights[:, self.seen].sum(axis=1), 1.0)
        found = law.predict(weights[:, self.seen], tokens, params)
        return np.where(inside, found, np.nan)

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """The outcome and its derivatives; inf for domains that it does not know."""
        law = self.law.at(self.tokens, self.params)
        value, slopes = law.value_and_gradient(weights[self.seen])
        gradient = np.full(len(weights), np.inf)
        gradient[self.seen] = slopes
        return value, gradient

    def parameters(self) -> dict[str, Any]:
        """Those of the law, for the domains that it knows."""
        return self.law.parameters()
