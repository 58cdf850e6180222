"""The train split of a Megatron run, read through a ledger: in the place of BlendedDataset."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from megatron_patch import orders, state
from megatron_patch.orders import OneEpoch, Pinned
from megatron_patch.request import ABSENT
from mixcore import Ledger, Sampler
from mixcore.batches import Key
from mixcore.errors import ArgumentError, LedgerError

EAGER = 4096  # domains: up to here all are opened before the workers are forked
OPEN = 4096  # domains that a process keeps open beyond that; the kernel limits mappings to 65,530


class MixedDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """All domains of the train split; what Megatron's own datasets return, and `dataset_id`.

    A loader indexes it by `mixcore.batches.Key`, which says all there is to know of a sample. An
    integer is a position, answered from the ledger as it was when this object was made or forked.

    Args:
        ledger: The run's.
        domains: One a domain of the ledger; None: it is no longer on the command line.
        size: Samples that Megatron asked for.
        split: Megatron's `Split.train`.
        config: Megatron's dataset configuration.
    """

    def __init__(
        self,
        ledger: Ledger,
        domains: Sequence[OneEpoch | None],
        size: int,
        split: Any,
        config: Any,
    ) -> None:
        self.domains = list(domains)
        self.size, self.split, self.config = size, split, config
        self._names = [d.name for d in ledger.domains]
        self._sampler = Sampler(ledger)
        self._id = np.int16 if len(domains) < 32767 else np.int64  # as Megatron's dataset_index
        self._opened: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> dict[str, Any]:
        if isinstance(index, tuple):
            key = Key(*index)
        else:
            at = self._sampler.at([int(index)])
            key = Key(int(index), *(int(x[0]) for x in (at.domain, at.draw, at.epoch, at.sample)))
        domain = self.domains[key.domain]
        if domain is None:
            raise LedgerError(
                f"position {key.position} is of domain {self._names[key.domain]!r}, whose files "
                f"are not on the command line any more"
            )
        if len(self.domains) > EAGER:
            self._limit(key.domain)
        try:
            found = domain.read(key.draw, key.sample)
        except Exception as e:
            e.add_note(
                f"while reading draw {key.draw} of domain {self._names[key.domain]!r} "
                f"(position {key.position}, epoch {key.epoch})"
            )
            raise
        return {"dataset_id": self._id(key.domain), **found}

    def _limit(self, number: int) -> None:
        """Close the domain that was used longest ago, if this one is one too many."""
        if number in self._opened:
            self._opened.remove(number)
        self._opened.append(number)
        if len(self._opened) > OPEN:
            oldest = self.domains[self._opened.pop(0)]
            assert oldest is not None
            oldest.forget()


def wrap_build(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """For `BlendedMegatronDatasetBuilder.build`: ours for the train split, its own for the rest."""

    @functools.wraps(original)
    def build(self: Any) -> Any:
        run = state.for_builder(self)
        if run is None:
            return original(self)
        return [train_split(self, run), *original(_without_train(self))[1:]]

    return build


def _without_train(builder: Any) -> Any:
    """A builder like this one that makes no train split, and changes nothing else of it.

    The configuration stays as it is: the names of Megatron's cache files depend on it.
    """
    from megatron.core.datasets.blended_dataset import BlendedDataset

    rest = copy.copy(builder)
    splits, generic = rest._build_megatron_dataset_splits, rest.build_generic_dataset

    def _build_megatron_dataset_splits(path: Any, split: Any, sizes: Any, *more: Any) -> Any:
        found = [None] * len(split)
        if any(s is not None for s in split[1:]):
            found = splits(path, [None, *split[1:]], sizes, *more)
        return [_ELSEWHERE if split[0] is not None else None, *found[1:]]

    def build_generic_dataset(cls: Any, on_rank: Any, wait: Any, *more: Any) -> Any:
        if cls is not BlendedDataset:
            return generic(cls, on_rank, wait, *more)
        datasets, weights, *others = more
        if any(d is _ELSEWHERE for d in datasets):
            return None
        kept = [i for i, w in enumerate(weights) if w != 0]  # BlendedDataset refuses a weight of 0
        datasets, weights = [datasets[i] for i in kept], [weights[i] for i in kept]
        return generic(cls, on_rank, wait, datasets, weights, *others)

    rest._build_megatron_dataset_splits = _build_megatron_dataset_splits
    rest.build_generic_dataset = build_generic_dataset
    return rest


class _Elsewhere:
    """In the place of a train split that is built by us; on all ranks alike, unlike None."""

    def __len__(self) -> int:
        return 0


_ELSEWHERE = _Elsewhere()


def train_split(builder: Any, run: "state.Run") -> MixedDataset | None:
    """The train split of a builder, or None on a rank that builds none."""
    from megatron.core.datasets.utils import Split

    config = builder.config
    blend = config.blend if config.blend is not None else config.blend_per_split[0]
    here = [str(prefix) for prefix in blend[0]]
    if here != run.request.prefixes:
        raise ArgumentError(
            f"the train blend to build is {here}, but the mixture was planned for "
            f"{run.request.prefixes}: one run has one train blend"
        )
    if config.sequence_length != run.request.seq_length:
        raise ArgumentError(
            f"the dataset's sequence_length is {config.sequence_length}, the mixture was planned "
            f"for {run.request.seq_length}"
        )
    pinned = None
    if run.ledger.order == "megatron":  # every rank takes part: it has barriers
        pinned = _built_by_megatron(builder, run)
    if torch.distributed.is_initialized() and not builder.is_built_on_rank():
        return None
    domains = _domains(builder, run, pinned)
    return MixedDataset(run.ledger, domains, builder.sizes[0], Split.train, config)


def _domains(
    builder: Any, run: "state.Run", pinned: Mapping[str, Any] | None
) -> list[OneEpoch | None]:
    """The readers, by number of domain."""
    seed = run.ledger.seed
    readers: dict[str, OneEpoch] = {}
    for corpus in run.request.corpora:

        def build(prefix: str = corpus.prefix, name: str = corpus.name) -> Any:
            with orders.one_epoch(name, seed):
                split = [run.request.split, None, None]
                return builder._build_megatron_dataset_splits(prefix, split, [None, 0, 0], False)[0]

        if pinned is None:
            readers[corpus.name] = OneEpoch(corpus, build)
        else:
            built = run.built(corpus.name)
            readers[corpus.name] = Pinned(corpus, pinned.get(corpus.name), built, build, seed)
    if pinned is None and len(readers) <= EAGER:
        with ThreadPoolExecutor(builder.config.num_dataset_builder_threads) as pool:
            for _ in pool.map(lambda reader: reader.dataset, readers.values()):
                pass
    return [readers.get(d.name) for d in run.ledger.domains]


def _built_by_megatron(builder: Any, run: "state.Run") -> dict[str, Any]:
    """Megatron's own datasets, in the sizes of the run's beginning, cached as Megatron does."""
    pairs = [(c, run.built(c.name)) for c in run.request.corpora]
    pairs = [(c, built) for c, built in pairs if built != ABSENT]
    split = [run.request.split, None, None]
    sizes = [[built.requested, 0, 0] for _, built in pairs]
    prefixes = [c.prefix for c, _ in pairs]
    found = builder._build_megatron_datasets_parallel(prefixes, split, sizes)[0]
    return {c.name: dataset for (c, _), dataset in zip(pairs, found, strict=True)}
