"""The controller: lets a method steer a running job, with the same decision on every rank."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_BATCH, MAX_POSITION, integer
from mixcore.accumulate import COLUMNS, Accumulator, Window, table_from_plain
from mixcore.decider import OBSERVED, Decider
from mixcore.decision_log import DecisionLog
from mixcore.errors import ArgumentError, ArgumentTypeError, LedgerError
from mixcore.groups import method_of
from mixcore.guards import Guard, guards_from
from mixcore.ledger import Ledger
from mixcore.methods.base import Method
from mixcore.ranks import Broadcast, Ranks, Reduce
from mixcore.resume import drop_later
from mixcore.signals import ARRAYS, HOW

if TYPE_CHECKING:
    from mixcore.config import Config

Ints = npt.NDArray[np.int64]

FORMAT = "mixcore.controller/1"
OWN = ("draws", "total_draws", "weights")  # signals that follow from the ledger


class Controller:
    """Measures, asks a method at every `update_every` steps, and appends what it says.

    Example:
        >>> controller = Controller(ledger, method, update_every=100, num_workers=2)
        >>> for batch in loader:
        ...     losses = train_step(batch)                   # one sum of token losses a sample
        ...     controller.observe(batch.domain_ids, losses, batch.tokens)
        ...     consumed += batch_size
        ...     controller.step(consumed)

    At an update all ranks add up what they observed, rank 0 asks the method and applies the
    guards, and broadcasts integer shares; every rank appends them to its own ledger, and digests
    are compared. Floats that ought to be equal on all ranks are not relied on.

    **When it takes effect.** A decision made after step s is in force from step s + lag_steps on.
    The lag is declared, so that the order of samples does not depend on who prefetched how much:
    give `lag_steps` itself to keep it the same with another number of workers. A lag that is
    too short for what has been fetched is refused, on all ranks; it is never applied in part.

    Args:
        ledger: This rank's own; the same decisions on every rank. To keep it in a file, `attach` it
            on rank 0.
        method: Dynamic; built for the ledger's domains. Rank 0's is the one that is asked.
        update_every: Steps between two decisions; None: the method's own period.
        lag_steps: Steps from a decision to its effect; None: `default_lag` of the next three.
        num_workers: Of the DataLoader.
        prefetch_factor: Micro-batches each worker fetches ahead.
        micro_batches: Micro-batches of this rank in one step (gradient accumulation steps).
        guards: Limits on what the method may say, applied in order (`guards_from` a configuration).
        train_samples: Length of the run in samples; the repetition cap needs it.
        supply: Signals that the controller cannot measure: name -> callable without arguments,
            called on every rank at each update (it may communicate); rank 0's answers count.
        rank: This process's number among those that share the run's steps, 0 to world_size - 1.
        world_size: How many they are. Ranks that see no losses (pipeline stages) just observe
            nothing.
        reduce: Adds int64 arrays up over the ranks; needed if world_size > 1.
        broadcast: Hands rank 0's bytes to all; needed if world_size > 1.
        log: A file that rank 0 writes a line of JSON to at every update.
        author: Author of the decisions in the ledger; None: "mixcore.<name of the method>".

    Attributes:
        window: What all ranks together observed up to the last update, on every rank; None before.

    Raises:
        ValueError, TypeError: A bad argument; the method is static, of other domains, or needs a
            signal that nobody supplies.
    """

    def __init__(
        self,
        ledger: Ledger,
        method: Method,
        update_every: int | None = None,
        *,
        lag_steps: int | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        micro_batches: int = 1,
        guards: Sequence[Guard] = (),
        train_samples: int | None = None,
        supply: Mapping[str, Callable[[], Any]] | None = None,
        rank: int = 0,
        world_size: int = 1,
        reduce: Reduce | None = None,
        broadcast: Broadcast | None = None,
        log: str | Path | None = None,
        author: str | None = None,
    ) -> None:
        if not isinstance(ledger, Ledger):
            raise ArgumentTypeError(f"ledger must be a mixcore.Ledger, got {ledger!r}")
        if not isinstance(method, Method):
            raise ArgumentTypeError(f"method must be one of mixcore.method(...), got {method!r}")
        if not method.dynamic:
            raise ArgumentError(
                f"method {method.name!r} is static, there is nothing to update: give its weights() "
                f"to the ledger"
            )
        if update_every is None:
            update_every = method.update_every
        if update_every is None:
            raise ArgumentError(f"update_every must be given: method {method.name!r} has no period")
        default = default_lag(num_workers, prefetch_factor, micro_batches)
        self.ledger, self.method = ledger, method
        self.update_every = integer("update_every", update_every, 1, MAX_BATCH)
        self.lag_steps = integer(
            "lag_steps", default if lag_steps is None else lag_steps, 0, MAX_BATCH
        )
        if train_samples is not None:
            integer("train_samples", train_samples, 1, MAX_POSITION)
        self._ranks = Ranks(rank, world_size, reduce, broadcast)
        self._supply = dict(supply or {})
        self._log = None if log is None or rank else DecisionLog(log)
        author = f"mixcore.{method.name}" if author is None else author
        self._decider = Decider(ledger, method, guards, train_samples, author)
        self._sums = Accumulator(len(ledger.domains))
        self._position: int | None = None  # consumed at the last call of step
        self._step = 0
        self._since = 0  # position at the last update
        self._met = False  # the other ranks
        self.window: Window | None = None
        self._check()

    @classmethod
    def from_config(
        cls, config: "Config", ledger: Ledger, *, method: Method | None = None, **options: Any
    ) -> "Controller":
        """The controller that a `mix.yaml` asks for.

        Example:
            >>> config = load_config("mix.yaml")
            >>> controller = Controller.from_config(config, ledger, num_workers=2)

        Args:
            config: Says method, update_every, lag_steps, guards and train_samples.
            ledger: This rank's.
            method: Instead of building the one that the configuration names.
            options: As those of Controller; they take precedence.

        Raises:
            ValueError, TypeError: There is no method, or it does not fit.
        """
        if config.method is None:
            raise ArgumentError(f"{config.file} has no method: there is nothing to control")
        wanted = config.method
        if method is None:
            method = method_of(config, ledger.domains)
        given = {
            "update_every": wanted.update_every,
            "lag_steps": wanted.lag_steps,
            "guards": guards_from(config.guards),
            "train_samples": config.train_samples,
        }
        return cls(ledger, method, **(given | options))

    def _check(self) -> None:
        """Find at construction what would otherwise fail at the first update."""
        self._check_domains()
        known = {*ARRAYS, "embeddings", "extra"} - {*OWN}
        for name, function in self._supply.items():
            if name not in known:
                raise ArgumentError(f"supply names {name!r}; known signals: {sorted(known)}")
            if not callable(function):
                raise ArgumentTypeError(f"supply[{name!r}] must be callable, got {function!r}")
        for need in self.method.needs:
            if need not in (*OWN, *OBSERVED, *self._supply):
                raise ArgumentError(
                    f"method {self.method.name!r} needs the signal {need}, which nobody supplies: "
                    f"give the controller supply={{{need!r}: a callable}}, or {HOW[need]}"
                )

    def _check_domains(self) -> None:
        mine = [d.name for d in self.ledger.domains]
        theirs = [d.name for d in self.method.domains]
        if mine != theirs:
            raise ArgumentError(
                f"method {self.method.name!r} is for the domains {theirs}, the ledger has {mine}: "
                f"build a method and a controller for these"
            )

    # Every step -------------------------------------------------------------------------------

    def observe(self, domain_ids: Any, loss_sums: Any, tokens: Any) -> None:
        """Add what one micro-batch of this rank showed; does not wait for a GPU.

        Args:
            domain_ids: Domain numbers, one a sample.
            loss_sums: Sum of the token losses of each sample, nats, without auxiliary losses.
            tokens: Number of tokens each of these sums is over.

        Raises:
            ValueError, TypeError: As `Accumulator.observe`.
        """
        self._sums.observe(domain_ids, loss_sums, tokens)

    def step(self, position: int) -> int | None:
        """Called by every rank after each optimizer step; decides where an update is due.

        Args:
            position: Samples consumed so far, over all ranks.

        Returns:
            The position from which a new decision is in force, or None: none was made.

        Raises:
            ValueError, TypeError: `position` is not one step after the last one; on all ranks:
                the method refused, or nothing was observed.
            LedgerError: On all ranks: they disagree (with both digests), lag_steps is too short,
                or one of them failed.
        """
        position = self._advance(position)
        if self._step % self.update_every:
            return None
        return self._update(position)

    def skip(self, position: int) -> None:
        """In place of `step`, on every rank, for a batch that was skipped: no update, even if due.

        Args:
            position: Samples consumed so far, that batch included.

        Raises:
            ValueError, TypeError: `position` is not one step after the last one.
        """
        self._advance(position)

    def _advance(self, position: int) -> int:
        position = integer("position", position, 1, MAX_POSITION - 1)
        if self._position is None:
            first, size = self.ledger.batch_at(position - 1)
            if first + size != position:
                raise ArgumentError(
                    f"position must be at the end of a batch, got {position}; the batch there is "
                    f"[{first}, {first + size})"
                )
            self._step = self.ledger.step_of_position(first) + 1
            self._since = first
        else:
            due = self._position + self.ledger.batch_at(self._position)[1]
            if position != due:
                raise ArgumentError(
                    f"position must be {due}, one step after the last one ({self._position}), got "
                    f"{position}: call step after every optimizer step, load_state_dict on resume"
                )
            self._step += 1
        self._position = position
        return position

    # An update --------------------------------------------------------------------------------

    def _update(self, position: int) -> int | None:
        supplied: dict[str, Any] = {}

        def measure() -> Ints:
            self._check_domains()
            supplied.update({name: function() for name, function in self._supply.items()})
            return self._sums.table()

        table, fetched = self._gather(measure)
        effective = position
        for _ in range(self.lag_steps):
            effective += self.ledger.batch_at(effective)[1]
        self._check_lag(position, effective, fetched)
        window = self.window = Window(table)
        record: dict[str, Any] = {}  # stays on rank 0

        def ask() -> dict[str, Any]:
            answer = self._decider.decide(
                self._step, self._since, position, effective, window, supplied
            )
            record.update(answer.pop("record"))
            return answer

        answer = self._ranks.from_rank_0(self._step, ask)
        made = answer["shares"] is not None
        failure: Exception | None = None
        try:
            if made:
                self._append(effective, answer)
            if self._log is not None:
                self._log.write(record | {"digest": self.ledger.digest})
        except Exception as e:
            failure = e
        self._exchange(failure, table[:0])
        self._sums.clear()
        self._since = position
        return effective if made else None

    def _gather(self, measure: Callable[[], Ints]) -> tuple[Ints, list[int]]:
        """The sum of all ranks' tables, and what each has fetched."""
        # Of one size, whatever the ledger says: ranks that differ must still understand each other.
        table = np.zeros((self._sums.num_domains, len(COLUMNS)), np.int64)
        if not self._met:
            self._exchange(None, table[:0])
            self._met = True
        failure: Exception | None = None
        try:
            table = measure()
        except Exception as e:  # the others must not wait for this rank for ever
            failure = e
        return self._exchange(failure, table)

    def _exchange(self, failure: Exception | None, table: Ints) -> tuple[Ints, list[int]]:
        return self._ranks.exchange(self._step, self.ledger, failure, table)

    def _check_lag(self, position: int, effective: int, fetched: Sequence[int]) -> None:
        furthest = max(fetched)
        if effective >= furthest:
            return
        needed, reached = 0, position
        while reached < furthest:
            reached += self.ledger.batch_at(reached)[1]
            needed += 1
        raise LedgerError(
            f"lag_steps={self.lag_steps} is too short: what is decided after step {self._step} "
            f"would take effect at position {effective}, but rank {fetched.index(furthest)} has "
            f"already fetched the positions below {furthest}; this needs lag_steps >= {needed} "
            f"(num_workers * prefetch_factor micro-batches, plus what the framework looks ahead)"
        )

    def _append(self, effective: int, answer: Mapping[str, Any]) -> None:
        floats = answer["floats"]
        self.ledger._append_shares(
            effective,
            np.array(answer["shares"], dtype=np.uint64),
            None if floats is None else np.array([float.fromhex(x) for x in floats]),
            reason=answer["reason"],
            author=answer["author"],
        )

    # Saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on bit for bit: plain Python values.

        Every rank must call it (what all have observed is added up), and all get the same: any one
        of them may be saved. Changes decided but not yet in force are in the ledger, which is saved
        by itself (`Ledger.save`, `attach` or `to_bytes`); here is its digest.
        """
        table, _ = self._gather(self._sums.table)
        method = self._ranks.from_rank_0(self._step, self.method.state_dict)
        return {
            "format": FORMAT,
            "update_every": self.update_every,
            "lag_steps": self.lag_steps,
            "position": self._position,
            "step": self._step,
            "since": self._since,
            "accumulated": table.tolist(),
            "method": method,
            "ledger": {"decisions": self.ledger.num_decisions, "digest": self.ledger.digest},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the number of ranks may be another.

        The ledger must be the one of that moment, or a later one of the same run (its file went on
        until the crash): what was decided after that moment is then dropped, on the record, and
        decided anew. All ranks must have loaded the same. Call this before a loader fetches.

        Raises:
            ValueError, TypeError: It is no such state, or of another method, update_every or
                lag_steps (both are part of the run).
            LedgerError: The ledger is not the run's.
        """
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, Mapping) else state
            raise ArgumentError(f"state must have the format {FORMAT!r}, got {found!r}")
        missing = {"position", "step", "since", "accumulated", "method", "ledger"} - state.keys()
        if missing:
            raise ArgumentError(f"state lacks {sorted(missing)}")
        for key in ("update_every", "lag_steps"):
            if state.get(key) != getattr(self, key):
                raise ArgumentError(
                    f"state has {key}={state.get(key)!r}, this controller {getattr(self, key)}: "
                    f"give the controller {key}={state.get(key)!r} to go on with the same run"
                )
        position = state["position"]
        if position is not None:
            position = integer("state['position']", position, 1, MAX_POSITION - 1)
        step = integer("state['step']", state["step"], 0, MAX_POSITION)
        since = integer("state['since']", state["since"], 0, MAX_POSITION)
        table = table_from_plain(state["accumulated"], len(self.ledger.domains))
        drop_later(self.ledger, state["ledger"]["decisions"], state["ledger"]["digest"], step)
        self.method.load_state_dict(state["method"])
        self._sums.clear()
        if self._ranks.rank == 0:  # it is the sum over all ranks
            self._sums.load(table)
        self._position, self._step, self._since = position, step, since


def default_lag(num_workers: int, prefetch_factor: int = 2, micro_batches: int = 1) -> int:
    """Steps that a DataLoader with workers can be ahead, plus one for a framework that looks ahead.

    Example:
        >>> default_lag(num_workers=4, prefetch_factor=2, micro_batches=4)
        3
    """
    integer("num_workers", num_workers, 0, MAX_BATCH)
    integer("prefetch_factor", prefetch_factor, 1, MAX_BATCH)
    integer("micro_batches", micro_batches, 1, MAX_BATCH)
    return -(-num_workers * prefetch_factor // micro_batches) + 1
