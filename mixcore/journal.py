"""The ledger file: JSON Lines, hash-chained, appended and fsynced, never rewritten in place."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixcore.decision import Decision, decision_from_line, seal, unseal
from mixcore.errors import ArgumentTypeError, LedgerError

FORMAT = "mixcore.ledger/1"


class Journal:
    """A ledger file that is written to; holds the chain's last hash and the file's length."""

    def __init__(self, path: str | Path, header: dict[str, Any]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentTypeError(f"path must be a str or a Path, got {path!r}")
        self.path = Path(path)
        self.header = header
        self._hash = ""
        self._length = 0

    def sync(self, decisions: Sequence[Decision]) -> None:
        """Make the file hold these decisions: check what it has, add what it lacks."""
        lines = self._lines(decisions)
        wanted = b"".join(lines)
        self._length = len(wanted)
        if not self.path.exists():
            self._create(wanted)
            return
        present = self.path.read_bytes()
        if not wanted.startswith(present):
            present = self._put_aside(present, wanted)
        self._write(wanted[len(present) :], len(present))

    def append(self, decision: Decision) -> None:
        """Add one decision to a file that `sync` has brought up to date."""
        size = self.path.stat().st_size
        if size != self._length:
            raise LedgerError(
                f"{self.path} has {size} bytes, not the {self._length} this ledger wrote: another "
                "process writes to it"
            )
        line, digest = decision.to_line(self._hash)
        self._write(line, size)
        self._hash = digest
        self._length += len(line)

    def _lines(self, decisions: Sequence[Decision]) -> list[bytes]:
        line, self._hash = seal(self.header, "")
        lines = [line]
        for d in decisions:
            line, self._hash = d.to_line(self._hash)
            lines.append(line)
        return lines

    def _create(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.link(temporary, self.path)  # unlike a rename, never takes the place of another file
        temporary.unlink()
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, data: bytes, at: int) -> None:
        if not data:
            return
        with open(self.path, "r+b") as f:
            f.seek(at)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())

    def _put_aside(self, present: bytes, wanted: bytes) -> bytes:
        """Move an incomplete last line to a file of its own; refuse any other difference."""
        whole = present[: present.rfind(b"\n") + 1]
        if not wanted.startswith(whole) or not whole:
            mine, theirs = wanted.split(b"\n"), present.split(b"\n")
            number = next(
                (i for i, (x, y) in enumerate(zip(mine, theirs, strict=False)) if x != y), len(mine)
            )
            what = "another run" if number == 0 else "other decisions than this ledger"
            if number >= len(mine) - 1:
                what = "decisions that this ledger lacks (load it instead of replacing it)"
            raise LedgerError(f"{self.path} holds {what}, from line {number + 1} on; not written")
        aside = self.path.with_name(self.path.name + ".incomplete")
        with open(aside, "ab") as f:
            f.write(present[len(whole) :] + b"\n")
            f.flush()
            os.fsync(f.fileno())
        with open(self.path, "r+b") as f:
            f.truncate(len(whole))
            os.fsync(f.fileno())
        return whole

    @staticmethod
    def dumps(header: dict[str, Any], decisions: Sequence[Decision]) -> bytes:
        """The file's content as bytes."""
        return b"".join(Journal("-", header)._lines(decisions))

    @staticmethod
    def read(path: str | Path) -> tuple[dict[str, Any], list[Decision]]:
        """Read and check a file; it is not touched, whatever it holds."""
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentTypeError(f"path must be a str or a Path, got {path!r}")
        return Journal.loads(Path(path).read_bytes(), str(path))

    @staticmethod
    def loads(data: bytes, where: str) -> tuple[dict[str, Any], list[Decision]]:
        """Check a file's content line by line; return its header and decisions.

        Raises:
            LedgerError: Naming the line and what is wrong with it. Only a last line without a
                newline, which a crash while writing leaves behind, is passed over with a warning.
        """
        *lines, last = data.split(b"\n")
        if not lines:
            raise LedgerError(f"{where} is no ledger: it has no complete line")
        try:
            header, digest = unseal(lines[0], "")
        except LedgerError as e:
            raise LedgerError(f"{where} is no ledger of mixcore: line 1: {e}") from None
        if header.get("format") != FORMAT:
            raise LedgerError(
                f"{where} has the format {header.get('format')!r}; this version reads {FORMAT!r}"
            )
        decisions = []
        for number, line in enumerate(lines[1:], start=2):
            try:
                decision, digest = decision_from_line(line, digest)
            except LedgerError as e:
                raise LedgerError(f"{where}: line {number} is damaged: {e}") from None
            decisions.append(decision)
        if last:
            try:  # whole but for its newline: nothing is missing
                decisions.append(decision_from_line(last, digest)[0])
            except LedgerError:
                warnings.warn(
                    f"{where}: the last line ({len(last)} bytes) is incomplete, as a crash while "
                    f"writing leaves it; going on from the {len(decisions)} decisions before it",
                    stacklevel=3,
                )
        if not decisions:
            raise LedgerError(f"{where} holds no decision")
        return header, decisions
