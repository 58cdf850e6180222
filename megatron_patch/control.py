"""How a run's controller goes on from a checkpoint, and what it may not do."""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_patch.state import Run
from mixcore import Controller
from mixcore.controller import default_lag
from mixcore.errors import ArgumentError
from mixcore.guards import Guard, Moment, guards_from
from mixcore.methods.base import normalise

logger = logging.getLogger("megatron_patch")


def lag(run: Run, num_workers: int, micro_batches: int) -> dict[str, Any]:
    """A lag that is not given stays what it was, unless this loader is further ahead."""
    before = None if run.resumed is None else run.resumed["controller"]
    if run.settings.lag_steps is None and before is not None:
        least = default_lag(num_workers, micro_batches=micro_batches)
        return {"lag_steps": max(before["lag_steps"], least)}
    return {}


def go_on(run: Run, controller: Controller) -> None:
    """Give the controller its state back, if it is of the same method and domains.

    Raises:
        ArgumentError: The lag is shorter than it was: what is decided, and not yet in force, may be
            for later than the next decision.
    """
    before = None if run.resumed is None else run.resumed["controller"]
    if before is None:
        return
    was = before["lag_steps"]
    if controller.lag_steps < was:
        raise ArgumentError(
            f"--mix-lag (or method.lag_steps) was {was} and is {controller.lag_steps} now: it can "
            f"grow, but not shrink"
        )
    if controller.lag_steps > was:
        logger.info("the lag was %d steps and is %d from here on", was, controller.lag_steps)
    name = before["method"]["name"]
    if name != controller.method.name:
        logger.info("the method was %r and is %r from here on", name, controller.method.name)
        return
    if len(before["accumulated"]) != len(run.ledger.domains):
        logger.info("domains are new: the method %r begins anew", name)
        return
    # The ledger is the checkpoint's own, and perhaps what the new command line adds to it.
    now = {"decisions": run.ledger.num_decisions, "digest": run.ledger.digest}
    controller.load_state_dict(before | {"ledger": now, "lag_steps": controller.lag_steps})


def only_present(run: Run) -> list[Guard]:
    """The configuration's guards, and after them: no weight for what is not on the command line."""
    guards = list(guards_from(run.settings.config.guards))
    here = np.isin([d.name for d in run.ledger.domains], run.request.names)
    if here.all():
        return guards

    def present(weights: npt.NDArray[np.float64], moment: Moment) -> npt.NDArray[np.float64]:
        kept = np.where(here, weights, 0.0)
        if not kept.any():
            kept = np.where(here, moment.weights, 0.0)
        return normalise(kept if kept.any() else here.astype(np.float64))

    return [*guards, present]
