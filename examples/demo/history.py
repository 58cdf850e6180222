"""Read a run's logs back into one effective history: what the model was really trained on.

A run is a sequence of attempts. An attempt starts from a checkpoint and writes one append-only
file a rank, `attempt-1-rank-0.jsonl`: a line "start", then a line "step" an optimizer step. Steps
that an attempt trained after the checkpoint its successor started from are lost with the killed
process; they count as replayed, not as history.

    >>> history = read(Path("demo-out/log"))
    >>> history.effective.position[:3], history.attempts[1].world
    (array([0, 1, 2]), 1)
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("position", "domain", "draw", "epoch", "sample", "crc")


class LogError(Exception):
    """A log that cannot be read or that contradicts itself."""


@dataclass(frozen=True)
class Check:
    """One thing proved or refuted."""

    name: str
    ok: bool
    detail: str


@dataclass
class Samples:
    """Samples in the order of the logs; every column is int64[n]."""

    step: NDArray[np.int64]
    attempt: NDArray[np.int64]
    rank: NDArray[np.int64]
    position: NDArray[np.int64]
    domain: NDArray[np.int64]
    draw: NDArray[np.int64]
    epoch: NDArray[np.int64]
    sample: NDArray[np.int64]
    crc: NDArray[np.int64]

    def select(self, mask: NDArray[Any]) -> "Samples":
        """Return the rows that `mask` (booleans or indices) picks."""
        return Samples(**{name: column[mask] for name, column in vars(self).items()})


@dataclass
class Attempt:
    """One start of the trainer: its first lines and the steps each rank logged."""

    number: int
    start: dict[str, Any]
    ranks: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    updates: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # by rank
    torn: int = 0  # incomplete last lines put aside

    @property
    def world(self) -> int:
        """Number of data-parallel ranks."""
        return int(self.start["world"])

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """Decisions that it made: a kill may have kept a rank from logging the last one."""
        longest = max(self.updates.values(), key=len)
        return [line for line in longest if line["kind"] == "decision"]

    @property
    def record(self) -> list[dict[str, Any]]:
        """Decisions that it found in its ledger, and those that it made."""
        return [*self.start["decisions"], *self.decisions]

    @property
    def first_step(self) -> int:
        """First step of this attempt."""
        return int(self.start["step"])

    @property
    def last_step(self) -> int:
        """Last step that some rank logged, or the step before the first."""
        return max((lines[-1]["step"] for lines in self.ranks.values() if lines), default=-1)


@dataclass
class History:
    """All attempts, all samples ever trained on, and those that the final model has seen."""

    attempts: list[Attempt]
    everything: Samples
    effective: Samples
    loss_sum: NDArray[np.float64]  # [steps, domains], effective history
    tokens: NDArray[np.int64]  # [steps, domains]

    @property
    def start(self) -> dict[str, Any]:
        """The facts of the run, from the last attempt's first line."""
        return self.attempts[-1].start

    @property
    def names(self) -> list[str]:
        """Domain names in the order of their numbers."""
        return [d["name"] for d in self.start["domains"]]

    @property
    def sizes(self) -> list[int]:
        """Samples per epoch of each domain."""
        return [int(d["size"]) for d in self.start["domains"]]

    @property
    def method(self) -> str | None:
        """The method that steered, None with a fixed schedule."""
        return self.start.get("method")

    @property
    def record(self) -> list[dict[str, Any]]:
        """Every decision after the start, in the order in which the last attempt's ledger has them.

        Those that a resumed attempt has put out of force are among them.
        """
        return self.attempts[-1].record

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """The decisions in force at some position."""
        return in_force(self.record)


def in_force(record: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a record comes to, by position.

    A decision takes the place of one at its own position and, with replace_future, of later ones.
    """
    kept: dict[int, dict[str, Any]] = {}
    for line in record:
        if line.get("replace_future"):
            kept = {at: other for at, other in kept.items() if at < line["at"]}
        kept[line["at"]] = line
    return [kept[at] for at in sorted(kept)]


def read(folder: Path) -> History:
    """Read every attempt's files of `folder`; raise `LogError` for what cannot be a run."""
    attempts: dict[int, Attempt] = {}
    for path in sorted(folder.glob("attempt-*-rank-*.jsonl")):
        lines, torn = read_lines(path)
        if not lines or lines[0].get("kind") != "start":
            if torn or not lines:  # killed before its first line was out: trained nothing
                continue
            raise LogError(f"{path.name} does not begin with a line of kind 'start'")
        start = lines[0]
        attempt = attempts.setdefault(start["attempt"], Attempt(start["attempt"], start))
        attempt.torn += torn
        steps = [line for line in lines if line["kind"] == "step"]
        for line in steps:
            check_step(path.name, line, num_domains=len(start["domains"]))
        attempt.ranks[start["rank"]] = steps
        attempt.updates[start["rank"]] = [x for x in lines if x["kind"] in ("decision", "kept")]
    if not attempts:
        raise LogError(f"no log of a run in {folder}")
    return assemble([attempts[n] for n in sorted(attempts)])


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a file and the number (0 or 1) of incomplete last lines put aside."""
    *whole, rest = path.read_text().split("\n")
    try:
        return [json.loads(line) for line in whole], int(bool(rest))
    except json.JSONDecodeError as error:
        raise LogError(f"{path.name} holds a line that is not JSON: {error}") from error


def check_step(file: str, line: dict[str, Any], num_domains: int) -> None:
    """Raise `LogError` unless a step's line has all its columns, in matching lengths."""
    where = f"{file}, step {line.get('step')}"
    if missing := {"step", *COLUMNS, "loss_sum", "tokens"} - set(line):
        raise LogError(f"{where}: without {', '.join(sorted(missing))}")
    if len({len(line[name]) for name in COLUMNS}) > 1:
        raise LogError(f"{where}: columns differ in length")
    if {len(line["loss_sum"]), len(line["tokens"])} != {num_domains}:
        raise LogError(f"{where}: loss_sum and tokens must have {num_domains} entries")


def assemble(attempts: list[Attempt]) -> History:
    """Join the attempts: each counts up to the step from which its successor started."""
    ends = [a.first_step for a in attempts[1:]] + [int(attempts[-1].start["steps"])]
    num_domains = len(attempts[-1].start["domains"])
    steps = int(attempts[-1].start["steps"])
    loss_sum = np.zeros((steps, num_domains))
    tokens = np.zeros((steps, num_domains), np.int64)
    columns: dict[str, list[NDArray[np.int64]]] = {}
    kept: list[NDArray[np.bool_]] = []
    for index, attempt in enumerate(attempts):
        end = min(ends[index:])  # a later attempt may go back further still
        for rank, lines in sorted(attempt.ranks.items()):
            for line in lines:
                size = len(line["position"])
                in_history = line["step"] < end
                kept.append(np.full(size, in_history))
                fixed = {"step": line["step"], "attempt": attempt.number, "rank": rank}
                for name, value in fixed.items():
                    columns.setdefault(name, []).append(np.full(size, value, np.int64))
                for name in COLUMNS:
                    columns.setdefault(name, []).append(np.asarray(line[name], np.int64))
                if in_history and line["step"] < steps:
                    loss_sum[line["step"]] += line["loss_sum"]
                    tokens[line["step"]] += line["tokens"]
    if not columns:
        raise LogError("the run's logs hold no step")
    everything = Samples(**{name: np.concatenate(parts) for name, parts in columns.items()})
    mask = np.concatenate(kept)
    return History(attempts, everything, everything.select(mask), loss_sum, tokens)
