"""The ledger: the append-only list of decisions that a run's mixture is a function of."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore import _core, checkpoints
from mixcore._checks import MAX_BATCH, MAX_POSITION, choice, integer, plain, text, weights
from mixcore.decision import Decision
from mixcore.domains import Domain, check_domains, stream_key
from mixcore.errors import ArgumentError, ArgumentTypeError, LedgerError
from mixcore.journal import Journal
from mixcore.loaded import check_loaded, check_same_domains
from mixcore.schedule import (
    Schedule,
    Weights,
    boundary,
    megatron_normalise,
    resolve,
    schedule_from,
)
from mixcore.segment import Segment, segment_at
from mixcore.timeline import Piece, Timeline, batch_sizes_after, pieces_of

ORDERS = ("balanced", "megatron", "random")
ON_CAP = ("redistribute", "stop", "error")
MAX_SHARES = 10**8


class Ledger:
    """Decisions, appended and never changed; with a position, all that the mixture depends on.

    Example:
        >>> domains = [Domain("web", size=1_000_000), Domain("code", size=50_000)]
        >>> ledger = Ledger(domains, weights=[0.7, 0.3], batch_size=512, seed=1234)
        >>> ledger.append(51_000, weights=[0.5, 0.5], reason="more code")
        51200

    Args:
        domains: The sources, names unique; more can be added later.
        weights: One a domain, in their order or by name; finite, >= 0, normalised here. 0 pauses
            a domain. May be left out if the schedule begins at 0.
        batch_size: Samples a step (the global batch), 1 to 2^31 - 1.
        seed: Any integer; the run's only source of randomness.
        order: "balanced", "megatron" or "random".
        on_cap: What happens where a domain reaches max_epochs: "redistribute" its share, "stop" at
            the last full batch, or "error".
        tokens_per_sample: Needed by schedules in tokens, and by reports.
        schedule: Weights known in advance (`piecewise`, `linear`, or their JSON form).
        notes: Plain values that belong to the run and that mixcore does not read; they are kept
            in the header and are not part of any digest.

    Attributes:
        lock: Held while a decision is checked and applied. A loader holds it from reading the
            ledger until what it read is marked as fetched, so that nothing changes in between.

    Raises:
        ValueError, TypeError: A bad argument, named with its value.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        weights: Weights | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        order: str = "balanced",
        on_cap: str = "redistribute",
        tokens_per_sample: int | None = None,
        schedule: Schedule | dict[str, Any] | Sequence[Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        domains = check_domains(domains)
        self._setup(seed, order, on_cap, tokens_per_sample, notes)
        if weights is None and schedule is None:
            raise ArgumentError("weights must be given unless the schedule begins at 0, got None")
        batch_size = integer("batch_size", batch_size, 1, MAX_BATCH)
        decision = self._decide(0, weights, batch_size, domains, schedule, False, "start", "")
        first = decision.schedule.steps[0] if decision.schedule else None
        if weights is None and (first is None or first.position or first.shares is None):
            raise ArgumentError("weights must be given unless the schedule begins at 0, got None")
        self._apply(decision)

    def _setup(
        self,
        seed: int,
        order: str,
        on_cap: str,
        tokens_per_sample: int | None,
        notes: Mapping[str, Any] | None,
    ) -> None:
        self.seed = integer("seed", seed, -(1 << 63), (1 << 64) - 1)
        self.order = choice("order", order, ORDERS)
        self.on_cap = choice("on_cap", on_cap, ON_CAP)
        if tokens_per_sample is not None:
            tokens_per_sample = integer("tokens_per_sample", tokens_per_sample, 1, MAX_POSITION)
        self.tokens_per_sample = tokens_per_sample
        self.notes = plain("notes", {} if notes is None else notes)
        self.lock = threading.RLock()
        self._domains: tuple[Domain, ...] = ()
        self._decisions: list[Decision] = []
        self._num_shares = 0
        self._fetched = 0
        self._plan = _core.Plan(order, stream_key(self.seed, "order", order), on_cap)
        self._journal: Journal | None = None  # the attached one
        self._journals: dict[Path, Journal] = {}
        root = {"seed": self.seed, "order": order, "on_cap": on_cap}
        self._timeline = Timeline(json.dumps(root, sort_keys=True))

    # What there is -------------------------------------------------------------------------

    @property
    def domains(self) -> tuple[Domain, ...]:
        """Every domain there ever was, in the order of their numbers."""
        return self._domains

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions, in the order in which they were made."""
        return tuple(self._decisions)

    @property
    def num_decisions(self) -> int:
        """How many decisions there are; unlike `decisions`, without a copy of them."""
        return len(self._decisions)

    def pieces_from(self, position: int) -> tuple[Piece, ...]:
        """The piece in force at a position and those after it."""
        return self._timeline.since(integer("position", position, 0, MAX_POSITION - 1))

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What the decisions amount to: spans of constant shares and batch size."""
        return tuple(self._timeline)

    @property
    def digest(self) -> str:
        """Digest of everything that decides the mixture, at any position."""
        return self._timeline.digest_at(MAX_POSITION)

    def digest_at(self, position: int) -> str:
        """Digest of what decides the positions below `position`; later decisions do not matter."""
        return self._timeline.digest_at(integer("position", position, 0, MAX_POSITION))

    def piece_at(self, position: int) -> Piece:
        """The piece in force at a position."""
        return self._timeline.at(integer("position", position, 0, MAX_POSITION - 1))

    def weights_at(self, position: int) -> npt.NDArray[np.float64]:
        """The decided weights in force at a position, float64, one per domain known there."""
        return self.piece_at(position).shares / float(1 << 62)

    def batch_at(self, position: int) -> tuple[int, int]:
        """The first position and the size of the batch that holds a position."""
        position = integer("position", position, 0, MAX_POSITION - 1)
        piece = self._timeline.at(position)
        first = position - (position - piece.start) % piece.batch_size
        return first, piece.batch_size

    def position_of_step(self, step: int) -> int:
        """First position of the step-th batch (0-based) of the run."""
        return self._timeline.position_of_step(integer("step", step, 0, MAX_POSITION))

    def step_of_position(self, position: int) -> int:
        """Number of the batch that holds a position."""
        return self._timeline.step_of_position(integer("position", position, 0, MAX_POSITION))

    def explain(self, position: int) -> Segment:
        """What is in force at a position, from where to where, and by which decision."""
        return segment_at(self, position)

    def end(self, horizon: int = MAX_POSITION) -> tuple[int, str] | None:
        """Where the run must end at or before `horizon`: (position, domain to blame), or None.

        The domain is "" where all domains with a positive weight are used up together.
        """
        found = self._plan.find_end(integer("horizon", horizon, 0, MAX_POSITION))
        if found is None:
            return None
        position, index = found
        return position, self._domains[index].name if index >= 0 else ""

    def cap_events(self, horizon: int) -> list[tuple[int, str]]:
        """Caps reached at or before `horizon`: (first position without the domain, its name)."""
        events = self._plan.cap_events(integer("horizon", horizon, 0, MAX_POSITION))
        return [(p, self._domains[d].name) for p, d in events]

    @property
    def memory_bytes(self) -> int:
        """Bytes that the native plan holds; independent of the number of samples."""
        return self._plan.memory_bytes()

    # Fetched positions ------------------------------------------------------------------------

    @property
    def fetched(self) -> int:
        """Positions below this one have been handed out; no change may take effect there."""
        return self._fetched

    def mark_fetched(self, position: int) -> None:
        """Record that every position below `position` has been handed out (loaders call this)."""
        position = integer("position", position, 0, MAX_POSITION)
        with self.lock:
            self._fetched = max(self._fetched, position)

    # Decisions --------------------------------------------------------------------------------

    def append(
        self,
        position: int,
        weights: Weights | None = None,
        *,
        batch_size: int | None = None,
        add: Sequence[Domain] = (),
        reason: str = "",
        author: str = "",
        schedule: Schedule | dict[str, Any] | Sequence[Any] | None = None,
        replace_future: bool = False,
    ) -> int:
        """Decide something from a position on; what was decided for earlier positions stays.

        Example:
            >>> ledger.append(51_000, weights={"web": 0.5, "code": 0.5}, reason="more code")
            51200

        Args:
            position: Rounded up to the next batch boundary of the batch size in force there.
            weights: New weights, in the order of the domains or by name (a mapping names every
                domain, added ones included); None keeps the shares in force. With added domains
                weights are required.
            batch_size: New samples a step; None keeps it.
            add: New domains; they get the next numbers.
            reason: Why, for people.
            author: By whom, for people.
            schedule: Weights for later positions, known now.
            replace_future: Drop decisions dated after this position instead of raising. Later
                changes of nothing but the batch size do not contradict new weights: they stay.

        Returns:
            The effective position.

        Raises:
            ValueError, TypeError: A bad argument; the ledger is as it was.
            LedgerError: The change would contradict a later-dated decision, take effect where
                samples have already been fetched, or lie beyond the end of the run.
        """
        position = integer("position", position, 0, MAX_POSITION - 1)
        if weights is None and batch_size is None and schedule is None:
            raise ArgumentError("append needs weights, batch_size or a schedule; all are None")
        if batch_size is not None:
            batch_size = integer("batch_size", batch_size, 1, MAX_BATCH)
        dropping = bool(replace_future)
        with self.lock:
            nothing = isinstance(add, (tuple, list)) and not add
            added = () if nothing else check_domains(add, self._domains, "add")
            if added and weights is None:
                raise ArgumentError(f"weights must be given with add={[d.name for d in added]}")
            effective = self._effective(position)
            decision = self._decide(
                effective, weights, batch_size, added, schedule, dropping, reason, author
            )
            self._commit(self._keeping_batch_sizes(decision))
        return effective

    def _append_shares(
        self,
        position: int,
        shares: npt.NDArray[np.uint64],
        floats: npt.NDArray[np.float64] | None = None,
        *,
        reason: str = "",
        author: str = "",
        replace_future: bool = False,
    ) -> int:
        """`append` for shares that another rank has computed: no float is rounded here.

        Args:
            position: As in `append`.
            shares: uint64, one a domain, sum 2^62.
            floats: Order megatron alone: the weights it decides by, from the same rank.
            reason: Why, for people.
            author: By whom, for people.
            replace_future: As in `append`.
        """
        position = integer("position", position, 0, MAX_POSITION - 1)
        if not isinstance(shares, np.ndarray) or shares.dtype != np.uint64:
            raise ArgumentTypeError(f"shares must be a uint64 array, got {shares!r}")
        if (floats is None) == (self.order == "megatron"):
            raise ArgumentError(f"floats do not fit order {self.order!r}, got {floats!r}")
        with self.lock:
            known = len(self._domains)
            if shares.shape != (known,) or sum(shares.tolist()) != 1 << 62:
                raise ArgumentError(
                    f"shares must be {known} integers that sum to 2^62, got {shares.tolist()}"
                )
            decision = Decision(
                self._effective(position),
                shares,
                floats,
                replace_future=replace_future,
                reason=text("reason", reason),
                author=text("author", author),
            )
            self._commit(self._keeping_batch_sizes(decision))
        return decision.position

    def _keeping_batch_sizes(self, decision: Decision) -> Decision:
        """The decision, with the batch sizes already decided for later where it says nothing of it.

        Only weights given to the known domains, before changes of the batch size alone, do that: it
        is the one later-dated decision that new weights do not contradict.
        """
        silent = decision.batch_size is None and decision.schedule is None and not decision.add
        if decision.shares is None or decision.replace_future or not silent:
            return decision
        kept = batch_sizes_after(self.pieces_from(decision.position))
        return replace(decision, schedule=kept, replace_future=True) if kept else decision

    def _effective(self, position: int) -> int:
        """The batch boundary at or after position; refused where samples have been fetched."""
        piece = self.piece_at(position)
        effective = boundary(piece.start, piece.batch_size, position)
        integer("position", effective, 0, MAX_POSITION - 1)
        if effective < self._fetched:
            raise LedgerError(
                f"a change at position {effective} comes too late: positions below "
                f"{self._fetched} have already been fetched"
            )
        return effective

    def _commit(self, decision: Decision) -> None:
        """Apply a decision unless later ones or the end of the run contradict it."""
        self._check_future(decision)
        end = self.end(decision.position)
        if end is not None and end[0] < decision.position:
            raise LedgerError(
                f"position {decision.position} is beyond the end of the run at {end[0]}: "
                f"{nothing_left(end[1])}"
            )
        self._check_caps(decision)
        self._apply(decision)

    def _check_caps(self, decision: Decision) -> None:
        """Refuse weights for which nothing could be drawn: their domains are used up."""
        if all(d.cap is None for d in self._domains):
            return
        shares = decision.shares
        if shares is None:
            shares = self.piece_at(decision.position).shares
        counts = self._plan.counts(decision.position).tolist()
        wanted = [d for d, s in enumerate(shares.tolist()) if s and d < len(counts)]
        spent = [
            self._domains[d]
            for d in wanted
            if (cap := self._domains[d].cap) is not None and counts[d] >= cap
        ]
        only = len(spent) == np.count_nonzero(shares)
        if only or (spent and self.on_cap != "redistribute"):
            raise LedgerError(
                f"weights at position {decision.position} ask for domain {spent[0].name!r}, which "
                f"has reached its cap of {spent[0].cap} samples (on_cap={self.on_cap!r})"
            )

    def _decide(
        self,
        position: int,
        values: Weights | None,
        batch_size: int | None,
        add: tuple[Domain, ...],
        schedule: object,
        replace_future: bool,
        reason: str,
        author: str,
    ) -> Decision:
        """Turn checked arguments into a decision; nothing is changed yet."""
        known = [d.name for d in (*self._domains, *add)]
        if self.order == "megatron":
            capped = [d.name for d in add if d.cap is not None]
            if capped:
                raise ArgumentError(f"order 'megatron' has no caps, but {capped} have max_epochs")
        shares = floats = None
        if values is not None:
            floats = weights("weights", values, known)
            shares = _core.shares(floats)
            floats = megatron_normalise(floats) if self.order == "megatron" else None
        resolved = None
        if schedule is not None:
            made = schedule_from(schedule)
            resolved = resolve(made, known, self.tokens_per_sample, self.order)
            if resolved.steps[0].position < position:
                raise ArgumentError(
                    f"schedule.points[0].at must be at or after position {position}, got position "
                    f"{resolved.steps[0].position}"
                )
        return Decision(
            position,
            shares,
            floats,
            batch_size,
            add,
            resolved,
            replace_future,
            text("reason", reason),
            text("author", author),
        )

    def _check_future(self, decision: Decision) -> None:
        later = self._timeline.first_after(decision.position)
        if later is not None and not decision.replace_future:
            raise LedgerError(
                f"a change at position {decision.position} is dated before the one already decided "
                f"for position {later}; pass replace_future=True to drop what was decided after"
            )

    def _apply(self, decision: Decision) -> None:
        """Add a decision: derive its pieces and hand them to the native plan.

        All that can be wrong with it is found before it is written to the attached file, and it is
        written before anything changes. Threads that ask meanwhile see the old plan or the new one.
        """
        current = self._timeline.at(decision.position) if len(self._timeline) else None
        new: list[Piece] = []
        kept = self._num_shares
        for piece in pieces_of(decision, current):
            if not new:
                kept -= self._timeline.shares_from(piece.start)
            new.append(piece)
            self._check_size(kept + len(new) * len(piece.shares))  # before all of them are built
        domains = self._domains + decision.add
        added = [
            (d.name, d.key(self.seed), d.size or 0, -1 if d.cap is None else d.cap)
            for d in decision.add
        ]
        native = []
        for piece in new:
            shares, floats = piece.shares, piece.floats
            missing = len(domains) - len(shares)
            if missing:
                shares = np.concatenate([shares, np.zeros(missing, np.uint64)])
                floats = None if floats is None else np.concatenate([floats, np.zeros(missing)])
            native.append((piece.start, piece.batch_size, shares, floats))
        if self._journal is not None:
            self._journal.append(decision)  # on disk before it is in force
        self._domains = domains  # before the plan can answer with their numbers
        self._plan.extend(added, native)
        self._decisions.append(decision)
        self._timeline.replace(new, domains, len(self._decisions) - 1)
        self._num_shares = kept + sum(len(piece.shares) for piece in new)

    def _check_size(self, total: int) -> None:
        if total > MAX_SHARES:
            raise LedgerError(f"a ledger holds at most {MAX_SHARES} shares in all, got {total}")

    # Files ------------------------------------------------------------------------------------

    def header(self) -> dict[str, Any]:
        """First line of the ledger file, without its hash."""
        header = {
            "format": "mixcore.ledger/1",
            "seed": self.seed,
            "order": self.order,
            "on_cap": self.on_cap,
            "tokens_per_sample": self.tokens_per_sample,
        }
        return header | ({"notes": self.notes} if self.notes else {})

    def save(self, path: str | Path) -> None:
        """Write the ledger, or the decisions that the file at `path` lacks; fsynced.

        An incomplete last line of the file (a crash while writing) is moved to
        `<path>.incomplete` first. A file of another run is refused and stays as it is. A
        sequential order's checkpoints go to `<path>.checkpoints.npz`.
        """
        with self.lock:
            self._synced(path)
            checkpoints.save(self, path)

    def attach(self, path: str | Path) -> None:
        """Save, and from now on write each decision to the file before it is in force."""
        with self.lock:
            self._journal = self._synced(path)

    def _synced(self, path: str | Path) -> Journal:
        """The journal of a path, brought up to date; kept, so that it need not read all again."""
        new = Journal(path, self.header())
        journal = self._journals.setdefault(new.path, new)
        journal.sync(self._decisions)
        return journal

    @classmethod
    def load(cls, path: str | Path, domains: Sequence[Domain] | None = None) -> "Ledger":
        """Read a ledger file.

        Args:
            path: What `save` wrote.
            domains: If given, they must be the ledger's own: same names, sizes, caps, order.

        Raises:
            LedgerError: The file is damaged, foreign, or of other domains; it stays as it is.
        """
        ledger = cls._rebuild(*Journal.read(path), domains, str(path))
        checkpoints.load(ledger, path)
        return ledger

    def to_bytes(self) -> bytes:
        """The ledger file's content, for checkpoints and other processes."""
        return Journal.dumps(self.header(), self.decisions)

    @classmethod
    def from_bytes(cls, data: bytes, domains: Sequence[Domain] | None = None) -> "Ledger":
        """The ledger whose `to_bytes` this is."""
        if not isinstance(data, bytes):
            raise ArgumentTypeError(f"data must be bytes, got {data!r} ({type(data).__name__})")
        return cls._rebuild(*Journal.loads(data, "these bytes"), domains, "these bytes")

    def __reduce__(self) -> tuple[Any, ...]:
        with self.lock:
            return _unpickle, (self.to_bytes(), self._fetched)

    @classmethod
    def _rebuild(
        cls,
        header: dict[str, Any],
        decisions: list[Decision],
        domains: Sequence[Domain] | None,
        where: str,
    ) -> "Ledger":
        ledger = cls.__new__(cls)
        try:
            ledger._setup(
                header["seed"],
                header["order"],
                header["on_cap"],
                header["tokens_per_sample"],
                header.get("notes"),
            )
        except (KeyError, ValueError, TypeError) as e:
            raise LedgerError(f"{where}: the header is wrong: {e}") from None
        for number, decision in enumerate(decisions):
            try:
                check_loaded(ledger, decision)
                ledger._apply(decision)
            except (LedgerError, ValueError, TypeError) as e:
                raise LedgerError(f"{where}: line {number + 2}: {e}") from None
        if domains is not None:
            check_same_domains(ledger.domains, domains, where)
        return ledger


def nothing_left(domain: str) -> str:
    """Why a run ends, in words, from the domain that `Ledger.end` blames."""
    if domain:
        return f"domain {domain!r} has nothing left"
    return "every domain with a positive weight is used up"


def _unpickle(data: bytes, fetched: int) -> Ledger:
    ledger = Ledger.from_bytes(data)
    ledger.mark_fetched(fetched)
    return ledger
