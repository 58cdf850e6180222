"""What a DeepSpeed engine says of the run, and what of it cannot be combined with a mixture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixcore.dataset import MixDataset
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.ledger import Ledger
from mixcore.trainers.settings import KnownDomain


@dataclass(frozen=True)
class Facts:
    """How an engine cuts a step.

    Attributes:
        micro_batch_size: Samples of one data-parallel rank at a time.
        micro_batches: Of one rank in a step (gradient accumulation steps).
        data: (rank, size) of the data-parallel group.
        job: (rank, size) of all processes.
        pipeline: It is a PipelineEngine.
        observes: This rank sees losses that count: the last stage, one rank of a tensor group.
    """

    micro_batch_size: int
    micro_batches: int
    data: tuple[int, int]
    job: tuple[int, int]
    pipeline: bool
    observes: bool

    @property
    def batch_size(self) -> int:
        """Samples a step, over all ranks."""
        return self.micro_batch_size * self.micro_batches * self.data[1]


def facts_of(engine: Any) -> Facts:
    """Read an engine; its groups are asked, not its mpu, which may not know sequence groups."""
    import torch.distributed as dist

    grid: Any = getattr(engine, "grid", None)
    pipeline = grid is not None
    group = grid.get_data_parallel_group() if pipeline else engine.data_parallel_group
    observes = True
    if pipeline:
        observes = bool(engine.is_last_stage()) and grid.get_slice_parallel_rank() == 0
    elif getattr(engine.mpu, "get_model_parallel_rank", None) is not None:
        observes = engine.mpu.get_model_parallel_rank() == 0
    return Facts(
        int(engine.train_micro_batch_size_per_gpu()),
        int(engine.gradient_accumulation_steps()),
        (dist.get_rank(group), dist.get_world_size(group)),
        (dist.get_rank(), dist.get_world_size()),
        pipeline,
        observes,
    )


def config_of(engine: Any) -> Mapping[str, Any]:
    """The user's configuration, which may have been given as a file."""
    config = engine.config if isinstance(engine.config, Mapping) else engine._config._param_dict
    found: Mapping[str, Any] = config
    return found


def check_engine(engine: Any) -> None:
    """Refuse what chooses or cuts samples by itself.

    Raises:
        ArgumentTypeError: It is no engine.
        ArgumentError: Names the section and the reason.
    """
    if not hasattr(engine, "global_samples") or not hasattr(engine, "train_batch_size"):
        raise ArgumentTypeError(f"engine must be from deepspeed.initialize, got {engine!r}")
    config = config_of(engine)
    efficiency = config.get("data_efficiency") or {}
    sampling = efficiency.get("data_sampling") or {}
    if efficiency.get("enabled") and sampling.get("enabled"):
        raise ArgumentError(
            "data_efficiency.data_sampling must not be enabled: its curriculum draws samples by "
            "itself, in place of the mixture"
        )
    if (config.get("curriculum_learning") or {}).get("enabled"):
        raise ArgumentError(
            "curriculum_learning must not be enabled: it cuts the samples that the mixture counts"
        )
    if int(getattr(engine, "sequence_parallel_size", 1) or 1) > 1:
        raise ArgumentError(
            f"sequence_parallel_size must be 1, got {engine.sequence_parallel_size}: the ranks of "
            f"a sequence group would read different samples"
        )
    if getattr(engine, "training_dataloader", None) is not None:
        raise ArgumentError(
            "deepspeed.initialize must be called without training_data: the loader is made here"
        )


def domains_of(datasets: Any, ledger: Ledger | None) -> Sequence[KnownDomain]:
    """The domains that the trainer has."""
    if isinstance(datasets, MixDataset) != (ledger is not None):
        raise ArgumentError("ledger and a MixDataset must be given together, or neither")
    if ledger is not None:
        weights = ledger.weights_at(0)
        both = zip(ledger.domains, weights.tolist(), strict=True)
        return [KnownDomain(d.name, d.size, w) for d, w in both]
    if not isinstance(datasets, Mapping):
        raise ArgumentTypeError(f"datasets must map names to datasets, got {datasets!r}")
    sizes = {n: len(d) if hasattr(d, "__len__") else None for n, d in datasets.items()}
    return [KnownDomain(name, size) for name, size in sizes.items()]


class Piped:
    """A loader whose batches a PipelineModule can take."""

    def __init__(self, loader: Any, pipe: Callable[[Any], Any]) -> None:
        self.loader, self._pipe = loader, pipe

    def __iter__(self) -> Any:
        return (self._pipe(batch) for batch in self.loader)
