"""The dataset rows by themselves: for programs with megatron.core and their own training loop."""

import os
from argparse import Namespace
from typing import Any

from megatron_patch import plan, state
from megatron_patch.request import SURPLUS, Request, request_for
from megatron_patch.state import Run
from mixcore import Ledger
from mixcore._checks import MAX_BATCH, MAX_POSITION, integer
from mixcore.errors import ArgumentError


def use(
    mix_config: str | os.PathLike[str] | None = None,
    *,
    batch_size: int,
    order: str | None = None,
    ledger: Ledger | None = None,
    consumed: int = 0,
) -> None:
    """Mix the train split of the next dataset builder.

    Example:
        >>> megatron_patch.apply(["dataset"])
        >>> megatron_patch.use("mix.yaml", batch_size=512)
        >>> train, valid, test = BlendedMegatronDatasetBuilder(...).build()
        >>> sample = train[position]          # the sample at a position of the run
        >>> megatron_patch.ledger().save("ledger.json")

    The train split is indexed by position, so any sampler that counts positions will do. It answers
    from the ledger as it is when a loader's workers are forked: weights may follow a schedule, and
    change at a restart (`ledger`, `consumed`, and a builder with other weights). To change them
    without one, use the launcher, or a loader over a `mixcore.MixBatchSampler` of
    `megatron_patch.ledger()`, whose keys the train split takes as well.

    Args:
        mix_config: A `mix.yaml`; a method in it is not asked.
        batch_size: Samples a step: a change takes effect on a boundary of these.
        order: "balanced" (the default) or "megatron".
        ledger: To go on from; None: a new run.
        consumed: Samples trained on so far.

    Raises:
        ArgumentError: A bad argument; the rows are not in place; or, from `build`, what does not
            fit the blend.
    """
    size = integer("batch_size", batch_size, 1, MAX_BATCH)
    position = integer("consumed", consumed, 0, MAX_POSITION - 1)
    if ledger is None and position:
        raise ArgumentError(f"consumed must be 0 without a ledger to go on from, got {consumed}")
    flags = Namespace(mix_config=mix_config, mix_order=order)

    def planned(builder: Any) -> Run:
        request = _request(builder, size)
        settings = plan.settings_for(flags, request)
        if ledger is None:
            return Run(request, settings, plan.new_ledger(request, settings))
        plan.continue_with(ledger, request, settings, position, None)
        return Run(request, settings, ledger)

    state.end()
    state.plan_with(planned)


def ledger() -> Ledger:
    """The ledger of the run.

    Raises:
        ArgumentError: There is none: no train split has been built yet.
    """
    run = state.current()
    if run is None:
        raise ArgumentError("there is no run yet: call use, then build the datasets")
    return run.ledger


def _request(builder: Any, batch_size: int) -> Request:
    config = builder.config
    split = None if config.blend is None else config.split_matrix[0]
    return request_for(
        config.blend,
        config.blend_per_split,
        split,
        seq_length=config.sequence_length,
        seed=config.random_seed,
        train_samples=builder.sizes[0],
        batch_sizes=((0, batch_size),),
        surplus=getattr(config, "mid_level_dataset_surplus", SURPLUS),
    )
