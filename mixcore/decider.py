"""What a method says, turned into shares: rank 0's part of an update."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore import _core
from mixcore.accumulate import Window
from mixcore.decision_log import reason
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.guards import Guard, Moment
from mixcore.ledger import Ledger
from mixcore.methods.base import Method, normalise
from mixcore.sampler import Sampler
from mixcore.schedule import megatron_normalise
from mixcore.signals import HOW, Signals

Floats = npt.NDArray[np.float64]

OBSERVED = ("loss_sum", "tokens")


class Decider:
    """Asks a method, applies guards, and says why.

    Args:
        ledger: Read only.
        method: Asked once a call of `decide`.
        guards: Applied in order.
        train_samples: Length of the run, or None.
        author: Of the decisions, where the method names none.
    """

    def __init__(
        self,
        ledger: Ledger,
        method: Method,
        guards: Sequence[Guard],
        train_samples: int | None,
        author: str,
    ) -> None:
        self.ledger, self.method = ledger, method
        self.guards = tuple(guards)
        self.train_samples = train_samples
        self.author = author
        self._sampler = Sampler(ledger)
        for i, guard in enumerate(self.guards):
            if not callable(guard):
                raise ArgumentTypeError(f"guards[{i}] must be callable, got {guard!r}")
        # Try them once: what a guard lacks is better found now than at the first update.
        self._guarded(self._weights_at(0), self._moment(0, 0))

    def decide(
        self,
        step: int,
        since: int,
        position: int,
        effective: int,
        window: Window,
        supplied: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Ask the method.

        Args:
            step: Steps done.
            since: Position at the last update.
            position: Samples consumed.
            effective: Where the decision will be in force.
            window: What was observed since.
            supplied: Signals from elsewhere.

        Returns:
            `shares` (None: nothing changes), `floats` (order megatron: in hex), `reason`, `author`:
            plain values; and `record`, for the log.

        Raises:
            ValueError, TypeError: The method lacks something, or a guard does.
        """
        method = self.method
        wanted = {n for n in method.needs if n in OBSERVED and n not in supplied}
        record: dict[str, Any]
        nothing = {"shares": None, "floats": None, "reason": "", "author": ""}
        if wanted and not window.samples.any():
            if window.dropped.any():  # e.g. an overflow, for which the optimizer left the step out
                why = "no loss was finite"
                record = {
                    "step": step,
                    "position": position,
                    "effective": effective,
                    "method": method.name,
                    "dropped": window.dropped,
                    "decided": False,
                    "why": why,
                }
                return nothing | {"record": record}
            raise ArgumentError(
                f"nothing was observed from position {since} to {position}, but method "
                f"{method.name!r} needs {', '.join(sorted(wanted))}: {HOW['loss_sum']}"
            )
        drawn = self._sampler.counts(position)
        measured = {
            "loss_sum": window.loss_sum,
            "tokens": window.tokens,
            "draws": drawn - self._sampler.counts(since),
            "total_draws": drawn,
            "weights": self._weights_at(position - 1),
        }
        signals = Signals(step=step, **{**measured, **supplied})
        proposed = method.update(signals)
        record = {
            "step": step,
            "position": position,
            "effective": effective,
            "method": method.name,
            "loss": signals.loss,
            "tokens": signals.tokens,
            "draws": signals.draws,
            "dropped": window.dropped,
            "proposed": proposed,
        }
        end = self.ledger.end(effective)
        past = self.train_samples is not None and effective >= self.train_samples
        if method.silent or past or (end is not None and end[0] <= effective):
            why = "the method has nothing to say" if method.silent else "the run ends before"
            return nothing | {"record": record | {"decided": False, "why": why}}
        moment = self._moment(step, effective)
        weights, moved = self._guarded(proposed, moment)
        spent = self._used_up(moment)
        if not (weights[~spent] > 0).any():
            why = "all domains that it asks for are used up"
            return nothing | {"record": record | {"decided": False, "why": why}}
        if weights[spent].any():
            weights = normalise(np.where(spent, 0.0, weights))
            moved["used up"] = weights
        author, why = method.why()
        names = [d.name for d in self.ledger.domains]
        text = reason(method.name, step, names, moment.weights, weights, signals.loss)
        shares = _core.shares(weights)
        changed = not np.array_equal(shares, self.ledger.piece_at(effective).shares)
        record |= {
            "decided": changed,
            "before": moment.weights,
            "weights": weights,
            "guards": moved,
            "notes": moment.notes,
            "author": author or self.author,
            "reason": why,
        }
        if not changed:
            return nothing | {"record": record}
        floats = None
        if self.ledger.order == "megatron":  # this order decides by floats: send their very bits
            floats = [x.hex() for x in megatron_normalise(weights).tolist()]
        text = "; ".join(t for t in (why, text, *moment.notes) if t)
        return {
            "shares": shares.tolist(),
            "floats": floats,
            "reason": text,
            "author": author or self.author,
            "record": record,
        }

    def _moment(self, step: int, effective: int) -> Moment:
        left = None if self.train_samples is None else max(self.train_samples - effective, 0)
        return Moment(
            step=step,
            position=effective,
            weights=self._weights_at(effective),
            initial=self._weights_at(0),
            domains=self.ledger.domains,
            drawn=self._sampler.counts(effective),
            remaining=left,
        )

    def _used_up(self, moment: Moment) -> npt.NDArray[np.bool_]:
        """Which domains have reached max_epochs where the decision takes effect."""
        caps = [np.inf if d.cap is None else d.cap for d in moment.domains]
        spent: npt.NDArray[np.bool_] = moment.drawn >= np.array(caps)
        return spent

    def _weights_at(self, position: int) -> Floats:
        """Weights in force there; 0 for domains that were not known there."""
        weights = self.ledger.weights_at(position)
        return np.pad(weights, (0, len(self.ledger.domains) - len(weights)))

    def _guarded(self, weights: Floats, moment: Moment) -> tuple[Floats, dict[str, Floats]]:
        """The weights after all guards, and after each that changed them."""
        moved = {}
        for guard in self.guards:
            after = guard(weights, moment)
            if not np.array_equal(after, weights):
                moved[getattr(guard, "__name__", type(guard).__name__)] = after
            weights = after
        return weights, moved
