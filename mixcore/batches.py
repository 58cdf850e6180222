"""One rank's micro-batches of keys, for a DataLoader's `batch_sampler`. Needs no torch.

The ledger is read here, in the process that iterates, and nowhere else: a worker is handed
(domain, epoch, sample) and knows no weights. So a change of weights never has to reach a worker,
and it makes no difference how many there are, how they were started, or how far they prefetch.

A global batch is cut as Megatron's MegatronPretrainingSampler cuts it (megatron/training/datasets/
data_samplers.py): micro-batch m of rank r is the m-th stretch of micro_batch_size * world_size
positions, and of that the r-th micro_batch_size. What all ranks have handed out is therefore always
a prefix of the run, and the whole state is one position.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mixcore._checks import MAX_BATCH, MAX_POSITION, integer
from mixcore.errors import ArgumentError, ArgumentTypeError, CapError, LedgerError
from mixcore.ledger import Ledger
from mixcore.sampler import Sampler

FORMAT = "mixcore.batches/1"


class Key(NamedTuple):
    """All that a worker needs to know of one sample."""

    position: int
    domain: int
    draw: int
    epoch: int
    sample: int


class MixBatchSampler:
    """Yields this rank's micro-batches, lists of `Key`, live from a ledger.

    Example:
        >>> batches = MixBatchSampler(ledger, 4, rank=rank, world_size=8)
        >>> loader = DataLoader(MixDataset(ledger, datasets), batch_sampler=batches, num_workers=2)
        >>> for batch in loader:
        ...     consumed += 4 * 8

    Before the first key of a global batch is handed out, all of that batch is marked as fetched in
    the ledger, so that no later decision can change it.

    One pass is under way at a time, because what a loader has fetched ahead of the trainer is lost
    with the loader's iterator, and only the trainer knows how much that was: to iterate anew after
    a `break`, say from where (`seek`), or restore a state.

    **With torchdata's StatefulDataLoader**, `loader.state_dict()` counts what the trainer received,
    whatever was prefetched, and `loader.load_state_dict` resumes there. Such a state fits a loader
    with the same number of workers. To change that, the world size or the micro-batch, hand it to
    `load_state_dict` of the sampler instead and begin with a new loader.

    **With a plain DataLoader**, save `state_dict(consumed)`; without an argument it counts
    what was handed out to workers, prefetched batches included.

    The ledger is not part of the state: save it too (`Ledger.save`, `attach` or `to_bytes`). It
    holds the decisions that are not yet in force.

    Args:
        ledger: Read live: what it appends is seen from the effective position on.
        micro_batch_size: Samples that this rank gets at a time.
        rank: This process's number among those that share the global batch (data-parallel rank).
        world_size: How many they are. micro_batch_size * world_size must divide every batch size.
        position: Where to begin: samples consumed by all ranks together.
        end: Stop at the last full global batch at or before this position (train_samples).

    Attributes:
        position: The first position that has not been handed out, over all ranks.

    Raises:
        ValueError, TypeError: A bad argument, named with its value; while iterating, a decision
            about batch_size that does not fit.
        CapError: While iterating: the run ends here, and the ledger says on_cap="error". With
            "stop", and where every domain is used up, iteration ends.

    A DataLoader with workers shows what is raised while iterating as soon as it would prefetch the
    micro-batch in question, not when the trainer comes to it.
    """

    def __init__(
        self,
        ledger: Ledger,
        micro_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        position: int = 0,
        end: int | None = None,
    ) -> None:
        self._sampler = Sampler(ledger)
        self.ledger = ledger
        self.micro_batch_size = integer("micro_batch_size", micro_batch_size, 1, MAX_BATCH)
        self.world_size = integer("world_size", world_size, 1, MAX_BATCH)
        self.rank = integer("rank", rank, 0, self.world_size - 1)
        self.end = None if end is None else integer("end", end, 0, MAX_POSITION)
        self._stride = self.micro_batch_size * self.world_size
        self._turn = 0
        self.seek(position)

    def seek(self, position: int) -> None:
        """Go on from `position` (samples consumed by all ranks); running iterators become invalid.

        Going back does not open positions to decisions again: the ledger's `fetched` stays.

        Raises:
            ValueError, TypeError: No micro-batch of this shape begins at `position`, or it does not
                fit the batch sizes from there on. The sampler is as it was.
        """
        position = integer("position", position, 0, MAX_POSITION - 1)
        with self.ledger.lock:
            self._check_cut(position)
            self._check_batch_sizes(position)
            first, size = self.ledger.batch_at(position)
            self.ledger.mark_fetched(position if position == first else first + size)
        self.position = position
        self._owner: _Pass | None = None
        self._turn += 1

    def __iter__(self) -> Iterator[list[Key]]:
        return _Pass(self)

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """The state from which the run goes on at `position`: small, of plain values.

        Args:
            position: Samples consumed by all ranks together; None: all that was handed out.

        Raises:
            ValueError, TypeError: `position` was not handed out, or is inside a micro-batch.
        """
        if position is None:
            position = self.position
        position = integer("position", position, 0, self.position)
        self._check_cut(position)
        return {
            "format": FORMAT,
            "position": position,
            "digest": self.ledger.digest_at(position),
            "micro_batch_size": self.micro_batch_size,  # these two bind nobody, see _stride
            "world_size": self.world_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: this class's, or a StatefulDataLoader's that drew from it.

        World size, rank and micro-batch may be others than in the saved run. Inside a global batch
        the samples not yet consumed must come out even: micro_batch_size * world_size must divide
        what has been consumed of it.

        Raises:
            LedgerError: The ledger decides the consumed positions otherwise than the state's did.
            ValueError, TypeError: It is no such state, or does not fit. The sampler is as it was.
        """
        state, batches_since = _unwrap(state)
        position = integer("state['position']", state["position"], 0, MAX_POSITION - 1)
        mine = self.ledger.digest_at(position)
        if mine != state["digest"]:
            raise LedgerError(
                f"the state at position {position} is of another ledger: it has the digest "
                f"{state['digest']}, this ledger has {mine} there"
            )
        self.seek(position + batches_since * _stride(state))

    def _check_cut(self, position: int) -> None:
        """Refuse a position at which no micro-batch of all ranks begins."""
        first, size = self.ledger.batch_at(position)
        if (position - first) % self._stride:
            raise ArgumentError(
                f"position must be one where a micro-batch begins, got {position}: that is "
                f"{position - first} samples into the global batch of {size} at {first}, and "
                f"micro_batch_size * world_size = {self.micro_batch_size} * {self.world_size} does "
                f"not divide these"
            )

    def _check_batch_sizes(self, position: int) -> None:
        """Refuse batch sizes that do not divide, from `position` on, decided for later included."""
        for piece in self.ledger.pieces_from(position):
            if self.end is not None and piece.start >= self.end:
                break
            if piece.batch_size % self._stride:
                raise ArgumentError(
                    f"micro_batch_size * world_size must divide every batch size, got "
                    f"{self.micro_batch_size} * {self.world_size} = {self._stride} for the batch "
                    f"size {piece.batch_size} in force from position {piece.start} on"
                )
        self._decisions_seen = self.ledger.num_decisions

    def _next(self) -> list[Key] | None:
        """The next micro-batch, or None at the end of the run."""
        with self.ledger.lock:  # no decision between reading a batch and marking it as fetched
            return self._next_locked()

    def _next_locked(self) -> list[Key] | None:
        limit = MAX_POSITION if self.end is None else self.end
        if self.position >= limit:
            return None
        if self.ledger.num_decisions != self._decisions_seen:
            self._check_batch_sizes(self.position)
        first, size = self.ledger.batch_at(self.position)
        if first + size > limit:
            return None
        end = self.ledger.end(first + size)
        if end is not None and end[0] < first + size:
            if self.ledger.on_cap == "error":
                raise CapError(
                    f"the run ends at position {end[0]}: domain {end[1]!r} has nothing left "
                    f"(on_cap='error')"
                )
            return None
        self.ledger.mark_fetched(first + size)
        start = self.position + self.rank * self.micro_batch_size
        picks = self._sampler.picks(start, self.micro_batch_size, threads=1)
        self.position += self._stride
        columns = (picks.domain, picks.draw, picks.epoch, picks.sample)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Key(start + i, *row) for i, row in enumerate(rows)]


