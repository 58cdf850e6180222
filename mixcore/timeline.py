"""The timeline: what decisions amount to, in pieces of constant shares and batch size."""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_POSITION, integer
from mixcore.decision import Decision
from mixcore.domains import Domain


@dataclass(frozen=True)
class Piece:
    """From `start` on: these shares and this batch size. What the decisions amount to."""

    start: int
    batch_size: int
    shares: npt.NDArray[np.uint64]
    floats: npt.NDArray[np.float64] | None
    decision: int
    digest: bytes


class Timeline:
    """Pieces in the order of their positions, each with the digest of all up to it.

    Args:
        root: What every digest of this run starts from: seed, order, cap policy.
    """

    def __init__(self, root: str) -> None:
        self._root = hashlib.sha256(root.encode()).digest()
        self._pieces: list[Piece] = []
        self._starts: list[int] = []  # of the pieces, for searching
        self._steps: list[int] = []  # batches before each piece

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Piece:
        return self._pieces[index]

    def digest_at(self, position: int) -> str:
        """Digest of the pieces that begin before a position."""
        index = bisect_left(self._starts, position)
        return (self._pieces[index - 1].digest if index else self._root).hex()

    def at(self, position: int) -> Piece:
        """The piece in force at a position."""
        return self._pieces[bisect_right(self._starts, position) - 1]

    def first_after(self, position: int) -> int | None:
        """Start of the first piece after a position, if there is one."""
        index = bisect_right(self._starts, position)
        return self._starts[index] if index < len(self._starts) else None

    def position_of_step(self, step: int) -> int:
        """First position of the step-th batch (0-based)."""
        index = bisect_right(self._steps, step) - 1
        piece = self._pieces[index]
        position = piece.start + (step - self._steps[index]) * piece.batch_size
        return integer("position of the step", position, 0, MAX_POSITION)

    def step_of_position(self, position: int) -> int:
        """Number of the batch that holds a position."""
        index = bisect_right(self._starts, position) - 1
        piece = self._pieces[index]
        return self._steps[index] + (position - piece.start) // piece.batch_size

    def replace(self, pieces: Sequence[Piece], domains: Sequence[Domain], decision: int) -> None:
        """Drop what begins at or after the first of these pieces, then add them.

        Args:
            pieces: Ascending; their `decision` and `digest` are filled in here.
            domains: All domains; a piece knows the first `len(piece.shares)` of them.
            decision: Number of the decision that they come from.
        """
        index = bisect_left(self._starts, pieces[0].start)
        del self._pieces[index:], self._starts[index:], self._steps[index:]
        for piece in pieces:
            steps = self.step_of_position(piece.start) if self._pieces else 0
            before = self._pieces[-1] if self._pieces else None
            digest = _chain(before, self._root, piece, domains)
            self._pieces.append(
                Piece(piece.start, piece.batch_size, piece.shares, piece.floats, decision, digest)
            )
            self._starts.append(piece.start)
            self._steps.append(steps)


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


def _chain(before: Piece | None, root: bytes, piece: Piece, domains: Sequence[Domain]) -> bytes:
    """Digest of a piece on top of all before it: integers, names, sizes; no reasons."""
    known = len(before.shares) if before else 0
    new = [d.to_json() for d in domains[known : len(piece.shares)]]
    message = hashlib.sha256(before.digest if before else root)
    message.update(f"{piece.start},{piece.batch_size},{len(piece.shares)};".encode())
    message.update(json.dumps(new).encode())
    message.update(piece.shares.astype("<u8").tobytes())
    if piece.floats is not None:  # order megatron decides by these very bits
        message.update(piece.floats.astype("<f8").tobytes())
    return message.digest()
