"""Going on from a checkpoint with a ledger file that went on until the crash."""

import numpy as np

from mixcore._checks import MAX_POSITION, integer, text
from mixcore.errors import LedgerError
from mixcore.ledger import Ledger


def catch_up(ledger: Ledger, saved: Ledger) -> None:
    """Give a ledger the decisions that it lacks of a saved one of the same run.

    A ledger that has them all, and perhaps later ones, stays as it is (see `drop_later`).

    Args:
        ledger: As at the start of the run, or as its file has it.
        saved: As a checkpoint has it.

    Raises:
        LedgerError: Neither is the beginning of the other; decisions are missing for positions that
            have been fetched. The ledger is as it was.
    """
    with ledger.lock:
        mine, theirs = ledger.to_bytes(), saved.to_bytes()
        if mine.startswith(theirs):
            return
        if not theirs.startswith(mine):
            pairs = zip(mine.split(b"\n"), theirs.split(b"\n"), strict=False)
            number = next(i for i, (x, y) in enumerate(pairs, start=1) if x != y)
            raise LedgerError(
                f"the checkpoint is of another run: its ledger (digest {saved.digest}) and this "
                f"one ({ledger.digest}) differ from line {number} on"
            )
        lacking = saved.decisions[ledger.num_decisions :]
        if lacking[0].position < ledger.fetched:
            raise LedgerError(
                f"load the checkpoint before the loader is iterated: its ledger decides position "
                f"{lacking[0].position}, and positions below {ledger.fetched} have been fetched"
            )
        for decision in lacking:
            ledger._apply(decision)


def drop_later(ledger: Ledger, decisions: int, digest: str, step: int) -> None:
    """Put out of force what a ledger decided after its first `decisions`, on the record.

    Nothing happens if there is nothing later. Otherwise one decision is appended, from the first
    position that differs: the weights in force before it, `replace_future=True`.

    Args:
        ledger: The run's.
        decisions: How many it had at the checkpoint.
        digest: Its digest then.
        step: Of the checkpoint, for the reason.

    Raises:
        LedgerError: The ledger is not the run's, has lost decisions, or decided later something
            that cannot be undone like this (new domains, another batch size).
    """
    count = integer("state['ledger']['decisions']", decisions, 1, MAX_POSITION)
    text("state['ledger']['digest']", digest)
    made = ledger.decisions
    if len(made) < count:
        raise LedgerError(
            f"the ledger has {len(made)} decisions, the state is of one with {count} (digest "
            f"{digest}): load the ledger that was saved with it"
        )
    if len(made) == count and ledger.digest == digest:
        return
    then = Ledger._rebuild(ledger.header(), list(made[:count]), None, "the ledger")
    if then.digest != digest:
        raise LedgerError(
            f"the state is of a ledger with the digest {digest}, this one had {then.digest} after "
            f"as many decisions: it is of another run"
        )
    before, now = then.pieces, ledger.pieces
    same = 0
    while same < min(len(before), len(now)) and before[same].digest == now[same].digest:
        same += 1
    if same == len(now):
        return  # e.g. decisions that were dropped once already
    at = now[same].start
    old = before[-1]
    simple = same == len(before) and now[same].batch_size == old.batch_size
    if not simple or len(then.domains) != len(ledger.domains):
        raise LedgerError(
            f"after the checkpoint at step {step} the ledger decided more than new weights: load "
            f"the ledger that was saved with the state"
        )
    ledger._append_shares(
        at,
        np.asarray(old.shares),
        old.floats,
        reason=f"resumed from step {step}: what was decided after it is decided anew",
        author="mixcore.controller",
        replace_future=True,
    )