class _Pass:
    """One pass over a MixBatchSampler. Its cursor is the sampler's: there is only one.

    A loader may make several of these and use one (torch's makes two), so a pass counts as begun
    with its first micro-batch.
    """

    def __init__(self, batches: MixBatchSampler) -> None:
        self._batches = batches
        self._turn = batches._turn
        self._finished = False

    def __iter__(self) -> "_Pass":
        return self

    def __next__(self) -> list[Key]:
        if self._finished:
            raise StopIteration
        batches = self._batches
        if batches._turn != self._turn or batches._owner not in (None, self):
            raise LedgerError(
                f"this MixBatchSampler has been iterated or moved elsewhere, up to position "
                f"{batches.position}: call seek(position) with what the trainer has consumed, "
                f"then iterate anew"
            )
        batches._owner = self
        keys = batches._next()
        if keys is None:
            self._finished = True
            batches._owner = None
            raise StopIteration
        return keys

    # StatefulDataLoader asks the iterator as well as the sampler, and hands each its own back: a
    # state that arrives here comes from a loader, which may be about to skip as many micro-batches
    # as the saved one had yielded since its last snapshot, whatever their size is now.

    def state_dict(self) -> dict[str, Any]:
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        batches = self._batches
        saved, _ = _unwrap(state)
        if _stride(saved) != batches._stride:
            raise ArgumentError(
                f"a DataLoader's state fits only the same micro_batch_size * world_size, got "
                f"{saved['micro_batch_size']} * {saved['world_size']} for "
                f"{batches.micro_batch_size} * {batches.world_size}: hand the state to "
                f"MixBatchSampler.load_state_dict instead and begin with a new DataLoader"
            )
        batches.load_state_dict(state)
        self._turn = batches._turn
        self._finished = False


