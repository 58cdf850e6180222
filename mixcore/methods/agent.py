"""Agent: any program that maps the history of the run to weights."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.methods import register
from mixcore.methods.base import (
    Floats,
    Method,
    Weights,
    choice,
    normalise,
    number,
    per_domain,
    whole,
)
from mixcore.signals import Signals

logger = logging.getLogger("mixcore.agent")
History = Sequence[Mapping[str, Any]]


@register
class Agent(Method):
    """A policy outside the run chooses the weights; when it is late, the weights stay.

    Example:
        >>> agent = method("agent", domains=domains, policy=lambda history: [0.5, 0.5])

    `policy` is a callable, an object with `act`, both of the history (a list, oldest first), or the
    path of a file that `mixcore.policy.Policy.save` wrote. It returns weights, a sequence or a
    mapping by name. An entry of the history is a dict of plain values:

        step      of the update
        weights   float[D], in force since the update before
        loss      [D], training loss, None where absent, or None without the signals
        val_loss  [D], the same of held-out data
        feedback  [F], scores, larger is better: signals.extra["feedback"], or minus the losses

    The policy runs in a thread of its own, one question at a time. Asked at one update, it is
    answered `lag` updates later; there the method waits `timeout` seconds at most. If no answer is
    there, the weights stay what they are (the method is silent: a controller decides nothing),
    `late` counts it, a warning says so, `note` too, and the answer is taken at the first update
    that finds it. lag=0 asks and waits; a slow agent wants
    lag=1, timeout=0, and then never holds up training.

    Decisions are repeatable as long as nothing is late. A question that is open when the state is
    saved is asked again, with the same history, when it is loaded.

    After Data Mixing Agent, whose policy is a small network trained by conservative Q-learning:
    `mixcore.policy.train_policy` trains one on recorded histories.

    Args:
        domains: What the weights are for.
        policy: See above.
        initial: The weights until the first answer; None: uniform.
        lag: Updates between question and answer.
        timeout: Seconds.
        feedback: "extra", "val_loss" or "loss": where feedback comes from.
        history_length: Entries kept, the last ones.
        on_error: What a policy that raises, or answers no weights, does: "raise" at the update
            where the answer is due, or "previous": the weights stay, `errors` counts it.
    """

    name = "agent"
    family = "dynamic externally guided"
    needs: tuple[str, ...] = ()
    cost = "the policy's own, in a thread"
    paper = "Yang, Liu, Ji et al. (2025), Data Mixing Agent, arXiv 2507.15640"
    state_fields = ("_history", "_question", "_age", "late", "errors")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        policy: Any,
        initial: Weights | None = None,
        lag: int = 0,
        timeout: float = 60.0,
        feedback: str = "extra",
        history_length: int = 1000,
        on_error: str = "raise",
    ) -> None:
        super().__init__(domains, initial=initial)
        self._act = _acting(policy)
        self.lag = whole("lag", lag)
        self.timeout = number("timeout", timeout, 0.0, threading.TIMEOUT_MAX)
        self.feedback = choice("feedback", feedback, ("extra", "val_loss", "loss"))
        if self.feedback != "extra":
            loss = ("loss_sum", "tokens")
            self.needs = loss if self.feedback == "loss" else ("val_loss",)
        self.history_length = whole("history_length", history_length, 1)
        self.on_error = choice("on_error", on_error, ("raise", "previous"))
        self.silent = True  # until there is an answer, whatever is in force stays in force
        self.late = 0
        self.errors = 0
        self.note = ""
        self._history: list[dict[str, Any]] = []
        self._question: list[dict[str, Any]] | None = None
        self._age = 0
        self._pending: _Answer | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """What the policy sees."""
        return [dict(entry) for entry in self._history]

    def _update(self, signals: Signals) -> Floats:
        self._history = [*self._history, self._entry(signals)][-self.history_length :]
        self.note, self.silent = "", True
        weights = self._weights
        if self._pending is not None:
            self._age += 1
            if self._age >= self.lag:
                weights = self._collect(weights)
        if self._pending is None:
            self._ask(self._history)
            if self.lag == 0:
                weights = self._collect(weights)
        return weights

    def _entry(self, signals: Signals) -> dict[str, Any]:
        in_force = self._weights if signals.weights is None else normalise(signals.weights)
        measured = signals.loss_sum is not None and signals.tokens is not None
        loss = _plain(signals.loss) if measured else None
        val_loss = None if signals.val_loss is None else _plain(signals.val_loss)
        entry = {
            "step": signals.step,
            "weights": in_force.tolist(),
            "loss": loss,
            "val_loss": val_loss,
            "feedback": None,
        }
        if self.feedback == "extra":
            if "feedback" in signals.extra:
                value = np.atleast_1d(np.array(signals.extra["feedback"], dtype=np.float64))
                if value.ndim != 1 or not np.isfinite(value).all():
                    raise ArgumentError(
                        f"signals.extra['feedback'] must be finite numbers, got {value.tolist()}"
                    )
                entry["feedback"] = value.tolist()
        else:
            now = loss if self.feedback == "loss" else val_loss
            assert now is not None  # `update` has checked what is needed
            last = self._history[-1]["feedback"] if self._history else [None] * len(now)
            # an absent domain is carried forward; before it was ever seen there is none
            scores = [old if x is None else -x for x, old in zip(now, last, strict=True)]
            entry["feedback"] = scores
        return entry

    def _ask(self, history: list[dict[str, Any]]) -> None:
        self._question, self._age = list(history), 0
        # a copy: the policy may do with it what it likes
        self._pending = _Answer(self._act, [dict(entry) for entry in history])

    def _collect(self, weights: Floats) -> Floats:
        """The answer if it is there in time, else the weights as they are."""
        pending = self._pending
        assert pending is not None
        if not pending.done.wait(self.timeout):
            self.late += 1
            self._say(
                f"the policy is late ({time.monotonic() - pending.since:.1f} s): "
                "the weights stay what they are"
            )
            return weights
        self._pending, self._question = None, None
        try:
            if pending.error is not None:
                raise pending.error
            answer = normalise(per_domain("the policy's answer", pending.value, self.domains))
        except Exception as e:
            # whatever a stranger's program raises
            if self.on_error == "raise":
                raise ArgumentError(f"the policy failed: {type(e).__name__}: {e}") from e
            self.errors += 1
            self._say(f"the policy failed ({type(e).__name__}: {e}): the weights stay")
            return weights
        self.silent = False
        return answer

    def _say(self, note: str) -> None:
        self.note = note
        logger.warning("%s", note)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; a question that was open is asked again."""
        super().load_state_dict(state)
        age, self._pending = self._age, None
        if self._question is not None:
            self._ask(self._question)
            self._age = age


class _Answer:
    """One question to the policy, in a daemon thread: a hanging one does not keep the run alive."""

    def __init__(self, act: Callable[[History], Any], history: History) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: Exception | None = None
        self.since = time.monotonic()

        def run() -> None:
            try:
                self.value = act(history)
            except Exception as e:  # raised again where the answer is collected
                self.error = e
            finally:
                self.done.set()

        threading.Thread(target=run, name="mixcore-agent", daemon=True).start()


def _acting(policy: Any) -> Callable[[History], Any]:
    if isinstance(policy, (str, Path)):
        from mixcore.policy import Policy

        return Policy.load(policy).act
    act = getattr(policy, "act", policy)
    if not callable(act):
        raise ArgumentTypeError(
            f"policy must be a callable, an object with act, or a path, got {policy!r}"
        )
    result: Callable[[History], Any] = act
    return result


def _plain(values: Floats) -> list[float | None]:
    return [None if np.isnan(x) else float(x) for x in values]
