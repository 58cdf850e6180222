"""What ranks say to each other: sums of integers, rank 0's answer, and whether they agree."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_BATCH, integer
from mixcore.errors import ArgumentError, LedgerError
from mixcore.ledger import Ledger

Ints = npt.NDArray[np.int64]

Reduce = Callable[[Ints], Ints]
"""Every rank calls it with an int64 array of one axis, gets the element-wise sum over the ranks."""

Broadcast = Callable[[bytes | None], bytes]
"""Every rank calls it; rank 0 with bytes, the others with None; all get rank 0's bytes."""

_FACTS = 7  # what each rank says of itself: step, fetched, failed, and a digest in four words


class Ranks:
    """This process among those that share a run's steps.

    Args:
        rank: 0 to world_size - 1.
        world_size: How many they are.
        reduce, broadcast: How they talk; may be left out where there is one.

    Raises:
        ValueError, TypeError: A bad argument, named with its value.
    """

    def __init__(
        self, rank: int, world_size: int, reduce: Reduce | None, broadcast: Broadcast | None
    ) -> None:
        self.world_size = integer("world_size", world_size, 1, MAX_BATCH)
        self.rank = integer("rank", rank, 0, self.world_size - 1)
        if self.world_size > 1 and (reduce is None or broadcast is None):
            raise ArgumentError(
                f"world_size={world_size} needs reduce and broadcast, such as torch_reduce() and "
                f"torch_broadcast() of mixcore.distributed"
            )
        self._reduce: Reduce = reduce or (lambda array: array)
        self._broadcast: Broadcast = broadcast or (lambda data: data or b"")

    def exchange(
        self, step: int, ledger: Ledger, failure: Exception | None, table: Ints
    ) -> tuple[Ints, list[int]]:
        """Add tables up, learn what each rank has fetched, and stop all if any two disagree.

        Args:
            step: At which this rank is.
            ledger: This rank's.
            failure: What went wrong here, if something did: raised here once the others know.
            table: int64, the same shape on every rank.

        Returns:
            The sum of the tables, and every rank's `ledger.fetched`.

        Raises:
            LedgerError: On all ranks: one failed, or steps or digests differ.
        """
        facts = np.zeros((self.world_size, _FACTS), np.int64)  # each rank fills its own row
        facts[self.rank, :3] = step, ledger.fetched, failure is not None
        facts[self.rank, 3:] = np.frombuffer(bytes.fromhex(ledger.digest), "<i8")
        both = self._reduce(np.concatenate([table.ravel(), facts.ravel()]))
        total, facts = both[: table.size], both[table.size :].reshape(facts.shape)
        if failure is not None:
            raise failure
        failed = np.flatnonzero(facts[:, 2]).tolist()
        if failed:
            raise LedgerError(f"rank {failed[0]} failed at step {step}: see its own message")
        odd = np.flatnonzero(facts[:, 0] != facts[0, 0]).tolist()
        if odd:
            raise LedgerError(
                f"ranks disagree: rank 0 is at step {facts[0, 0]}, rank {odd[0]} at step "
                f"{facts[odd[0], 0]}"
            )
        odd = np.flatnonzero((facts[:, 3:] != facts[0, 3:]).any(axis=1)).tolist()
        if odd:
            theirs = [facts[r, 3:].astype("<i8").tobytes().hex() for r in (0, odd[0])]
            raise LedgerError(
                f"ranks disagree at step {step}: the ledger of rank 0 has the digest {theirs[0]}, "
                f"that of rank {odd[0]} has {theirs[1]}"
            )
        return total.reshape(table.shape), facts[:, 1].tolist()

    def from_rank_0(self, step: int, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Rank 0's answer (plain values), on all ranks; what it raises, all raise."""
        data, failure = None, None
        if self.rank == 0:
            try:
                data = json.dumps(function()).encode()
            except Exception as e:
                failure = e
                data = json.dumps({"error": f"{type(e).__name__}: {e}"}).encode()
        answer: dict[str, Any] = json.loads(self._broadcast(data))
        if failure is not None:
            raise failure
        if "error" in answer:
            raise LedgerError(f"rank 0 failed at step {step}: {answer['error']}")
        return answer
