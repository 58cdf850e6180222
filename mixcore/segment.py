"""A segment: a run of positions with fixed shares and batch size, as the native plan derives it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_POSITION, integer

if TYPE_CHECKING:
    from mixcore.ledger import Ledger

SHARE_SUM = 1 << 62


@dataclass(frozen=True, slots=True)
class Segment:
    """What is in force from `start` up to `end`, and which decision says so.

    Attributes:
        start: First position.
        end: First position after it, or None for an open end.
        batch_size: Samples a step.
        kind: "piece" (as decided), "cap" (the one batch that draws exactly what capped domains have
            left), "redistributed" (as decided, without the domains that are used up). The
            sequential orders know only "piece": they pass over a used-up domain draw by draw.
        shares: uint64, one per domain known there; sum 2^62.
        base: int64, draws of each domain before `start`.
        bound: Samples by which a count can be off its ideal while these shares stay, from the
            shape of the weight tree; None in the sequential orders, which have no tree.
        decision: Index in `ledger.decisions`.
    """

    start: int
    end: int | None
    batch_size: int
    kind: str
    shares: npt.NDArray[np.uint64]
    base: npt.NDArray[np.int64]
    bound: float | None
    decision: int

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """The shares as float64 weights that sum to 1."""
        return self.shares / float(SHARE_SUM)


def segment_at(ledger: Ledger, position: int) -> Segment:
    """The segment that holds a position.

    Raises:
        ValueError, TypeError: `position` is no position.
        CapError: The run ends before it.
    """
    position = integer("position", position, 0, MAX_POSITION - 1)
    with ledger.lock:
        found = ledger._plan.explain(position)
        decision = ledger.piece_at(position).decision
    return Segment(
        start=found["start"],
        end=found["end"],
        batch_size=found["batch_size"],
        kind=found["kind"],
        shares=found["shares"],
        base=found["base"],
        bound=found["bound"] if ledger.order == "balanced" else None,
        decision=decision,
    )


def segments(ledger: Ledger, end: int) -> Iterator[Segment]:
    """The segments that hold the positions below `end`, in order."""
    position: int | None = 0
    while position is not None and position < end:
        segment = segment_at(ledger, position)
        yield segment
        position = segment.end
