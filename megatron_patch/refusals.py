"""What a run cannot go on with: a checkpoint or a loader that would repeat or lose samples."""

import json
import logging
from typing import Any

import numpy as np

from megatron_patch.loader import MixSampler
from mixcore import Ledger
from mixcore.errors import ArgumentError, LedgerError

logger = logging.getLogger("megatron_patch")


def adoption(saved: Any) -> None:
    """Refuse a stock run that did not read its blend from the first position on, in order.

    Its arguments name the blend, or a file with the blend: that has to be what it was.

    Raises:
        ArgumentError: Names the flag that it was trained with.
    """
    loader = getattr(saved, "dataloader_type", None) or "single"
    transitions = getattr(saved, "phase_transition_iterations", None)
    for flag, wrong in (
        (f"--dataloader-type {loader}", loader != "single"),
        (f"--phase-transition-iterations {transitions}", bool(transitions)),
    ):
        if wrong:
            raise ArgumentError(
                f"the checkpoint was trained with {flag}: which samples it has seen cannot be told "
                f"from its position, so the run cannot be adopted"
            )
    for name in ("data_args_path", "per_split_data_args_path"):
        path = getattr(saved, name, None)
        if path is not None:
            logger.warning(
                "the checkpoint names its blend by the file %s (--%s): what the file says now is "
                "taken for what was trained on; give other weights in another file",
                path,
                name.replace("_", "-"),
            )


def without_flags(text: str | None, consumed: int) -> None:
    """Without flags all is stock Megatron's; that cannot go on with a mixture of another order.

    Args:
        text: Our state in the checkpoint that was loaded, if it has one.
        consumed: Samples trained on.

    Raises:
        LedgerError: The checkpoint's run read its samples in an order that only the flags keep.
    """
    if text is None or not consumed:
        return
    ledger = Ledger.from_bytes(json.loads(text)["ledger"].encode())
    first = ledger.pieces[0].shares
    if ledger.order != "megatron" or any(
        not np.array_equal(p.shares, first) for p in ledger.pieces
    ):
        raise LedgerError(
            f"the checkpoint was saved by a run with --mix flags (order {ledger.order!r}); without "
            f"them samples would repeat and others be lost: give the flags again, or --finetune"
        )


def foreign(loader: Any) -> Exception | None:
    """What is wrong with a train loader: it does not read the ledger (None: this rank has none)."""
    if loader is None or isinstance(getattr(loader, "batch_sampler", None), MixSampler):
        return None
    dataset = getattr(loader, "dataset", loader)
    return ArgumentError(
        f"the train loader does not read the mixture: the script's dataset provider returned a "
        f"{type(dataset).__name__} instead of what BlendedMegatronDatasetBuilder built for it"
    )
