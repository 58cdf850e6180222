"""`status()`: what is bound to what, as a table for people."""

import sys
from typing import TextIO

from megatron_patch import engine
from megatron_patch.rows import Table, has_package, version_and_path


def status(table: Table, file: TextIO | None = None) -> str:
    """Print what every row of the table is bound to, and return the same text.

    Example:
        >>> print(status(MEGATRON).splitlines()[0])
        Megatron-LM: megatron.core 0.19.2 (/opt/venv/lib/python3.11/site-packages/megatron/core)

    Args:
        table: The rows to tell of.
        file: Where to print; the standard output when not given.
    """
    found = version_and_path(table.package) if has_package(table.package) else "not installed"
    patches = {patch.place.row.symbol: patch for patch in engine.patches()}
    lines = [f"{table.name}: {found}"]
    width = max((len(row.symbol) for row in table.rows), default=0)
    for row in table.rows:
        patch = patches.get(row.symbol)
        if patch is None:
            state = "original"
        elif not patch.is_bound():
            state = "replaced by someone else after the patch"
        else:
            made = patch.replacement
            state = f"-> {made.__module__}:{made.__qualname__}"
        lines.append(f"  {row.symbol:<{width}}  [{row.group}] {state}: {row.reason}")
        for module, name in [] if patch is None else patch.aliases:
            lines.append(f"    also {module.__name__}:{name}")
    text = "\n".join(lines)
    print(text, file=file or sys.stdout)
    return text
