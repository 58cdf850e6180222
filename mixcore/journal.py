"""The ledger file: JSON Lines, hash-chained, appended and fsynced, never rewritten in place."""

import contextlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixcore._files import flush_to_disk, new_file_beside
from mixcore.decision import Decision, decision_from_line, seal, unseal
from mixcore.errors import ArgumentTypeError, LedgerError

FORMAT = "mixcore.ledger/1"


class Journal:
    """A ledger file that is written to; holds the chain's last hash and the file's length."""

    def __init__(self, path: str | Path, header: dict[str, Any]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentTypeError(f"path must be a str or a Path, got {path!r}")
        self.path = Path(path).absolute()
        self.header = header
        self._hash = ""  # of the last line written
        self._length = 0  # bytes written
        self._count = 0  # decisions written

    def sync(self, decisions: Sequence[Decision]) -> None:
        """Make the file hold these decisions: check what it has, add what it lacks.

        Args:
            decisions: All; those of an earlier call come first.
        """
        if self._length and self._is_as_left():
            data, digest = _render(self._hash, decisions[self._count :])
            self._write(data, self._length)
            self._left(self._length + len(data), digest, len(decisions))
            return
        line, digest = seal(self.header, "")
        data, digest = _render(digest, decisions)
        wanted = line + data
        if self.path.exists() or not self._create(wanted):
            present = self.path.read_bytes()
            if not wanted.startswith(present):
                present = self._put_aside(present, wanted)
            self._write(wanted[len(present) :], len(present))
        self._left(len(wanted), digest, len(decisions))

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
        self._left(size + len(line), digest, self._count + 1)

    def _left(self, length: int, digest: str, count: int) -> None:
        self._length, self._hash, self._count = length, digest, count

    def _is_as_left(self) -> bool:
        """Whether the file ends where and as this journal left it: the hash covers all of it."""
        end = f'"hash":"{self._hash}"}}\n'.encode()
        try:
            with open(self.path, "rb") as f:
                if f.seek(0, os.SEEK_END) != self._length:
                    return False
                f.seek(-len(end), os.SEEK_END)
                return f.read() == end
        except FileNotFoundError:
            return False

    def _create(self, data: bytes) -> bool:
        """Create the file, whole; False if another process was faster."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new_file_beside(self.path) as f:
                f.write(data)
                flush_to_disk(f)
                try:  # unlike a rename, a link never takes the place of another file
                    os.link(f.name, self.path)
                except FileExistsError:
                    return False
                except OSError:  # a file system without links
                    self._create_in_place(data)
        except FileExistsError:
            return False
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True

    def _create_in_place(self, data: bytes) -> None:
        with open(self.path, "xb", buffering=0):
            pass
        try:
            self._write(data, 0)
        except BaseException:
            self.path.unlink()
            raise

    def _write(self, data: bytes, at: int) -> None:
        """Write at the end of the file; if that fails, the file is as it was."""
        if not data:
            return
        with open(self.path, "r+b", buffering=0) as f:  # a buffer would be written once more
            try:
                f.seek(at)
                rest = memoryview(data)
                while rest:
                    rest = rest[f.write(rest) :]
                os.fsync(f.fileno())
            except BaseException:
                f.truncate(at)
                with contextlib.suppress(OSError):  # what went wrong first is what to tell
                    os.fsync(f.fileno())
                raise

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
            flush_to_disk(f)
        with open(self.path, "r+b") as f:
            f.truncate(len(whole))
            os.fsync(f.fileno())
        return whole

    @staticmethod
    def dumps(header: dict[str, Any], decisions: Sequence[Decision]) -> bytes:
        """The file's content as bytes."""
        line, digest = seal(header, "")
        return line + _render(digest, decisions)[0]

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


def _render(digest: str, decisions: Sequence[Decision]) -> tuple[bytes, str]:
    """The lines of some decisions, chained to a hash, and the last hash."""
    lines = []
    for d in decisions:
        line, digest = d.to_line(digest)
        lines.append(line)
    return b"".join(lines), digest
