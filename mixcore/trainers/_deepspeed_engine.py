"""What a DeepSpeed engine says of the run, and what of it cannot be combined with a mixture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    check_config(config_of(engine))
    _one_reader_a_sample(getattr(engine, "sequence_parallel_size", 1))
    if getattr(engine, "training_dataloader", None) is not None:
        raise ArgumentError(
            "deepspeed.initialize must be called without training_data: the loader is made here"
        )


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse sections of a DeepSpeed configuration that choose or cut samples.

    Raises:
        ArgumentError: Names the section and the reason.
    """
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
    # Without data_parallel_size beside it an engine makes no sequence groups, and says 1.
    _one_reader_a_sample(config.get("sequence_parallel_size"))


def _one_reader_a_sample(size: Any) -> None:
    if int(size or 1) > 1:
        raise ArgumentError(
            f"sequence_parallel_size must be 1, got {size}: the ranks of a sequence group would "
            f"read different samples"
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


def resize(ledger: Ledger, position: int, batch_size: int) -> int:
    """Decide a batch size; what is decided for later positions stays, at its next batch boundary.

    A batch size decided for later stays as well, and ends this one.
    """
    author = "mixcore.trainers.deepspeed"
    before = ledger.piece_at(position)
    later = [piece for piece in ledger.pieces_from(position) if piece.start > position]
    effective = ledger.append(
        position,
        batch_size=batch_size,
        reason=f"train_batch_size {batch_size}",
        author=author,
        replace_future=bool(later),
    )
    size, shares = before.batch_size, before.shares
    reason = f"as it was decided before train_batch_size {batch_size}"
    for piece in later:
        if piece.batch_size != size:
            size = piece.batch_size
            ledger.append(piece.start, batch_size=size, reason=reason, author=author)
        if np.array_equal(piece.shares, shares):
            continue  # a batch size alone, which does not stand in the way of a method's weights
        shares = piece.shares
        ledger._append_shares(
            piece.start, np.asarray(shares), piece.floats, reason=reason, author=author
        )
    return effective


class Piped:
    """A loader whose batches a PipelineModule can take."""

    def __init__(self, loader: Any, pipe: Callable[[Any], Any]) -> None:
        self.loader, self._pipe = loader, pipe

    def __iter__(self) -> Any:
        return (self._pipe(batch) for batch in self.loader)
