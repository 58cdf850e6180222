"""Skill-It: up go the domains that teach what still has a high loss, by a graph of skills."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mixcore.domains import Domain
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.methods import register
from mixcore.methods._losses import bounded, filled, losses, measured
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    carried,
    choice,
    flag,
    log,
    matrix,
    number,
    per_domain,
    softmax,
    whole,
)
from mixcore.signals import Signals

Flags = npt.NDArray[np.bool_]


@register
class SkillIt(Method):
    """Weight up the domains that teach, by a graph, what still has a high loss.

    p_i(t+1) ~ mu_i exp(eta sum_j A_ij sum of L_j(tau) over tau = t-w+1 .. t)

    A: float64[D, D], A_ij is how much training on i helps j; L: float64[D], validation losses, nats
    per token, one entry an update; mu: the prior. The windowed sum starts from mu each time, it is
    not multiplied onto p(t) (with w = all updates the two agree). Before the first update
    p ~ mu exp(eta A 1). The graph comes from short runs on one domain (or pairs): A_ij is the
    relative fall of L_j while training on i.

    Compared with trainer/mw_trainer.py of HazyResearch/skill-it (807b3bf) and
    trainer/skillit_trainer.py of HazyResearch/aioli (a236112). Switches that only the code has are
    marked [code].

    Args:
        initial: p before the first update, instead of the formula [code: mw_init].
        graph: A; None: the identity, as in the code.
        eta: 0.5 in the LEGO script (period 1000 of 6000 steps), 0.1 in addition, 0.2 in Aioli's.
        window: w, in updates.
        prior: mu; None: 1.
        targets: Names of the domains that count (columns of A); None: all.
        aggregate: "sum" as in the paper or "mean" over the window; None: "mean" with targets and
            "sum" without, as in the code.
        initial_loss: L before the first update, the first entry of the window (the code measures at
            step 0); None: there is none.
        half_edges: Off-diagonal entries of exactly 1 become 0.5 [code].
        normalize_loss: L_j is divided by its first value [code].
        eta_schedule: eta is divided by sum L / sum of the first L [code].
        dynamic_lambda: After each update off-diagonal entries are halved [code].
        ignore_lone_nodes: Domains with no edge but their own stay at 1 / D [code,
            where it fails without a prior and overwrites one].
    """

    name = "skillit"
    family = "dynamic adaptive"
    update_every = 1000
    cost = "one validation pass an update; beforehand D (or D^2) short runs for the graph"
    paper = "Chen, Roberts, Bhatia, Wang, Zhang, Sala, Re 2023, 2307.14430"
    needs = ("val_loss",)
    state_fields = ("_window", "_first", "_last", "_halvings")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        graph: object = None,
        eta: float = 0.5,
        window: int = 3,
        prior: Weights | None = None,
        targets: Sequence[str] | None = None,
        aggregate: str | None = None,
        initial_loss: Weights | None = None,
        half_edges: bool = False,
        normalize_loss: bool = False,
        eta_schedule: bool = False,
        dynamic_lambda: bool = False,
        ignore_lone_nodes: bool = False,
    ) -> None:
        super().__init__(domains, initial=initial)
        num = len(self.domains)
        self.eta = number("eta", eta)
        self.window = whole("window", window, 1)
        self.prior = np.ones(num) if prior is None else per_domain("prior", prior, self.domains)
        self.graph = np.eye(num) if graph is None else matrix("graph", graph, num, num)
        if flag("half_edges", half_edges):
            self.graph[(self.graph == 1) & ~np.eye(num, dtype=bool)] = 0.5
        self._fading = np.where(self.graph > 0, self.graph, 0.0) * (1 - np.eye(num))
        self._halvings = 0
        self.columns = self._columns(targets)
        default = "sum" if targets is None else "mean"
        self.aggregate = choice("aggregate", aggregate or default, ("sum", "mean"))
        self.normalize_loss = flag("normalize_loss", normalize_loss)
        self.eta_schedule = flag("eta_schedule", eta_schedule)
        self.dynamic_lambda = flag("dynamic_lambda", dynamic_lambda)
        self.lone = self._lone_nodes(flag("ignore_lone_nodes", ignore_lone_nodes))
        first = losses("initial_loss", initial_loss, self.domains)
        self._first = np.full(num, np.nan) if first is None else first
        self._last = self._first
        self._window: list[Floats] = [] if first is None else [first]
        if initial is None:
            self._weights = self._mix(self.eta, np.ones(num))

    def _columns(self, targets: Sequence[str] | None) -> list[int]:
        """Numbers of the target domains."""
        names = [d.name for d in self.domains]
        if targets is None:
            return list(range(len(names)))
        if isinstance(targets, str) or not isinstance(targets, Sequence):
            raise ArgumentTypeError(f"targets must be a sequence of names, got {targets!r}")
        unknown = [t for t in targets if t not in names]
        if unknown or not targets:
            raise ArgumentError(f"targets must be names of domains {names}, got {list(targets)}")
        return sorted({names.index(t) for t in targets})

    def _lone_nodes(self, wanted: bool) -> Flags:
        """Which domains have only the edge to themselves, if they are to be set apart."""
        a = self.graph
        alone = (a.diagonal() == 1) & (a.sum(0) == 1) & (a.sum(1) == 1)
        if wanted and alone.all():
            raise ArgumentError("ignore_lone_nodes needs a graph with edges, got none")
        if wanted and not self.prior[~alone].any():
            raise ArgumentError(f"prior must favour a domain with edges, got {self.prior.tolist()}")
        result: Flags = alone & wanted
        return result

    def _mix(self, eta: float, loss: Floats) -> Floats:
        """The weights mu exp(eta A loss) over the target columns, lone nodes apart, normalised."""
        counted = np.zeros(len(loss))
        counted[self.columns] = loss[self.columns]
        gain = self.graph @ counted
        if self._halvings:
            gain -= (1 - 0.5**self._halvings) * (self._fading @ counted)
        with np.errstate(over="ignore"):
            logits = log(self.prior) + bounded(eta * gain)
        if not self.lone.any():
            return softmax(logits)
        weights = np.full(len(logits), 1 / len(logits))
        rest = ~self.lone
        weights[rest] = softmax(logits[rest]) * rest.mean()
        return weights

    def _update(self, signals: Signals) -> Floats:
        self._last = carried(measured(signals, "val"), self._last)
        if np.isnan(self._last).all():
            return self._weights
        self._first = carried(self._first, self._last)
        self._window = [*self._window, self._last][-self.window :]
        entries = np.array([filled(entry) for entry in self._window])
        loss = entries.sum(0) if self.aggregate == "sum" else entries.mean(0)
        first = filled(self._first)
        if self.normalize_loss:
            with np.errstate(over="ignore"):
                loss = np.divide(loss, first, out=np.zeros_like(loss), where=first != 0)
            loss = bounded(loss)
        eta = self.eta
        now, start = entries[-1][self.columns].sum(), first[self.columns].sum()
        if self.eta_schedule and now > 0 and start > 0:
            with np.errstate(over="ignore"):
                eta = eta / max(now / start, 1e-300)
        weights = self._mix(eta, loss)
        self._halvings += self.dynamic_lambda
        return weights
