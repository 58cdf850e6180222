"""Rank 0's file of a ledger, where a run may have been resumed from before its end."""

import logging
import os
import time
from pathlib import Path

from mixcore.errors import LedgerError
from mixcore.ledger import Ledger

logger = logging.getLogger("mixcore")


def attach(ledger: Ledger, path: str | os.PathLike[str]) -> Path | None:
    """Keep a ledger in a file from now on; what is there and goes on otherwise is put aside.

    A run that is resumed from a checkpoint decides anew what came after it, and a run that begins
    anew decides everything: the file of the run that was left stays, under another name.

    Returns:
        Where the former file is now; None if the file was this ledger's, or was not there.
    """
    place = Path(path)
    try:
        ledger.attach(place)
    except LedgerError as e:
        aside = place.with_name(f"{place.name}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}")
        place.rename(aside)
        logger.warning("%s; it was kept as %s", e, aside)
        ledger.attach(place)
        return aside
    return None
