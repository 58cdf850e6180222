"""Checkpoints of the sequential orders, kept in a file beside the ledger.

Orders "megatron" and "random" replay from the nearest checkpoint. The ledger file alone is enough
to recompute them; this file saves the replay, which a look-up refuses beyond 10^9 steps. It is
derived: rewritten at every save, and each entry is used only where the ledger's digest up to its
position is the one that the entry was made under.
"""

import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixcore._files import flush_to_disk, new_file_beside

if TYPE_CHECKING:
    from mixcore.ledger import Ledger

FORMAT = "mixcore.checkpoints/1"
# What numpy and zipfile raise for damaged files, one byte changed at a time.
DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    EOFError,
    RuntimeError,  # "encrypted"; NotImplementedError is one: an unknown compression
    zipfile.BadZipFile,
    zlib.error,
)


def path_of(path: str | Path) -> Path:
    """The checkpoint file that belongs to a ledger file."""
    path = Path(path)
    return path.with_name(path.name + ".checkpoints.npz")


def save(ledger: "Ledger", path: str | Path) -> None:
    """Write the checkpoints that a sequential order holds; nothing for order balanced."""
    held = ledger._plan.checkpoints()
    if not held:
        return
    width = len(ledger.domains)

    def table(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        rows = np.zeros((len(held), width), arrays[0].dtype)
        for row, array in zip(rows, arrays, strict=True):
            row[: len(array)] = array
        return rows

    target = path_of(path)
    with new_file_beside(target) as f:
        np.savez(
            f,
            format=np.array(FORMAT),
            position=np.array([c[0] for c in held], np.int64),
            piece_start=np.array([c[1] for c in held], np.int64),
            known=np.array([len(c[3]) for c in held], np.int64),
            digest=np.array([ledger.digest_at(c[0]) for c in held]),
            counts=table([c[2] for c in held]),
            at_start=table([c[3] for c in held]),
            debt=table([c[4] for c in held]),
            capped_at=table([c[5] for c in held]),
        )
        flush_to_disk(f)
        os.replace(f.name, target)


def load(ledger: "Ledger", path: str | Path) -> int:
    """Restore what the file beside `path` holds for this ledger; return how many entries fit.

    A missing file is no matter. A damaged one is reported with a warning and not used.
    """
    source = path_of(path)
    if ledger.order == "balanced" or not source.exists():
        return 0
    try:
        with np.load(source, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        if str(data["format"]) != FORMAT:
            raise ValueError(f"its format is {data['format']!s}")
        entries = list(
            zip(
                *(data[k].tolist() for k in ("position", "piece_start", "known", "digest")),
                data["counts"],
                data["at_start"],
                data["debt"],
                data["capped_at"],
                strict=True,
            )
        )
        fit = [e for e in entries if ledger.digest_at(e[0]) == e[3]]
        for position, piece_start, known, _, counts, at_start, debt, capped_at in fit:
            counts = counts[: len(ledger.domains)]  # later domains are padding here
            if counts.sum() != position or (counts < 0).any():
                raise ValueError(f"the counts at position {position} do not add up")
            if ledger.order == "megatron" and position and known == 0:
                raise ValueError(f"the entry at position {position} is incomplete")
            ledger._plan.restore(
                position,
                piece_start,
                counts,
                at_start[:known],
                debt[:known],
                capped_at[: len(counts)],
            )
    except DAMAGED as e:
        warnings.warn(
            f"{source} is not used, positions will be replayed instead: {e}", stacklevel=3
        )
        return 0
    return len(fit)
