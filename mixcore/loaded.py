"""Checks on decisions from a file, whose chain may be intact and its content still wrong."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixcore.decision import Decision
from mixcore.domains import Domain, check_domains
from mixcore.errors import LedgerError
from mixcore.schedule import Step, boundary

if TYPE_CHECKING:
    from mixcore.ledger import Ledger


def check_loaded(ledger: "Ledger", decision: Decision) -> None:
    """Refuse what `Ledger.append` would not have written as the ledger's next decision."""
    if decision.add:
        check_domains(decision.add, ledger.domains)
    size = len(ledger.domains) + len(decision.add)
    steps = decision.schedule.steps if decision.schedule else ()
    first = Step(decision.position, decision.shares, decision.floats, None)
    for step in (first, *steps):
        for values in (step.shares, step.floats):
            if values is not None and len(values) != size:
                raise LedgerError(f"it has {len(values)} shares for {size} domains")
        if (step.floats is None) != (step.shares is None or ledger.order != "megatron"):
            raise LedgerError(f"weights do not fit order {ledger.order!r}")
    if not ledger._decisions:
        if decision.position or decision.batch_size is None or not decision.add:
            raise LedgerError("the first decision must begin the run")
        begun = steps and steps[0].position == 0 and steps[0].shares is not None
        if decision.shares is None and not begun:
            raise LedgerError("the first decision has no shares")
        return
    if decision.add and decision.shares is None:
        raise LedgerError("domains were added without shares")
    piece = ledger.piece_at(decision.position)
    if boundary(piece.start, piece.batch_size, decision.position) != decision.position:
        raise LedgerError(f"position {decision.position} is not a batch boundary")
    ledger._check_future(decision)


def check_same_domains(mine: Sequence[Domain], given: Sequence[Domain], where: str) -> None:
    """Refuse a ledger whose domains are not the ones that the caller has."""
    given = check_domains(given)
    for own, other in zip(mine, given, strict=False):
        if own != other:
            raise LedgerError(f"{where} is of other domains: it has {own}, not {other}")
    if len(given) != len(mine):
        raise LedgerError(f"{where} is of other domains: it has {len(mine)}, not {len(given)}")
