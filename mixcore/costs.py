"""The cost ledger: what was spent on finding and steering a mixture, in FLOPs.

A JSON Lines file, one entry a line, appended and flushed to the disk:

    {"kind": "backward", "flops": 1.2e15, "stage": "pretrain", "note": "dga"}

Dense-transformer counts as Kaplan et al. (2020, arXiv 2001.08361) and Hoffmann et al. (2022, arXiv
2203.15556) give them: 2 N a token forward and 4 N backward for N parameters, 6 N for training.
Attention over the context is not in them; where that matters, give `flops` as measured.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import choice, text
from mixcore.errors import ArgumentError, DataError
from mixcore.methods.base import number

PER_TOKEN = {"proxy": 6, "backward": 4, "evaluation": 2, "train": 6}  # times N parameters
KINDS = (*PER_TOKEN, "other")


@dataclass(frozen=True)
class Cost:
    """One entry.

    Attributes:
        kind: "proxy" (training of small models), "backward" (passes beside training's own),
            "evaluation" (forward passes), "train" (the run itself), "other".
        flops: Of all of it.
        stage: Of the run, or "".
        note: For people.
    """

    kind: str
    flops: float
    stage: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        choice("kind", self.kind, KINDS)
        object.__setattr__(self, "flops", number("flops", self.flops, 0))
        text("stage", self.stage)
        text("note", self.note)


def flops(kind: str, params: float, tokens: float) -> float:
    """FLOPs of a kind of work on so many tokens with so many parameters.

    Example:
        >>> flops("proxy", 1e6, 1e9)
        6e+15
    """
    choice("kind", kind, tuple(PER_TOKEN))
    return PER_TOKEN[kind] * number("params", params, 0) * number("tokens", tokens, 0)


def add_cost(path: str | os.PathLike[str], cost: Cost) -> None:
    """Append an entry to a cost ledger; a crash leaves at most an incomplete last line.

    Example:
        >>> add_cost("costs.jsonl", Cost("backward", flops("backward", 1e9, 2e6), note="dga"))
    """
    with open(path, "ab+") as f:
        size = f.seek(0, os.SEEK_END)
        if size:
            f.seek(size - 1)
            if f.read(1) != b"\n":  # of a crash: end that line, read_costs passes over it
                f.write(b"\n")
        f.write(json.dumps(asdict(cost)).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())


def read_costs(path: str | os.PathLike[str]) -> tuple[list[Cost], int]:
    """The entries, and how many incomplete lines (of crashes while writing) were passed over.

    Raises:
        DataError: A line is JSON, but no entry.
    """
    found, broken = [], 0
    for i, line in enumerate(Path(path).read_bytes().splitlines()):
        try:
            facts = json.loads(line)
        except ValueError:
            broken += 1
            continue
        try:
            found.append(Cost(**facts))
        except (TypeError, ValueError) as e:
            raise DataError(f"{path}: line {i + 1}: {e}") from None
    return found, broken


def tokens_to_reach(
    tokens: Sequence[float] | npt.NDArray[np.float64], losses: Sequence[float], goal: float
) -> float | None:
    """Tokens at which a loss curve first is at `goal`, between points on a line; None: never.

    Example:
        >>> tokens_to_reach([0, 100, 200], [4.0, 3.0, 2.0], 2.5)
        150.0
    """
    x, y = np.asarray(tokens, np.float64), np.asarray(losses, np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ArgumentError(f"tokens and losses must be of one length, got {x.shape}, {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all()):
        raise ArgumentError("tokens must ascend, and all numbers must be finite")
    below = np.flatnonzero(y <= goal)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0 or y[i] == goal:
        return float(x[i])
    part = (y[i - 1] - goal) / (y[i - 1] - y[i])
    return float(x[i - 1] + part * (x[i] - x[i - 1]))


def summary(costs: Sequence[Cost]) -> dict[str, Any]:
    """Sums by kind and by stage, and what finding the mixture cost beside training (`overhead`)."""
    kinds = {k: math.fsum(c.flops for c in costs if c.kind == k) for k in KINDS}
    stages: dict[str, float] = {}
    for c in costs:
        stages[c.stage] = stages.get(c.stage, 0.0) + c.flops
    train = kinds["train"]
    extra = math.fsum(v for k, v in kinds.items() if k != "train")
    return {
        "flops": kinds,
        "stages": stages,
        "spent": extra,
        "train": train,
        "overhead": extra / train if train else None,
    }
