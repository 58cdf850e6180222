"""`megatron_patch` is the import name of another project too: which one would be imported?

That project is Pai-Megatron-Patch (github.com/alibaba/Pai-Megatron-Patch). Whichever comes first
on the path hides the other, whose imports then fail in ways that name neither.
"""

import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

NAME = "megatron_patch"
MARK = 'PROJECT = "mixcore"'  # a line of our `megatron_patch/__init__.py`, of any version


def foreign() -> Path | None:
    """The file of a package `megatron_patch` that is not mixcore's, wherever it is on the path."""
    module = sys.modules.get(NAME)
    if module is not None and getattr(module, "PROJECT", None) != "mixcore":
        return Path(getattr(module, "__file__", None) or "no file")
    return next((path for path in _found() if not _is_ours(path)), None)


def message(path: Path) -> str:
    """What to tell the user of a foreign package."""
    ours = Path(__file__).parent.parent / NAME / "__init__.py"
    return (
        f"two packages are called {NAME!r}: mixcore's ({ours}) and a foreign one ({path}), and "
        "Python imports whichever comes first; remove one of them from the path (PYTHONPATH, the "
        "folder of the script, the installed packages)"
    )


def _found() -> Iterator[Path]:
    for entry in sys.path:
        spec = PathFinder.find_spec(NAME, [entry])
        if spec is not None and spec.origin:  # a mere folder has no origin and hides nothing
            yield Path(spec.origin)


def _is_ours(path: Path) -> bool:
    try:
        return MARK in path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
