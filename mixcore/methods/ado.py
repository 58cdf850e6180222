"""ADO: sample where a scaling law fitted on the run's own losses says that they still fall fast."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods._losses import measured
from mixcore.methods._power_law import GRID, PowerLawFit, check_scipy, predicted_loss, smoothed
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    flag,
    normalise,
    number,
    sizes,
    whole,
)
from mixcore.signals import Signals


@register
class ADO(Method):
    """Sample where a law fitted on the run's own losses says that they still fall fast.

    Law of domain k, fitted now and then: L_k(n) = eps_k + beta_k n^-alpha_k; n: samples.

    rho_k ~ mu_k h_k^s max(alpha_k, min_alpha) (L_k(n_k) - eps_k) / n_k, the fall of L_k per sample
    p(t) = gamma2 rho + (1 - gamma2) pbar(t-1);  pbar(t) = (1 - 1/(t+1)) pbar(t-1) + rho / (t+1)
    h <- (1 - gamma1) h + gamma1 (shares of the domains in the window's draws)

    mu: prior; pbar, h start there; t = step. Before the first valid fit the weights are mu. One
    update is one point of the fit: the defaults are for updates at every step. An absent domain
    repeats its last loss (before its first, the mean over all tokens of the window).

    Compared with src/data_selectors/ado.py of yidingjiang/ado (bc3d8d0) except for the fit, whose
    L-BFGS there is jaxopt's.

    Args:
        initial: mu; None: the domains' sizes.
        variant: "code": floor="clip" of rho, pbar the mean of rho, h from the draws,
            min_alpha=0.05. "paper": floor="exact" of p, pbar the mean of p, h from p, min_alpha=0.
            Each can be chosen alone:
        floor: "clip": max(rho, delta_min), renormalised, thus ending a little under delta_min;
            "exact": every weight at least delta_min, the others shrunk alike.
        floored: "rho" or "p", what the floor is put under.
        averaged: "rho" or "p", what pbar is the mean of.
        credit: "draws" or "p", what h follows.
        min_alpha: Least alpha in rho.
        gamma1: Of h.
        gamma2: Of p.
        s: Exponent of h.
        delta_min: Floor, below 1/D; None: the paper's 0.01, or 0.5/D if that is less.
        use_same_step_size: n is all samples of the run for every domain, so that it cancels in rho
            (the code's default); else the domain's own.
        start_step: No fit, and the weights mu, before this step. 1000, 5000 or 500 in the code.
        ignore_steps: Updates left out at the start of the fit.
        update_interval: Steps between two fits: at its multiples.
        subsample: Every which point goes into the fit, after smoothing.
        min_points: Fewer points than this are not fitted. (The released settings fit one point at
            step 1000, which tells nothing.)
        smooth_window: Of the Savitzky-Golay filter; 1: none.
        smooth_order: Its polynomial's degree.
        fit_lag: 0: the update that begins a fit waits for it. Else the fit runs in a thread and is
            applied, always, at the first update at least that many steps later.
        huber_delta, maxiter, tol, starts, penalties, alpha_max, alpha_min, a_max, e_min, grid: Of
            the fit; see PowerLawFit.
    """

    name = "ado"
    family = "dynamic adaptive"
    update_every = 1
    cost = "fits on the CPU each update_interval, in a thread if fit_lag > 0"
    paper = "Jiang, Zhou, Feng, Malladi, Kolter 2024, 2410.11820"
    needs = ("loss_sum", "tokens", "draws")
    state_fields = (
        "_counts",
        "_history",
        "_laws",
        "_credit",
        "_mean",
        "_last_step",
        "_pending",
    )

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        variant: str = "code",
        floor: str | None = None,
        floored: str | None = None,
        averaged: str | None = None,
        credit: str | None = None,
        min_alpha: float | None = None,
        gamma1: float = 0.1,
        gamma2: float = 0.1,
        s: float = 0.5,
        delta_min: float | None = None,
        use_same_step_size: bool = True,
        start_step: int = 1000,
        ignore_steps: int = 1000,
        update_interval: int = 1000,
        subsample: int = 10,
        min_points: int = 30,
        smooth_window: int = 101,
        smooth_order: int = 3,
        fit_lag: int = 0,
        huber_delta: float = 1e-3,
        maxiter: int = 200,
        tol: float = 1e-5,
        starts: int | None = 16,
        penalties: bool = True,
        alpha_max: float = 0.8,
        alpha_min: float = 0.001,
        a_max: float = 6.5,
        e_min: float = 0.5,
        grid: tuple[Sequence[float], Sequence[float], Sequence[float]] = GRID,
    ) -> None:
        super().__init__(domains, initial=initial)
        check_scipy()
        if initial is None:
            own = sizes(self.domains, "method 'ado' without the option initial")
            self._weights = normalise(own)
        num = len(self.domains)
        code = choice("variant", variant, ("code", "paper")) == "code"
        self.floor = choice("floor", floor or ("clip" if code else "exact"), ("clip", "exact"))
        own_name = "rho" if code else "p"
        self.floored = choice("floored", floored or own_name, ("rho", "p"))
        self.averaged = choice("averaged", averaged or own_name, ("rho", "p"))
        self.credit = choice("credit", credit or ("draws" if code else "p"), ("draws", "p"))
        least = (0.05 if code else 0.0) if min_alpha is None else min_alpha
        self.min_alpha = number("min_alpha", least, 0)
        self.gamma1 = number("gamma1", gamma1, 0, 1)
        self.gamma2 = number("gamma2", gamma2, 0, 1)
        self.s = number("s", s, 0)
        bound = min(0.01, 0.5 / num) if delta_min is None else delta_min
        self.delta_min = number("delta_min", bound, 0, 1)
        if self.delta_min * num >= 1 and num > 1:
            raise ArgumentError(f"delta_min must be below 1 / {num} domains, got {delta_min}")
        self.use_same_step_size = flag("use_same_step_size", use_same_step_size)
        self.start_step = whole("start_step", start_step)
        self.ignore_steps = whole("ignore_steps", ignore_steps)
        self.update_interval = whole("update_interval", update_interval, 1)
        self.subsample = whole("subsample", subsample, 1)
        self.min_points = whole("min_points", min_points, 1)
        self.smooth_window = whole("smooth_window", smooth_window, 1)
        self.smooth_order = whole("smooth_order", smooth_order)
        self.fit_lag = whole("fit_lag", fit_lag)
        self.law = PowerLawFit(
            huber_delta=number("huber_delta", huber_delta, 0, above=True),
            maxiter=whole("maxiter", maxiter, 1),
            tol=number("tol", tol, 0),
            starts=None if starts is None else whole("starts", starts, 1),
            penalties=flag("penalties", penalties),
            alpha_max=number("alpha_max", alpha_max),
            alpha_min=number("alpha_min", alpha_min, high=number("alpha_max", alpha_max)),
            a_max=number("a_max", a_max),
            e_min=number("e_min", e_min),
            grid=_grid(grid),
        )
        self.prior = self._weights
        self._credit = self._mean = self.prior
        self._laws: Floats | None = None  # float64[D, 3]: a, e, alpha
        self._last_step = -1
        self._pending: list[int] | None = None  # rows of the fit under way, step to apply it at
        self._job: _Job | None = None
        width = 1 if self.use_same_step_size else num
        self._count_rows = _Rows(np.zeros((0, width), dtype=np.int64))
        self._loss_rows = _Rows(np.zeros((0, num)))
        self._total = np.zeros(width)

    @property
    def laws(self) -> Floats | None:
        """(a, e, alpha) a domain, float64[D, 3]: L = exp(e) + exp(a) n^-alpha; None: no fit yet."""
        return None if self._laws is None else self._laws.copy()

    def _update(self, signals: Signals) -> Floats:
        if not signals.tokens.any():
            return self._weights
        self._record(signals)
        step, last, self._last_step = signals.step, self._last_step, signals.step
        if self._pending is not None and step >= self._pending[1]:
            self._apply(self._pending[0])
        due = step // self.update_interval > last // self.update_interval
        if due and step >= self.start_step and self._pending is None:
            self._begin(step)
        if self._laws is None or step < self.start_step:
            return self.prior
        return self._policy(self._laws, step)

    def _record(self, signals: Signals) -> None:
        """Append this window to the history, and follow what was drawn."""
        loss = measured(signals, "train")
        rows = self._loss_rows.view()
        overall = np.clip(np.nansum(signals.loss_sum) / signals.tokens.sum(), -1e300, 1e300)
        last = rows[-1] if len(rows) else np.full(len(loss), overall)
        self._loss_rows.append(carried(loss, last))
        draws = signals.draws
        self._count_rows.append(draws.sum() if self.use_same_step_size else draws)
        self._total = self._total + self._count_rows.view()[-1]
        shares = draws / draws.sum() if draws.any() else self._credit
        followed = shares if self.credit == "draws" else self._weights
        self._credit = (1 - self.gamma1) * self._credit + self.gamma1 * followed

    def _policy(self, laws: Floats, step: int) -> Floats:
        """rho, then p and pbar."""
        n = np.maximum(np.broadcast_to(self._total, len(laws)), 1.0)
        falls = np.maximum(laws[:, 2], self.min_alpha) * (
            predicted_loss(laws, n) - np.exp(np.minimum(laws[:, 1], 690.0))
        )
        score = np.maximum(falls / n, 0) * self.prior * self._credit**self.s
        if not (np.isfinite(score).all() and score.any()):
            return self._weights  # every law is flat: nothing to prefer
        rho = normalise(score)
        if self.floored == "rho":
            rho = self._above(rho)
        p = self.gamma2 * rho + (1 - self.gamma2) * self._mean
        if self.floored == "p":
            p = self._above(p)
        share = 1 / (step + 1)
        self._mean = (1 - share) * self._mean + share * (rho if self.averaged == "rho" else p)
        return p

    def _above(self, p: Floats) -> Floats:
        """Put the floor under p."""
        if self.floor == "clip":
            return normalise(np.maximum(p, self.delta_min))
        low = np.zeros(len(p), dtype=bool)
        while (p < self.delta_min).any():  # each round fixes one more: at most D
            low |= p < self.delta_min
            rest = np.where(low, 0.0, p)
            p = np.where(low, self.delta_min, rest / rest.sum() * (1 - low.sum() * self.delta_min))
        return p

    # Fits ---------------------------------------------------------------------------------------

    def _begin(self, step: int) -> None:
        """Start a fit of the history so far, if it has enough points."""
        rows = len(self._loss_rows.view())
        if len(range(self.ignore_steps, rows, self.subsample)) < self.min_points:
            return
        if self.fit_lag == 0:
            self._apply(rows)
            return
        self._pending = [rows, step + self.fit_lag]
        self._job = _Job(self, rows)

    def _apply(self, rows: int) -> None:
        """Take over the laws of the fit begun with that many rows; invalid ones are dropped."""
        laws = self._fit(rows) if self._job is None else self._job.result()
        self._pending = self._job = None
        if np.isfinite(laws).all():
            self._laws = laws

    def _fit(self, rows: int) -> Floats:
        part = slice(self.ignore_steps, None, self.subsample)
        n = np.cumsum(self._count_rows.view()[:rows], axis=0, dtype=np.float64)[part]
        loss = self._loss_rows.view()[:rows]
        loss = smoothed(loss, self.smooth_window, self.smooth_order)[part]
        num = len(self.domains)
        return np.array([self.law.fit(n[:, k % n.shape[1]], loss[:, k]) for k in range(num)])

    # State: the histories as plain arrays -------------------------------------------------------

    @property
    def _history(self) -> Any:
        return self._loss_rows.view()

    @_history.setter
    def _history(self, value: Floats) -> None:
        self._loss_rows = _Rows(value)

    @property
    def _counts(self) -> Any:
        return self._count_rows.view()

    @_counts.setter
    def _counts(self, value: Floats) -> None:
        self._count_rows = _Rows(value)
        self._total = value.sum(axis=0).astype(np.float64)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As Method's; a fit that was under way begins anew and is applied when it was due."""
        super().load_state_dict(state)
        self._job = None if self._pending is None else _Job(self, self._pending[0])


class _Rows:
    """A matrix that grows at its end, without a copy a row."""

    def __init__(self, start: Any) -> None:
        self._buffer = np.array(start)
        self._used = len(start)

    def view(self) -> Any:
        return self._buffer[: self._used]

    def append(self, row: Any) -> None:
        if self._used == len(self._buffer):
            grown = np.empty((2 * self._used + 16, self._buffer.shape[1]), self._buffer.dtype)
            grown[: self._used] = self._buffer
            self._buffer = grown
        self._buffer[self._used] = row
        self._used += 1


class _Job:
    """One fit in a thread of its own. Rows of the history never change once they are written."""

    def __init__(self, method: ADO, rows: int) -> None:
        self._laws: Floats | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(method, rows), daemon=True)
        self._thread.start()

    def _run(self, method: ADO, rows: int) -> None:
        try:
            self._laws = method._fit(rows)
        except Exception as e:  # raised where the result is asked for
            self._error = e

    def result(self) -> Floats:
        self._thread.join()
        if self._laws is None:
            raise RuntimeError("the fit of method 'ado' failed") from self._error
        return self._laws


def _grid(value: Any) -> tuple[list[float], list[float], list[float]]:
    """Starting values of a, e, alpha: three non-empty sequences of numbers."""
    if not isinstance(value, Sequence) or len(value) != 3 or not all(len(v) for v in value):
        raise ArgumentError(f"grid must be three sequences: of a, e and alpha, got {value!r}")
    a, e, alpha = ([number("grid", x) for x in axis] for axis in value)
    return a, e, alpha
