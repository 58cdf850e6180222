"""New files that take their place only when they are whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def new_file_beside(target: Path) -> Iterator[BinaryIO]:
    """A new file in the target's folder, under a name that no other process uses.

    It is removed at the end unless it was renamed. It is opened as any file is, so that its mode
    follows the umask (a file of `tempfile` would be readable by its owner alone).

    Example:
        >>> with new_file_beside(target) as f:
        ...     f.write(data)
        ...     flush_to_disk(f)
        ...     os.replace(f.name, target)
    """
    temporary = target.with_name(f"{target.name}.{uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as f:
            yield f
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(f: BinaryIO) -> None:
    """Return when what was written to f is on the disk."""
    f.flush()
    os.fsync(f.fileno())
