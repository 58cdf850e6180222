"""Change the data mixture of an unmodified Megatron run, while it runs.

    torchrun ... -m megatron_patch pretrain_gpt.py --data-path ... --mix-config mix.yaml

or, first of all in one's own script:

    import megatron_patch
    megatron_patch.apply()

Importing this package changes nothing, and imports neither torch nor Megatron.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from megatron_patch import engine, report, table
from megatron_patch.rows import PatchError, Row, Table, version_and_path

if TYPE_CHECKING:
    from mixcore import Ledger

__all__ = ["PatchError", "Row", "Table", "apply", "ledger", "status", "undo", "use"]

# Another project has the same import name; mixcore._import_name knows ours by this line.
PROJECT = "mixcore"

logger = logging.getLogger("megatron_patch")


def apply(groups: Iterable[str] | None = None) -> list[str]:
    """Patch the Megatron that is on the path; once is enough, again does nothing.

    Megatron-LM or Megatron-DeepSpeed: the log says whose rows were put in place.

    Example:
        >>> megatron_patch.apply()
        ['dataset', 'training']

    Args:
        groups: Of Megatron-LM `"dataset"` (needs megatron.core) and `"training"` (needs
            megatron.training); all
            that the Megatron has when not given. Megatron-DeepSpeed has `"training"` alone.

    Returns:
        The groups in place.

    Raises:
        PatchError: This Megatron is not one that the rows fit (with its path and version), or
            another package called `megatron_patch` is on the path. Nothing is patched then.
    """
    chosen = table.choose()
    found = engine.apply(chosen, groups)
    logger.info("patched as %s: %s", chosen.name, version_and_path(chosen.package))
    return found


def undo() -> None:
    """Give Megatron back as it was, and forget the run; see `engine.undo`."""
    from megatron_patch import state

    state.end()
    engine.undo()


def status(file: TextIO | None = None) -> str:
    """Print what is bound to what, and return the same text."""
    return report.status(table.choose(), file)


def use(*args: Any, **kwargs: Any) -> None:
    """Mix the train split of the next dataset builder; see `megatron_patch.datasets.use`."""
    from megatron_patch import datasets

    datasets.use(*args, **kwargs)


def ledger() -> "Ledger":
    """The ledger of the run under way; see `megatron_patch.datasets.ledger`."""
    from megatron_patch import datasets

    return datasets.ledger()