def _stride(state: Mapping[str, Any]) -> int:
    """Positions that a micro-batch of all ranks covered when the state was taken."""
    micro = integer("state['micro_batch_size']", state["micro_batch_size"], 1, MAX_BATCH)
    return micro * integer("state['world_size']", state["world_size"], 1, MAX_BATCH)


def _unwrap(state: Any) -> tuple[Mapping[str, Any], int]:
    """A sampler's state, and the micro-batches consumed since it was taken.

    A StatefulDataLoader (torchdata 0.11) keeps the sampler's state under "_index_sampler_state",
    with workers inside its last snapshot and with the number of batches yielded since then.
    """
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(f"state must be a mapping, got {state!r}")
    since = 0
    if isinstance(state.get("_snapshot"), Mapping):
        name = "_steps_since_snapshot"
        since = integer(f"state[{name!r}]", state.get(name), 0, MAX_POSITION)
        state = state["_snapshot"].get("_main_snapshot")
    if isinstance(state, Mapping) and "_index_sampler_state" in state:
        state = state["_index_sampler_state"]
    found = state.get("format") if isinstance(state, Mapping) else state
    if found != FORMAT:
        raise ArgumentError(f"state must have the format {FORMAT!r}, got {found!r}")
    missing = {"position", "digest", "micro_batch_size", "world_size"} - state.keys()
    if missing:
        raise ArgumentError(f"state lacks {sorted(missing)}")
    return state, since
