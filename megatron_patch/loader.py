"""The train loader: Megatron's own DataLoader, with a batch sampler that reads the ledger."""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from megatron_patch import state
from megatron_patch.blend import MixedDataset
from mixcore import Ledger
from mixcore.batches import Key, MixBatchSampler
from mixcore.errors import ArgumentError

_building = threading.local()


class MixSampler:
    """In the place of MegatronPretrainingSampler: the same cut, live from the ledger.

    Workers are handed `mixcore.batches.Key`s, so a change never has to reach a worker. The loader
    is ahead of the training by 2 * num_workers micro-batches; what it has fetched is marked in the
    ledger, and no later decision touches it.
    """

    def __init__(
        self,
        run: "state.Run",
        total_samples: int,
        consumed_samples: int,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        end: int | None = None,
    ) -> None:
        self.total_samples = total_samples
        self.consumed_samples = consumed_samples
        self.micro_batch_size = micro_batch_size
        self.data_parallel_rank = data_parallel_rank
        self.micro_batch_times_data_parallel_size = micro_batch_size * data_parallel_size
        self.drop_last = True
        self._batches = MixBatchSampler(
            run.ledger,
            micro_batch_size,
            rank=data_parallel_rank,
            world_size=data_parallel_size,
            position=consumed_samples,
            end=end,  # what comes after it is not fetched ahead: it may not be there
        )

    def __len__(self) -> int:
        return self.total_samples  # of samples, not of batches: as Megatron's own

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self._batches)


def wrap_data_loader(original: Callable[..., Any]) -> Callable[..., Any]:
    """For `build_pretraining_data_loader(dataset, consumed_samples)`."""

    @functools.wraps(original)
    def build_pretraining_data_loader(dataset: Any, consumed_samples: int) -> Any:
        if not isinstance(dataset, MixedDataset):
            return original(dataset, consumed_samples)
        run = state.current()
        if run is None:
            raise ArgumentError("the dataset belongs to a run that has ended")
        _building.run, _building.end = run, _end(run.ledger, consumed_samples)
        try:
            return original(dataset, consumed_samples)
        finally:
            _building.run = None

    return build_pretraining_data_loader


def _end(ledger: Ledger, consumed: int) -> int | None:
    """The position at which Megatron's last iteration ends."""
    from megatron.training import get_args

    args = get_args()
    if args.train_iters is None:
        return None
    left = max(0, args.train_iters - args.iteration)
    return ledger.position_of_step(ledger.step_of_position(consumed) + left)


def wrap_sampler(original: Callable[..., Any]) -> Callable[..., Any]:
    """For the class MegatronPretrainingSampler, where `build_pretraining_data_loader` looks it up.

    That function makes the DataLoader, with everything that belongs to it in this version; only the
    sampler is ours, and only while it is called for a train split of ours.
    """

    @functools.wraps(original, updated=())
    def make_sampler(
        total_samples: int,
        consumed_samples: int,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        drop_last: bool = True,
    ) -> Any:
        run = getattr(_building, "run", None)
        given = (total_samples, consumed_samples, micro_batch_size)
        ranks = (data_parallel_rank, data_parallel_size)
        if run is None:
            return original(*given, *ranks, drop_last)
        return MixSampler(run, *given, *ranks, _building.end)

    return make_sampler
