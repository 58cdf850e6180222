"""What the commands share: facts as JSON, tables that cut nothing off, progress on stderr."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def as_json(facts: dict[str, Any]) -> None:
    """Print facts as JSON (ASCII, so that any terminal and any pipe takes it)."""
    click.echo(json.dumps(facts, indent=2, allow_nan=False))


def console() -> Console:
    """Standard output; where it is no terminal, wide enough to cut nothing off."""
    made = Console(highlight=False)
    if not made.is_terminal:
        made = Console(highlight=False, width=240)
    return made


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table; the first column is text, the others are flushed right. No markup is read."""
    made = Table(title=Text(title, style="bold"), title_justify="left")
    for i, name in enumerate(columns):
        made.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def progress() -> Progress:
    """A progress bar on stderr that vanishes when done, and is silent where that is no terminal."""
    to = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=to,
        transient=True,
        disable=not to.is_terminal,
    )


def number(value: float | None) -> str:
    """An integer with thousands separators, a float with enough digits, None as a dash."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
