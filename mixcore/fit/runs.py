"""`runs.csv`: one row a run, its mixture and what came out of it.

| column | meaning |
|---|---|
| `run` | the run's id, unique |
| `mix/<domain>` | weight of each domain, >= 0; they sum to 1 |
| `loss/<name>` | loss on a validation set, lower is better |
| `metric/<name>` | any other outcome, higher is better |
| `tokens`, `params` | trained tokens and model size; optional, > 0 |
| `seed`, `batch_size` | optional |
| `info/<name>` | anything else; not read |

`write_runs` writes what `read_runs` reads, to the last bit.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_DOMAINS
from mixcore._files import flush_to_disk, new_file_beside
from mixcore._problems import closest
from mixcore.errors import ArgumentError
from mixcore.fit.table import Floats, Table, read_table, some

MIX, LOSS, METRIC, INFO = "mix/", "loss/", "metric/", "info/"
NUMBERS = ("tokens", "params", "seed", "batch_size")
# Published tables have weights rounded to 3 decimals: the sums of the RegMix runs (17 domains) are
# off by up to 0.004.
SUM_TOLERANCE = 0.01


@dataclass(frozen=True)
class Runs:
    """Finished runs; build them with `read_runs`.

    Attributes:
        file: Where they came from, for messages.
        names: Ids, R of them.
        domains: Names, D of them.
        weights: float64[R, D], rows sum to 1.
        outcomes: Column (`loss/web`, `metric/qa`) -> float64[R].
        tokens: float64[R], tokens each was trained on, or None.
        params: float64[R], model sizes in parameters, or None.
        seed: float64[R], or None.
        batch_size: float64[R], or None.
    """

    file: str
    names: tuple[str, ...]
    domains: tuple[str, ...]
    weights: Floats
    outcomes: dict[str, Floats] = field(compare=False)
    tokens: Floats | None = None
    params: Floats | None = None
    seed: Floats | None = None
    batch_size: Floats | None = None

    def __len__(self) -> int:
        return len(self.names)

    def outcome(self, column: str) -> Floats:
        """One outcome, float64[R].

        Raises:
            ArgumentError: There is no such column.
        """
        if column not in self.outcomes:
            raise ArgumentError(
                f"{self.file} has no outcome {column!r}{closest(column, list(self.outcomes))}; "
                f"it has: {', '.join(self.outcomes)}"
            )
        return self.outcomes[column]

    def groups(self) -> npt.NDArray[np.int64]:
        """int64[R]: runs of one mixture (other seeds, sizes, budgets) have the same number.

        What is held out to judge a fit must be whole groups, or the fit has seen the answer.
        """
        _, number = np.unique(self.weights, axis=0, return_inverse=True)
        return number.reshape(-1).astype(np.int64)

    def some(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Runs":
        """These runs only."""
        picked = np.arange(len(self))[rows]

        def of(values: Floats | None) -> Floats | None:
            return None if values is None else values[picked]

        return Runs(
            self.file,
            tuple(self.names[i] for i in picked),
            self.domains,
            self.weights[picked],
            {c: v[picked] for c, v in self.outcomes.items()},
            of(self.tokens),
            of(self.params),
            of(self.seed),
            of(self.batch_size),
        )

    def on(self, places: npt.NDArray[np.int64]) -> "Runs":
        """These domains only; the other weights must be 0.

        Raises:
            ArgumentError: A run drew from another domain.
        """
        rest = np.setdiff1d(np.arange(len(self.domains)), places)
        drawn = self.weights[:, rest].max(axis=1, initial=0.0)
        if drawn.any():
            row, name = int(drawn.argmax()), some([self.domains[i] for i in rest])
            raise ArgumentError(
                f"{self.file}: run {self.names[row]!r} drew from {name}, which no fitted run did"
            )
        domains = tuple(self.domains[i] for i in places)
        return replace(self, domains=domains, weights=self.weights[:, places])


def read_runs(path: str | os.PathLike[str]) -> Runs:
    """Read a `runs.csv` and check all of it.

    Example:
        >>> runs = read_runs("runs.csv")
        >>> runs.weights.shape, runs.outcome("loss/web").shape
        ((512, 17), (512,))

    Weights are normalised: a row may sum to 1 +- 0.01, as rounded tables do.

    Raises:
        ArgumentError: What is missing, unknown, given twice, empty, no number, not finite or out of
            range; with the line and the column.
        OSError: The file cannot be read.
    """
    return runs_from(read_table(path))


def runs_from(table: Table) -> Runs:
    """The runs in a table."""
    table.unknown(("run", *NUMBERS), (MIX, LOSS, METRIC, INFO))
    domains = table.names(MIX)
    outcomes = [c for c in table.columns if c.startswith((LOSS, METRIC))]
    for missing, what in (
        ("run" not in table.columns, "column 'run'"),
        (not domains, "column mix/NAME, a domain's weight"),
        (not outcomes, "column loss/NAME or metric/NAME, an outcome"),
    ):
        if missing:
            raise ArgumentError(f"{table.file} has no {what}; it has: {some(list(table.columns))}")
    if len(domains) > MAX_DOMAINS:
        raise ArgumentError(f"{table.file} has {len(domains)} domains, more than {MAX_DOMAINS}")
    table.names(LOSS), table.names(METRIC)  # none is empty
    names = _ids(table)
    weights = table.matrix(MIX, 0.0)
    sums = weights.sum(axis=1)
    off = np.abs(sums - 1)
    if off.max() > SUM_TOLERANCE:
        row = int(off.argmax())
        raise ArgumentError(
            f"{table.file}: line {table.lines[row]} (run {names[row]!r}): the columns mix/NAME "
            f"must sum to 1 (+- {SUM_TOLERANCE:g}), got {sums[row]:.6g}"
        )
    exact = off < 1e-12  # these stay bit for bit what was written
    weights = np.where(exact[:, None], weights, weights / sums[:, None])
    values = {c: table.floats(c) for c in outcomes}
    numbers = {
        c: table.floats(c, 0.0, above=True) if c != "seed" else table.floats(c)
        for c in NUMBERS
        if c in table.columns
    }
    _refuse_copies(table, names, weights, values, numbers)
    return Runs(table.file, names, domains, weights, values, **numbers)


def write_runs(path: str | os.PathLike[str], runs: Runs) -> None:
    """Write runs so that `read_runs` gives them back; the file is there whole or not at all."""
    numbers = {c: getattr(runs, c) for c in NUMBERS if getattr(runs, c) is not None}
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["run", *(MIX + d for d in runs.domains), *runs.outcomes, *numbers])
    for row, name in enumerate(runs.names):
        rest = [float(v[row]) for v in runs.outcomes.values()]
        rest += [_plain(float(v[row])) for v in numbers.values()]
        out.writerow([name, *runs.weights[row].tolist(), *rest])
    target = Path(path)
    with new_file_beside(target) as f:
        f.write(text.getvalue().encode())
        flush_to_disk(f)
        os.replace(f.name, target)


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _ids(table: Table) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for row, cell in enumerate(table.columns["run"]):
        name = cell.strip()
        if not name:
            raise ArgumentError(f"{table.where(row, 'run')}: the id is empty")
        if name in first:
            raise ArgumentError(
                f"{table.where(row, 'run')}: the run {name!r} is already in line "
                f"{table.lines[first[name]]}"
            )
        first[name] = row
    return tuple(first)


def _refuse_copies(
    table: Table,
    names: Sequence[str],
    weights: Floats,
    outcomes: dict[str, Floats],
    numbers: dict[str, Floats],
) -> None:
    """One run pasted in under two ids would be held out from itself. Other seeds are other runs."""
    everything = np.column_stack([weights, *outcomes.values(), *numbers.values()])
    first: dict[bytes, int] = {}
    for row, values in enumerate(everything):
        before = first.setdefault(values.tobytes(), row)
        if before != row:
            raise ArgumentError(
                f"{table.file}: line {table.lines[row]}: run {names[row]!r} is a copy of run "
                f"{names[before]!r} in line {table.lines[before]}: same mixture, same outcomes"
            )
