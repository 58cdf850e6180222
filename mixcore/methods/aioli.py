"""Aioli: learn inside the run how each domain's share moves each loss, then follow the benefit."""

from collections.abc import Sequence

import numpy as np

from mixcore.domains import Domain, stream_key
from mixcore.errors import ArgumentError
from mixcore.methods import register
from mixcore.methods._losses import exponential_step, measured
from mixcore.methods.base import Floats, Method, Weights, carried, flag, number, whole
from mixcore.signals import Signals


@register
class Aioli(Method):
    """Learn how each domain's share moves each loss, then follow the benefit.

    Model: L(t+1) = L(t) - A(t) p(t); L: float64[D], validation losses; A: float64[D, D].

    A round takes update_steps. First, lp_rounds times and for each domain i in random order: train
    lp_steps on the mix m_i (weight f on i, (1 - f) / (D - 1) on each other) and note by how much
    each loss falls. The mean falls B[:, i] give A from A M^T = B, M's rows the m_i. If normalize_A:
    A <- A - min(A, 0), divided by its sum. For the rest of the round

    p_j ~ p_j exp(eta sum_i A_ij), from uniform at first;  with ema:  A' <- (1 - ema) A + ema A',
    p_j ~ exp(eta sum_i A'_ij), from uniform every time.

    An update ends a piece of learning if lp_steps have passed since it began, and begins a round if
    update_steps have; any other leaves the weights alone. So update every lp_steps. Where
    `signals.weights` tells that other mixes than the m_i were in force (guards, a lag), those are
    the rows of M; a lag should be a multiple of the period, so that a piece has one mix.

    Compared with trainer/aioli_trainer.py of HazyResearch/aioli (a236112); seeds differ.

    Args:
        initial: Weights for the first prior_steps (the restricted setting); p starts from uniform
            none the less, as in the code.
        eta: Step size. Scripts: 0.1, 0.2, 0.5.
        update_steps: Steps of a round. The paper e.g. 250 of 5000.
        lp_rounds: Sweeps over the domains in a round. Scripts: 2 to 4.
        lp_steps: Steps on one mix. Scripts: 4 to 10.
        one_hot_factor: f in (1/D, 1]. Scripts: 0.5 to 0.75.
        normalize_A: The README says always; the code has it as a flag.
        ema: Weight of the old A in [0, 1), scripts 0.1 to 0.5; None: no averaging.
        diagonal: A = diag(B_ii / f) alone [code].
        prior_steps: Steps before the first round.
        seed: Of the order of the domains; None: their own order.
    """

    name = "aioli"
    family = "dynamic adaptive"
    update_every = 5
    cost = "lp_rounds x D validation passes and lp_steps of other mixes a round"
    paper = "Chen, Hu, Lourie, Cho, Re 2024, 2411.05735"
    needs = ("val_loss",)
    state_fields = (
        "_losses",
        "_round",
        "_round_start",
        "_place",
        "_piece_start",
        "_product",
        "_falls",
        "_rows",
        "_moved",
        "_ema_graph",
    )

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        initial: Weights | None = None,
        eta: float = 0.2,
        update_steps: int = 250,
        lp_rounds: int = 1,
        lp_steps: int = 5,
        one_hot_factor: float = 1.0,
        normalize_A: bool = True,
        ema: float | None = None,
        diagonal: bool = False,
        prior_steps: int = 0,
        seed: int | None = 0,
    ) -> None:
        super().__init__(domains, initial=initial)
        num = len(self.domains)
        self.eta = number("eta", eta)
        self.update_steps = whole("update_steps", update_steps, 1)
        self.lp_rounds = whole("lp_rounds", lp_rounds, 1)
        self.lp_steps = whole("lp_steps", lp_steps, 1)
        learning = self.lp_rounds * self.lp_steps * num
        if learning >= self.update_steps:
            raise ArgumentError(
                f"update_steps must be above lp_rounds x lp_steps x {num} domains = {learning}, "
                f"got {self.update_steps}"
            )
        self.one_hot_factor = number("one_hot_factor", one_hot_factor, 1 / num, 1, above=num > 1)
        self.normalize = flag("normalize_A", normalize_A)
        self.ema = None if ema is None else number("ema", ema, 0, 1 - 1e-12)
        self.diagonal = flag("diagonal", diagonal)
        self.prior_steps = whole("prior_steps", prior_steps)
        self.seed = None if seed is None else whole("seed", seed)
        self._losses = np.full(num, np.nan)
        self._round = 0
        self._round_start = 0
        self._place: int | None = None  # pieces of learning done; None: not learning
        self._piece_start = 0
        self._product = np.full(num, 1 / num)
        self._falls: Floats | None = None
        self._rows: Floats | None = None
        self._moved = False  # were other mixes than the m_i in force this round?
        self._ema_graph: Floats | None = None

    def mixture(self, i: int) -> Floats:
        """m_i: weight f on domain i, the rest shared by the others; float64[D]."""
        num = len(self.domains)
        weights = np.full(num, (1 - self.one_hot_factor) / max(num - 1, 1))
        weights[i] = self.one_hot_factor if num > 1 else 1.0
        return weights

    def order(self) -> list[int]:
        """Domains whose mixes this round learns from, in order: lp_rounds x D of them."""
        num = len(self.domains)
        found: list[int] = []
        for sweep in range(self.lp_rounds):
            if self.seed is None:
                found += range(num)
                continue
            key = stream_key(self.seed, "aioli", f"{self._round} {sweep}")
            found += np.random.Generator(np.random.Philox(key=key)).permutation(num).tolist()
        return found

    def graph(self, falls: Floats, rows: Floats | None = None) -> Floats:
        """A from the mean falls of the losses B (float64[D, D], B[:, i] on mix i).

        Args:
            falls: B.
            rows: M; None: the m_i.
        """
        f, num = self.one_hot_factor, len(self.domains)
        if num == 1:
            return falls
        if self.diagonal:
            return np.diag(falls.diagonal() / f)
        if rows is None:
            # M = (f - g) I + g 1 1^T, whose inverse is known.
            g = (1 - f) / (num - 1)
            solved: Floats = (falls - g * falls.sum(1, keepdims=True)) / (f - g)
            return solved
        scale = max(np.abs(falls).max(), 1.0)
        least: Floats = np.linalg.lstsq(rows, falls.T / scale, rcond=None)[0].T * scale
        return least

    def _update(self, signals: Signals) -> Floats:
        before = self._losses
        self._losses = carried(measured(signals, "val"), before)
        step = signals.step
        if self._place is None:
            resting = self._round and step - self._round_start < self.update_steps
            if step < self.prior_steps or resting:
                return self._weights
            self._round_start = self._piece_start = step
            self._place = 0
            self._falls = np.zeros((len(self.domains), len(self.domains)))
            self._rows = np.zeros_like(self._falls)
            self._moved = False
            return self.mixture(self.order()[0])
        if step - self._piece_start < self.lp_steps:
            self._losses = before  # the piece is measured from where it began
            return self._weights
        return self._learn(signals, before)

    def _learn(self, signals: Signals, before: Floats) -> Floats:
        """End a piece of learning; begin the next one, or the rest of the round."""
        assert self._place is not None
        assert self._falls is not None
        assert self._rows is not None
        order = self.order()
        i = order[self._place]
        self._falls[:, i] += np.nan_to_num(before - self._losses)
        in_force = self._weights if signals.weights is None else signals.weights
        self._rows[i] += in_force
        self._moved |= bool(np.abs(in_force - self.mixture(i)).max() > 1e-9)
        self._place += 1
        self._piece_start = signals.step
        if self._place < len(order):
            return self.mixture(order[self._place])
        rows = self._rows / self.lp_rounds if self._moved else None
        graph = self.graph(self._falls / self.lp_rounds, rows)
        self._place = self._falls = self._rows = None
        self._round += 1
        self._product = self._follow(graph)
        return self._product

    def _follow(self, graph: Floats) -> Floats:
        """Exponentiated gradient on the column sums of A."""
        if self.normalize:
            graph = graph - min(graph.min(), 0.0)
            graph = graph / (graph.sum() or 1.0)
        start = self._product
        if self.ema is not None:
            old = graph if self._ema_graph is None else self._ema_graph
            self._ema_graph = graph = (1 - self.ema) * graph + self.ema * old
            start = np.full(len(graph), 1 / len(graph))
        return exponential_step(start, self.eta * graph.sum(0))
