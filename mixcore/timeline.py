"""The timeline: what decisions amount to, in pieces of constant shares and batch size."""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_POSITION, integer
from mixcore.decision import Decision
from mixcore.domains import Domain
from mixcore.schedule import ResolvedSchedule, Step


@dataclass(frozen=True, eq=False)
class Piece:
    """From `start` on: these shares and this batch size. What the decisions amount to."""

    start: int
    batch_size: int
    shares: npt.NDArray[np.uint64]
    floats: npt.NDArray[np.float64] | None
    decision: int
    digest: bytes


class _State(NamedTuple):
    """The first `num` entries of lists whose later entries are not in force yet."""

    pieces: list[Piece]
    starts: list[int]  # of the pieces, for searching
    steps: list[int]  # batches before each piece
    num: int

    def number(self, position: int) -> int:
        """Number of the piece in force at a position."""
        return bisect_right(self.starts, position, 0, self.num) - 1


class Timeline:
    """Pieces in the order of their positions, each with the digest of all up to it.

    A question reads `_state` once and `replace` swaps it in one assignment, so a thread that asks
    while another appends gets the old answer or the new one. What a state shows never changes:
    entries are added behind it, or to copies of its lists.

    Args:
        root: What every digest of this run starts from: seed, order, cap policy.
    """

    def __init__(self, root: str) -> None:
        self._root = hashlib.sha256(root.encode()).digest()
        self._state = _State([], [], [], 0)

    def __iter__(self) -> Iterator[Piece]:
        s = self._state
        return iter(s.pieces[: s.num])

    def __len__(self) -> int:
        return self._state.num

    def digest_at(self, position: int) -> str:
        """Digest of the pieces that begin before a position."""
        s = self._state
        index = bisect_left(s.starts, position, 0, s.num)
        return (s.pieces[index - 1].digest if index else self._root).hex()

    def at(self, position: int) -> Piece:
        """The piece in force at a position."""
        s = self._state
        return s.pieces[s.number(position)]

    def since(self, position: int) -> tuple[Piece, ...]:
        """The piece in force at a position and those after it."""
        s = self._state
        return tuple(s.pieces[s.number(position) : s.num])

    def first_after(self, position: int) -> int | None:
        """Start of the first piece after a position, if there is one."""
        s = self._state
        index = s.number(position) + 1
        return s.starts[index] if index < s.num else None

    def shares_from(self, position: int) -> int:
        """How many shares the pieces at or after a position hold."""
        s = self._state
        index = bisect_left(s.starts, position, 0, s.num)
        return sum(len(p.shares) for p in s.pieces[index : s.num])

    def position_of_step(self, step: int) -> int:
        """First position of the step-th batch (0-based)."""
        s = self._state
        index = bisect_right(s.steps, step, 0, s.num) - 1
        piece = s.pieces[index]
        position = piece.start + (step - s.steps[index]) * piece.batch_size
        return integer("position of the step", position, 0, MAX_POSITION)

    def step_of_position(self, position: int) -> int:
        """Number of the batch that holds a position."""
        s = self._state
        index = s.number(position)
        piece = s.pieces[index]
        return s.steps[index] + (position - piece.start) // piece.batch_size

    def replace(self, pieces: Sequence[Piece], domains: Sequence[Domain], decision: int) -> None:
        """Drop what begins at or after the first of these pieces, then add them.

        Args:
            pieces: Ascending; their `decision` and `digest` are filled in here.
            domains: All domains; a piece knows the first `len(piece.shares)` of them.
            decision: Number of the decision that they come from.
        """
        made, starts, steps, count = self._state
        index = bisect_left(starts, pieces[0].start, 0, count)
        if index < count:  # others may be reading what is dropped here
            made, starts, steps = made[:index], starts[:index], steps[:index]
        for piece in pieces:
            before = made[-1] if made else None
            step = 0
            if before is not None:
                step = steps[-1] + (piece.start - before.start) // before.batch_size
            digest = _chain(before, self._root, piece, domains)
            made.append(
                Piece(piece.start, piece.batch_size, piece.shares, piece.floats, decision, digest)
            )
            starts.append(piece.start)
            steps.append(step)
        self._state = _State(made, starts, steps, len(made))


def pieces_of(decision: Decision, current: Piece | None) -> Iterator[Piece]:
    """Yield the pieces that a decision amounts to; decision numbers and digests not yet known.

    Args:
        decision: The decision.
        current: The piece in force at its position, None for the first decision of a run.
    """
    shares, floats, batch = decision.shares, decision.floats, decision.batch_size
    if current is not None:
        batch = batch or current.batch_size
        if shares is None:
            shares, floats = current.shares, current.floats
    assert batch is not None
    steps = decision.schedule.expand(decision.position, batch) if decision.schedule else iter(())
    held = None if shares is None else Piece(decision.position, batch, shares, floats, 0, b"")
    for step in steps:
        if step.shares is not None:
            shares, floats = step.shares, step.floats
        assert shares is not None
        batch = step.batch_size or batch
        if held is not None and held.start != step.position:  # else the later one counts
            yield held
        held = Piece(step.position, batch, shares, floats, 0, b"")
    assert held is not None
    yield held


def batch_sizes_after(pieces: Sequence[Piece]) -> ResolvedSchedule | None:
    """What pieces after the first decide, if it is nothing but batch sizes.

    Args:
        pieces: The piece in force somewhere, and those after it.

    Returns:
        A schedule of batch sizes alone, or None: there is nothing later, or also other shares.
    """
    first, later = pieces[0], pieces[1:]
    if not later or any(not np.array_equal(p.shares, first.shares) for p in later):
        return None
    steps = tuple(Step(p.start, None, None, p.batch_size) for p in later)
    return ResolvedSchedule("piecewise", 1, steps)


def _chain(before: Piece | None, root: bytes, piece: Piece, domains: Sequence[Domain]) -> bytes:
    """Digest of a piece on top of all before it: integers, names, sizes, caps; no reasons."""
    known = len(before.shares) if before else 0
    new = [[d.name, d.size, d.cap] for d in domains[known : len(piece.shares)]]
    message = hashlib.sha256(before.digest if before else root)
    message.update(f"{piece.start},{piece.batch_size},{len(piece.shares)};".encode())
    message.update(json.dumps(new).encode())
    message.update(piece.shares.astype("<u8").tobytes())
    if piece.floats is not None:  # order megatron decides by these very bits
        message.update(piece.floats.astype("<f8").tobytes())
    return message.digest()
