"""D-CPT Law: loss by model size, tokens and the share of the scored corpus, for two domains."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixcore.fit import register
from mixcore.fit._least_squares import least_squares, positive_losses
from mixcore.fit._libraries import scipy
from mixcore.fit.law import Law, TooFewRunsError
from mixcore.fit.runs import Runs
from mixcore.fit.table import Floats
from mixcore.fit.task import Task
from mixcore.fit.two_domains import TwoDomainFitter, checked_limit, own_domain
from mixcore.methods.base import number, whole

# Nonlinear parameters: alpha, eta, beta, epsilon, gamma.
LOW = np.array([0.01, 0.05, 0.01, 1e-3, 0.01])
HIGH = np.array([2.0, 3.0, 2.0, 1.0, 3.0])


class RatioLaw(Law):
    """E + A / N^alpha + B r^eta / D^beta + C / (r + eps)^gamma; r = weight of one domain.

    N and D are in units (geometric means of the runs'), so that no factor is astronomically large.

    Attributes:
        linear: E, A, B, C, float64[4], >= 0.
        powers: alpha, eta, beta, eps, gamma, float64[5].
        domain: Whose share r is.
        units: Of N and D.
    """

    smooth = False

    def __init__(
        self, linear: Floats, powers: Floats, domain: int, units: tuple[float, float]
    ) -> None:
        self.linear, self.powers, self.domain, self.units = linear, powers, domain, units

    def predict(
        self, weights: Floats, tokens: Floats | None = None, params: Floats | None = None
    ) -> Floats:
        """The loss."""
        n = self._axis(params, self.params, 0)
        d = self._axis(tokens, self.tokens, 1)
        r = weights[:, self.domain]
        result: Floats = terms(self.powers, r, n, d) @ self.linear
        return result

    def _axis(self, given: Floats | None, at: float | None, place: int) -> Floats:
        values = np.asarray(at if given is None else given, dtype=np.float64)
        return np.asarray(values / self.units[place])

    def parameters(self) -> dict[str, Any]:
        """E, A, B, C in the units of N and D, and the powers."""
        named = dict(zip(("E", "A", "B", "C"), self.linear.tolist(), strict=True))
        powers = ("alpha", "eta", "beta", "epsilon", "gamma")
        return {
            **named,
            **dict(zip(powers, self.powers.tolist(), strict=True)),
            "unit_params": self.units[0],
            "unit_tokens": self.units[1],
        }


def terms(powers: Floats, r: Floats, n: Floats, d: Floats) -> Floats:
    """1, N^-alpha, r^eta D^-beta, (r + eps)^-gamma: float64[R, 4]."""
    alpha, eta, beta, eps, gamma = powers
    ones = np.ones_like(r)
    return np.column_stack(
        [ones, ones * n**-alpha, r**eta * d**-beta, (r + max(eps, 1e-12)) ** -gamma]
    )


@register
class DCPT(TwoDomainFitter):
    """The D-CPT Law of continual pretraining on a general corpus and a new domain.

    L(N, D, r) = E + A / N^alpha + B r^eta / D^beta + C / (r + eps)^gamma, r = share of the corpus
    that is scored, fitted for each `loss/<domain>` of the two domains. Without several `params` or
    `tokens` in the runs the term of N falls away, and beta is 0. All linear factors >= 0; Huber
    loss (delta 1e-3) of log L, from many starts (for given powers the factors are linear).

    The answer is the ratio of the least target loss; with `limit` among those that keep other
    losses in bounds: `{"loss/general": 2.5}` is the paper's best r under a general-loss limit.

    Args:
        limit: Column -> most loss; None: no limit.
        params: Model size the law is read at; None: the largest of the runs.
        starts: Random starts.
    """

    name = "dcpt"
    paper = "Que, Liu, Zhang et al. 2024, 2406.01375"
    tractable = "one closed law of size, tokens and ratio a loss; a search along the ratio"
    axes = ("tokens", "params")

    def __init__(
        self,
        *,
        limit: Mapping[str, float] | None = None,
        params: float | None = None,
        starts: int = 60,
    ) -> None:
        super().__init__()
        self.limit = checked_limit(limit)
        self.params = None if params is None else number("params", params, 0, above=True)
        self.starts = whole("starts", starts, 1, 10_000)

    def least_runs(self, num_domains: int) -> int:
        """E, eta, B, C, gamma, eps and one more, at different ratios or scales."""
        return 3

    def law(self, runs: Runs, column: str, task: Task) -> Law:
        """Fit one loss."""
        domain = own_domain(column, runs.domains, self.name)
        n, unit_n, several_n = _scaled(runs.params, len(runs))
        d, unit_d, several_d = _scaled(runs.tokens, len(runs))
        num_parameters = 6 + 2 * several_n + several_d
        if len(runs) <= num_parameters:
            raise TooFewRunsError(
                f"{runs.file}: {column!r} has {len(runs)} runs to fit {num_parameters} parameters"
            )
        y = positive_losses(runs, column, self.name)
        linear, powers = fit_ratio(
            runs.weights[:, domain], n, d, y, several_n, several_d, self.starts, task.seed
        )
        law = RatioLaw(linear, powers, domain, (unit_n, unit_d))
        largest_n = unit_n if runs.params is None else float(runs.params.max())
        largest_d = unit_d if runs.tokens is None else float(runs.tokens.max())
        return law.at(task.budget or largest_d, self.params or largest_n)


def fit_ratio(
    r: Floats,
    n: Floats,
    d: Floats,
    y: Floats,
    several_n: bool,
    several_d: bool,
    starts: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Factors and powers of least Huber loss of log L."""
    nnls = scipy("optimize").nnls
    rng = np.random.default_rng(seed)
    free = np.array([several_n, True, several_d, True, True])  # beta is 0 for one D
    found = []
    for _ in range(starts):
        powers = np.where(free, np.exp(rng.uniform(np.log(LOW), np.log(HIGH))), 0.0)
        columns = terms(powers, r, n, d)
        columns[:, 1] *= several_n  # one N: the term is part of E
        linear, error = nnls(columns / y[:, None], np.ones_like(y))  # relative errors
        found.append((error, np.concatenate([linear, powers])))
    found.sort(key=lambda f: f[0])
    target = np.log(y)

    def residuals(law: Floats) -> Floats:
        return np.asarray(np.log(np.maximum(terms(law[4:], r, n, d) @ law[:4], 1e-300)) - target)

    def jacobian(law: Floats) -> Floats:
        eps, gamma = law[7:]
        columns = terms(law[4:], r, n, d)
        by_linear = columns.copy()
        columns *= law[:4]
        far = r + max(eps, 1e-12)
        by_powers = [
            -columns[:, 1] * np.log(n),
            columns[:, 2] * np.log(np.maximum(r, 1e-300)),
            -columns[:, 2] * np.log(d),
            -columns[:, 3] * gamma / far,
            -columns[:, 3] * np.log(far),
        ]
        total = np.maximum(columns.sum(axis=1), 1e-300)
        return np.asarray(np.column_stack([by_linear, *by_powers]) / total[:, None])

    low = np.zeros(9)
    low[7] = 1e-6
    high = np.concatenate([np.full(4, np.inf), np.where(free, 8.0, 1e-12)])
    high[1] = np.inf if several_n else 1e-12
    best = [start for _, start in found[:6]]
    law = least_squares(residuals, jacobian, best, low, high, huber_delta=1e-3, evaluations=500)
    return law[:4], law[4:]


def _scaled(values: Floats | None, num: int) -> tuple[Floats, float, bool]:
    """An axis in units of its geometric mean, the unit, and whether it varies."""
    if values is None:
        return np.ones(num), 1.0, False
    unit = float(np.exp(np.log(values).mean()))
    return values / unit, unit, len(np.unique(values)) > 1
