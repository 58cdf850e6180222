"""What a decision was made of: one line of text for the ledger, one line of JSON for the log."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore.errors import ArgumentTypeError

Floats = npt.NDArray[np.float64]
MENTIONED = 8  # domains in the ledger's reason; all of them are in the log


class DecisionLog:
    """A file of JSON lines, one for every time a method was asked; opened and closed for each.

    It is a diary, not a state: after a resume it may hold a step twice, the later line counts.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentTypeError(f"log must be a str or a Path, got {path!r}")
        self.path = Path(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; numbers that are not finite become null."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False)
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(line + "\n")


def plain(value: Any) -> Any:
    """Value in JSON's types; NaN and infinities become None."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or bool(np.isfinite(value).all()):
            return value.tolist()
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def reason(
    method: str,
    step: int,
    names: Sequence[str],
    before: Floats,
    after: Floats,
    loss: Floats | None,
) -> str:
    """The decision in a line: weights before and after, and losses, where most has changed.

    Example:
        "odm at step 100: web 0.7>0.65 (loss 2.31), code 0.3>0.35 (loss 1.92)"
    """
    order = np.argsort(-np.abs(after - before), kind="stable")[:MENTIONED]
    parts = []
    for i in order.tolist():
        known = loss is not None and np.isfinite(loss[i])
        seen = f" (loss {loss[i]:.4g})" if known and loss is not None else ""
        parts.append(f"{names[i]} {before[i]:.4g}>{after[i]:.4g}{seen}")
    if len(names) > MENTIONED:
        parts.append(f"and {len(names) - MENTIONED} more")
    return f"{method} at step {step}: {', '.join(parts)}"
