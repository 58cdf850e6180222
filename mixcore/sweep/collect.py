"""All results of a sweep as `runs.csv`: one row a run."""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixcore.errors import DataError
from mixcore.sweep.folder import NUMBERS, Sweep, write_whole


def collect(
    sweep: Sweep,
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[int, list[str]]:
    """Write the finished runs to a CSV: `run`, `mix/<domain>`, `loss/<name>`, `metric/<name>`, ...

    Example:
        >>> collect(Sweep.load("sweep"), "runs.csv")
        (64, [])

    Args:
        sweep: The sweep.
        path: The CSV; replaced when the new one is whole.
        progress: Called with the number of runs read and their total.

    Returns:
        How many rows, and the runs that have no result.

    Raises:
        DataError: No run is done, a result is damaged, or runs have different outcomes.
    """
    found: dict[str, dict[str, Any]] = {}
    for i, run in enumerate(sweep.runs):
        result = sweep.result(run)
        if result is not None:
            flat: dict[str, Any] = {f"loss/{k}": v for k, v in result["loss"].items()}
            flat |= {f"metric/{k}": v for k, v in result.get("metric", {}).items()}
            flat |= {k: result[k] for k in NUMBERS if k in result}
            flat.setdefault("seed", sweep.seeds[i])
            found[run] = flat
        progress(i + 1, len(sweep.runs))
    if not found:
        raise DataError(f"{sweep.folder}: no run is done")
    first = next(iter(found))
    columns = sorted(found[first], key=lambda c: (c in NUMBERS, not c.startswith("loss/"), c))
    for run, flat in found.items():
        differ = sorted(flat.keys() ^ set(columns))
        if differ:
            raise DataError(
                f"{sweep.folder}: run {run} and run {first} do not have the same outcomes: "
                f"{', '.join(differ)} is in one of them"
            )
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["run", *(f"mix/{d}" for d in sweep.domains), *columns])
    for run, row in zip(sweep.runs, sweep.weights.tolist(), strict=True):
        if run in found:
            out.writerow([run, *(repr(w) for w in row), *(repr(found[run][c]) for c in columns)])
    write_whole(Path(path), text.getvalue())
    return len(found), [run for run in sweep.runs if run not in found]
