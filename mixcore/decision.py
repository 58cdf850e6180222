"""A decision: one entry of the ledger, and its line in the ledger file."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_BATCH, MAX_POSITION, integer, text
from mixcore.domains import Domain
from mixcore.errors import LedgerError, MixcoreError
from mixcore.schedule import KINDS, ResolvedSchedule, Step

_TAIL = len(',"hash":""}') + 64


@dataclass(frozen=True)
class Decision:
    """What was decided: from `position` on, by whom, why.

    Attributes:
        position: First position it is in force at, a batch boundary.
        shares: uint64, one per domain (new ones included), sum 2^62; None keeps those in force.
        floats: Order megatron: the weights it decides by, float64, normalised as Megatron does.
        batch_size: Samples a step from here on; None keeps the one in force.
        add: Domains that are new.
        schedule: Weights for later positions, known now.
        replace_future: Later-dated decisions were dropped.
        reason: Why, for people; not part of any digest.
        author: By whom, likewise.
    """

    position: int
    shares: npt.NDArray[np.uint64] | None = None
    floats: npt.NDArray[np.float64] | None = None
    batch_size: int | None = None
    add: tuple[Domain, ...] = ()
    schedule: ResolvedSchedule | None = None
    replace_future: bool = False
    reason: str = ""
    author: str = ""

    def to_line(self, previous: str) -> tuple[bytes, str]:
        """Return the line (with its newline) and its hash, chained to the line before."""
        body: dict[str, Any] = {"position": self.position}
        body |= _shares_to_json(self.shares, self.floats)
        if self.batch_size is not None:
            body["batch_size"] = self.batch_size
        if self.add:
            body["add"] = [d.to_json() for d in self.add]
        if self.schedule is not None:
            body["schedule"] = {
                "kind": self.schedule.kind,
                "every": self.schedule.every,
                "steps": [
                    {"position": s.position, "batch_size": s.batch_size}
                    | _shares_to_json(s.shares, s.floats)
                    for s in self.schedule.steps
                ],
            }
        if self.replace_future:
            body["replace_future"] = True
        body["reason"] = self.reason
        body["author"] = self.author
        return seal(body, previous)

    @staticmethod
    def from_json(body: dict[str, Any]) -> "Decision":
        """Build a decision from a line's fields; KeyError and the like if they are wrong."""
        schedule = None
        if "schedule" in body:
            raw = body["schedule"]
            steps = []
            for s in raw["steps"]:
                size = s["batch_size"]
                size = None if size is None else integer("batch_size", size, 1, MAX_BATCH)
                at = integer("position", s["position"], 0, MAX_POSITION - 1)
                steps.append(Step(at, *_shares_from_json(s), size))
            if raw["kind"] not in KINDS:
                raise LedgerError(f"unknown schedule kind {raw['kind']!r}")
            every = integer("every", raw["every"], 1, MAX_BATCH)
            schedule = ResolvedSchedule(raw["kind"], every, tuple(steps))
        shares, floats = _shares_from_json(body)
        size = body.get("batch_size")
        return Decision(
            position=integer("position", body["position"], 0, MAX_POSITION - 1),
            shares=shares,
            floats=floats,
            batch_size=None if size is None else integer("batch_size", size, 1, MAX_BATCH),
            add=tuple(Domain(**d) for d in body.get("add", ())),
            schedule=schedule,
            replace_future=body.get("replace_future", False) is True,
            reason=text("reason", str(body["reason"])),
            author=text("author", str(body["author"])),
        )


def _shares_to_json(
    shares: npt.NDArray[np.uint64] | None, floats: npt.NDArray[np.float64] | None
) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if shares is not None:
        body["shares"] = shares.tolist()
    if floats is not None:
        body["weights"] = [x.hex() for x in floats.tolist()]
    return body


def _shares_from_json(
    body: dict[str, Any],
) -> tuple[npt.NDArray[np.uint64] | None, npt.NDArray[np.float64] | None]:
    shares = floats = None
    if "shares" in body:
        raw = body["shares"]
        if not all(type(s) is int and 0 <= s <= 1 << 62 for s in raw) or sum(raw) != 1 << 62:
            raise LedgerError("shares must be integers >= 0 that sum to 2^62")
        shares = np.array(raw, dtype=np.uint64)
    if "weights" in body:
        floats = np.array([float.fromhex(w) for w in body["weights"]], dtype=np.float64)
        if not (np.isfinite(floats).all() and (floats >= 0).all() and floats.any()):
            raise LedgerError("weights must be finite, >= 0 and not all zero")
    return shares, floats


def seal(body: dict[str, Any], previous: str) -> tuple[bytes, str]:
    """Return body as one line of JSON that ends with its hash, and the hash."""
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(previous.encode() + content.encode()).hexdigest()
    return f'{content[:-1]},"hash":"{digest}"}}\n'.encode(), digest


def unseal(line: bytes, previous: str) -> tuple[dict[str, Any], str]:
    """Check a line (without its newline) against the chain; return its fields and its hash.

    Raises:
        LedgerError: The line is no sealed line, or was changed after it was written.
    """
    try:
        whole = line.decode()
        body = json.loads(whole)
    except ValueError as e:
        raise LedgerError(f"it is not JSON ({e})") from None
    if not isinstance(body, dict) or not isinstance(body.get("hash"), str):
        raise LedgerError("it has no hash")
    stored = body.pop("hash")
    content = whole[:-_TAIL] + "}"
    actual = hashlib.sha256(previous.encode() + content.encode()).hexdigest()
    if whole[-_TAIL:] != f',"hash":"{stored}"}}' or actual != stored:
        raise LedgerError(
            f"it was changed after it was written, or a line before it is missing: its hash is "
            f"{stored[:16]}..., its content hashes to {actual[:16]}..."
        )
    return body, stored


def decision_from_line(line: bytes, previous: str) -> tuple[Decision, str]:
    """Parse and check one decision line."""
    body, digest = unseal(line, previous)
    try:
        return Decision.from_json(body), digest
    except (KeyError, TypeError, ValueError, AttributeError, MixcoreError) as e:
        raise LedgerError(f"its fields are wrong: {type(e).__name__}: {e}") from None
