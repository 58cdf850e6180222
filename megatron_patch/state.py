"""The run of this process: its ledger, and what it was planned from. There is one at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from megatron_patch.request import Built, Request
from mixcore import Ledger
from mixcore.errors import ArgumentError
from mixcore.trainers.settings import Settings

NOTES = "megatron"  # our entry among a ledger's notes


@dataclass
class Run:
    """What the patches share.

    Attributes:
        request: What the command line asks for; `built` is about the run's beginning instead.
        settings: Method, guards, files.
        ledger: This rank's.
        resumed: The state saved in the checkpoint that this process goes on from, or None.
        live: The part that steps with the training loop (`megatron_patch.live.Live`), if it does.
    """

    request: Request
    settings: Settings
    ledger: Ledger
    resumed: dict[str, Any] | None = None
    live: Any = field(default=None, repr=False)

    def built(self, name: str) -> Built:
        """How Megatron built a domain when the run began (order `megatron`)."""
        return Built(*self.ledger.notes[NOTES]["built"][name])


_run: Run | None = None
_saved_args: Any = None  # of the checkpoint that was loaded
_planner: Callable[[Any], Run] | None = None


def current() -> Run | None:
    """The run, if the mixture is ours."""
    return _run


def begin(run: Run) -> None:
    """Make a run the one of this process."""
    global _run
    _run = run


def end() -> None:
    """Forget the run; for tests, and before another."""
    global _run, _saved_args, _planner
    _run = _saved_args = _planner = None


def remember_checkpoint(args: Any) -> None:
    """Keep the arguments that a checkpoint was saved with, until the run is planned."""
    global _saved_args
    _saved_args = args


def checkpoint() -> Any:
    """The arguments saved in the checkpoint that was loaded, or None."""
    return _saved_args


def plan_with(planner: Callable[[Any], Run] | None) -> None:
    """Plan the run from the first dataset builder instead of from a command line."""
    global _planner
    _planner = planner


def for_builder(builder: Any) -> Run | None:
    """The run that a dataset builder's train split belongs to, or None: Megatron's own will do."""
    if current() is None and _planner is None:
        return None
    config = builder.config
    if config.mock:
        raise ArgumentError("--mock-data has no domains to mix: leave it or the --mix flags out")
    if config.blend is None and config.blend_per_split[0] is None:
        return None
    if current() is None and _planner is not None:
        begin(_planner(builder))
    return current()
