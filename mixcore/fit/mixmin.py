"""MixMin: one small model a source; the mixture of them that best explains the target texts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit.base import Fit, Fitter
from mixcore.fit.likelihoods import mixture_loss, most_likely
from mixcore.fit.runs import INFO, Runs
from mixcore.fit.stats import interval
from mixcore.fit.table import Floats, read_table
from mixcore.fit.task import Task
from mixcore.methods.base import choice, number, whole

LOGP = "logp/"


@dataclass(frozen=True)
class Scores:
    """What each source's model says of each target text.

    Attributes:
        file: Where it came from.
        domains: Names.
        log_p: float64[X, D], log-likelihood of the whole text in nats.
        lengths: float64[X], tokens.
    """

    file: str
    domains: tuple[str, ...]
    log_p: Floats
    lengths: Floats


@register
class MixMin(Fitter):
    """The mixture of per-source models under which the target texts are most likely.

    min over p of -mean_x (1 / len_x) log sum_i p_i P_i(x), P_i(x) = likelihood of the whole text x
    under the model of source i. Convex. The proxy of a model trained on a mixture is the mixture of
    models, so one model a source is all that is trained.

    Reads a CSV, one row a text: `length` (tokens) and `logp/<domain>` (log-likelihood in nats, the
    sum over its tokens). A fifth of the texts is held out.

    "exact" goes to the optimum, whatever the length of the texts. "code" takes the steps of the
    authors' script, p <- p exp(-eta g) normalised, `steps` of them; its stop test (max |g| < 1e-4)
    fires only for texts of thousands of tokens, as the derivatives at the optimum are
    -mean(1 / len). On short texts its 100 steps fall short of the optimum.

    Args:
        variant: "exact" or "code".
        eta: Step of "code" (1 there).
        steps: At most so many (100 there).
        held_out: Part of the texts that judge (0.2 there).
    """

    name = "mixmin"
    paper = "Thudi et al. 2025, 2502.10510"
    reads = "scores of target texts by one model a source (CSV: length, logp/<domain>)"
    tractable = "a model trained on a mixture is replaced by the mixture of per-source models"

    def __init__(
        self,
        *,
        variant: str = "exact",
        eta: float = 1.0,
        steps: int = 100,
        held_out: float = 0.2,
    ) -> None:
        super().__init__()
        self.variant = choice("variant", variant, ("exact", "code"))
        self.eta = number("eta", eta, 0, above=True)
        self.steps = whole("steps", steps, 1, 10_000_000)
        self.held_out = number("held_out", held_out, 0, 0.9)

    def read(self, path: str | os.PathLike[str]) -> Scores:
        """Read the scores."""
        table = read_table(path)
        table.unknown(("length",), (LOGP, INFO))
        domains = table.names(LOGP)
        if "length" not in table.columns or not domains:
            raise ArgumentError(f"{table.file} must have the columns length and logp/NAME")
        lengths = table.floats("length", 0, above=True)
        return Scores(table.file, domains, table.matrix(LOGP, high=0.0), lengths)

    def fit(self, data: Scores, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """Find the mixture on most texts, judge it on the others."""
        self.notes = list(task.notes)
        if task.target:
            raise ArgumentError("mixmin takes no target: the scored texts are it")
        num = len(data.lengths)
        rng = np.random.default_rng(task.seed)
        order = rng.permutation(num)
        out = order[: int(num * self.held_out)]
        fitted = order[len(out) :]
        log_p, shares = data.log_p[fitted], 1 / data.lengths[fitted] / len(fitted)
        start = np.full(len(data.domains), 1 / len(data.domains))
        found = most_likely(log_p, shares, task.most, start)
        weights, gap = found.weights, found.gap
        if self.variant == "code":
            weights = self.descend(log_p, shares)
            value, _ = mixture_loss(log_p, shares, weights)
            gap = max(value - found.value, 0.0)
            if (weights > task.most + 1e-12).any():
                raise ArgumentError("variant='code' knows no caps; variant='exact' does")
        alone = -(data.log_p / data.lengths[:, None])[fitted].mean(axis=0)
        return Fit(
            method=self.name,
            task=task,
            weights=weights,
            predicted={"loss": float(mixture_loss(log_p, shares, weights)[0])},
            predicted_prior={"loss": float(mixture_loss(log_p, shares, task.prior)[0])},
            parameters={
                "loss_of_each_model": dict(zip(data.domains, alone.tolist(), strict=True)),
                "held_out": self._judged(data, out, weights, task),
            },
            gap=gap,
            notes=tuple(self.notes),
        )

    def descend(self, log_p: Floats, shares: Floats) -> Floats:
        """The authors' steps."""
        p = np.full(log_p.shape[1], 1 / log_p.shape[1])
        for _ in range(self.steps):
            _, g = mixture_loss(log_p, shares, p)
            p = p * np.exp(-self.eta * g)
            p /= p.sum()
            if np.abs(g).max() < 1e-4:
                break
        return p

    def _judged(
        self, data: Scores, rows: npt.NDArray[np.int64], weights: Floats, task: Task
    ) -> dict[str, Any]:
        """Loss on the texts held out, with the interval of its difference to the prior's."""
        if len(rows) < 3:
            self.notes.append("too few texts to hold any out")
            return {}
        losses, before = (
            -_log_mixed(data.log_p[rows], p) / data.lengths[rows] for p in (weights, task.prior)
        )
        gain = before - losses
        low, high = interval(lambda r: float(gain[r].mean()), len(gain), None, task.seed)
        self.notes.append(
            f"on {len(rows)} texts held out the mixture of models loses {losses.mean():.4g} nats a "
            f"token, {gain.mean():.4g} ({low:.4g} to {high:.4g}) less than at the prior"
        )
        return {
            "texts": len(rows),
            "loss": float(losses.mean()),
            "gain_over_prior": float(gain.mean()),
            "gain_low": low,
            "gain_high": high,
        }


def _log_mixed(log_p: Floats, weights: Floats) -> Floats:
    top = log_p.max(axis=1)
    return np.asarray(np.log(np.exp(log_p - top[:, None]) @ weights) + top)
