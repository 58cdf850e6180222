"""A CSV file whose every value is checked, and every mistake in it named by line and column."""

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixcore._problems import closest
from mixcore.errors import ArgumentError, ArgumentTypeError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file.

    Attributes:
        file: Where it came from, for messages.
        columns: Name -> cells, in the file's order.
        lines: Line of the file on which each row ends.
    """

    file: str
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def names(self, prefix: str) -> tuple[str, ...]:
        """What follows the prefix in the columns that have it."""
        found = tuple(c.removeprefix(prefix) for c in self.columns if c.startswith(prefix))
        if "" in found:
            raise ArgumentError(f"{self.file}: column {prefix!r} lacks the name after the slash")
        return found

    def where(self, row: int, column: str) -> str:
        """A cell, for messages."""
        return f"{self.file}: line {self.lines[row]}, column {column!r}"

    def floats(
        self, column: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False
    ) -> Floats:
        """One column as finite numbers in [low, high], or in (low, high] with above=True.

        Raises:
            ArgumentError: A cell is empty, no number, not finite or out of range.
        """
        values = np.empty(len(self))
        for row, cell in enumerate(self.columns[column]):
            try:
                value = float(cell)
            except ValueError:
                what = "is empty" if not cell.strip() else f"must be a number, got {cell!r}"
                raise ArgumentError(f"{self.where(row, column)}: the value {what}") from None
            if not math.isfinite(value) or not low <= value <= high or (above and value == low):
                rule = (
                    "finite" if math.isinf(low) else f"in {'(' if above else '['}{low:g}, {high:g}]"
                )
                raise ArgumentError(
                    f"{self.where(row, column)}: the value must be {rule}, got {cell.strip()}"
                )
            values[row] = value
        return values

    def matrix(self, prefix: str, low: float = -math.inf, high: float = math.inf) -> Floats:
        """All columns with a prefix, float64[rows, columns]."""
        found = [prefix + name for name in self.names(prefix)]
        return np.stack([self.floats(c, low, high) for c in found], axis=1)

    def unknown(self, known: tuple[str, ...], prefixes: tuple[str, ...]) -> None:
        """Refuse columns that are neither known nor have one of the prefixes."""
        for column in self.columns:
            if column not in known and not column.startswith(prefixes):
                names = [*known, *(f"{p}NAME" for p in prefixes)]
                raise ArgumentError(
                    f"{self.file}: column {column!r} is not known{closest(column, names)}; known: "
                    f"{', '.join(names)}"
                )


def some(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a CSV file (UTF-8, comma, one header line).

    Raises:
        ArgumentError: It is no such file, a column comes twice, or a row has more or fewer cells
            than the header; the message has the line.
        OSError: It cannot be read.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(f"path must be a str or a Path, got {path!r}")
    file = str(path)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ArgumentError(f"{file} is not UTF-8 text: {e}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
                if len(row) != len(header):
                    raise ArgumentError(
                        f"{file}: line {reader.line_num} has {len(row)} cells, but the header has "
                        f"{len(header)} columns"
                    )
    except csv.Error as e:
        raise ArgumentError(f"{file}: line {reader.line_num} is not CSV: {e}") from None
    if not header or not rows:
        raise ArgumentError(f"{file} has no {'header line' if not header else 'rows'}")
    columns: dict[str, list[str]] = {}
    for place, name in enumerate(header):
        if name in columns:
            raise ArgumentError(f"{file}: column {name!r} comes twice")
        columns[name] = [row[place] for row in rows]
    return Table(file, columns, lines)
