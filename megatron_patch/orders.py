"""The order of the samples inside one domain: Megatron's own, pinned; or ours, one epoch long.

Megatron shuffles all epochs of a domain together, so its order changes with the number of samples
asked for, and that with the weights. **Pinned**: the arrays are built as they were when the run
began, whatever is asked for now, and draws beyond them go on in epochs of our own. **One epoch**:
documents are shuffled and cut once (`document_order`, `build_sample_idx`), in memory, and the
ledger's sampler shuffles the samples, anew in each epoch.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

import mixcore
from megatron_patch.request import Built, Corpus
from mixcore import _core
from mixcore.domains import stream_key
from mixcore.errors import ArgumentError, DataError
from mixcore.gpt_dataset import document_order
from mixcore.reference import EPOCH

_building = threading.local()  # Megatron builds domains in threads


@contextmanager
def one_epoch(name: str, seed: int) -> Iterator[None]:
    """GPTDatasets that this thread builds meanwhile get `one_epoch_arrays`."""
    _building.domain = (name, seed)
    try:
        yield
    finally:
        _building.domain = None


def wrap_build_indices(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """For `GPTDataset._build_document_sample_shuffle_indices`."""

    def _build_document_sample_shuffle_indices(self: Any) -> Any:
        domain = getattr(_building, "domain", None)
        return original(self) if domain is None else one_epoch_arrays(self, *domain)

    return _build_document_sample_shuffle_indices


def one_epoch_arrays(dataset: Any, name: str, seed: int) -> tuple[Any, Any, Any]:
    """Document, sample and shuffle index of one epoch, as Megatron's GPTDataset reads them.

    Args:
        dataset: A GPTDataset under construction.
        name: Of the domain.
        seed: Of the run.

    Returns:
        int32[documents]; [samples + 1, 2], which document a sample begins in and where;
        `Unshuffled(samples)`.
    """
    indices = dataset.indices
    if indices is None:
        raise ArgumentError(
            "--dataloader-fast-cache-load reads a cache of index arrays, which order 'balanced' "
            "does not have or need: leave the flag out"
        )
    documents = document_order(len(indices), seed=seed, name=name)
    lengths = np.array(dataset.dataset.sequence_lengths, dtype=np.int32)
    if _counts_from_0(indices):  # Megatron's train splits do: two gathers less, a third of the time
        read = lengths[: len(indices)]
    else:
        documents, read = indices[documents], lengths[indices]
    tokens = int(np.sum(read, dtype=np.int64))
    starts = mixcore.build_sample_idx(
        lengths,
        documents,
        dataset.config.sequence_length,
        1,
        tokens,
        True,
        dataset.config.add_extra_token_to_sequence,
    )
    return documents, starts, Unshuffled(len(starts) - 1)


def _counts_from_0(indices: npt.NDArray[Any]) -> bool:
    """Whether they are 0, 1, 2, ...; both ends first, which is quick where they are not."""
    size = len(indices)
    return bool(
        size
        and indices[0] == 0
        and indices[-1] == size - 1
        and np.array_equal(indices, np.arange(size, dtype=indices.dtype))
    )


class Unshuffled:
    """Stands in for an array 0, 1, 2, ... without holding it: the sampler has shuffled already."""

    def __init__(self, size: int) -> None:
        self.shape = (size,)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"sample {index} of {self.shape[0]}")
        return index


class OneEpoch:
    """A domain in order `balanced` or `random`: the ledger says epoch and sample.

    Args:
        corpus: What it is.
        build: Builds Megatron's dataset of it, one epoch long; called at the first read if not
            before.
    """

    def __init__(self, corpus: Corpus, build: Callable[[], Any]) -> None:
        self.corpus = corpus
        self._build = build
        self._dataset: Any = None

    @property
    def dataset(self) -> Any:
        """Megatron's dataset, built if need be."""
        if self._dataset is None:
            dataset = self._build()
            if len(dataset) != self.corpus.samples:
                raise DataError(
                    f"{self.corpus.prefix}: the ledger has {self.corpus.samples} samples per "
                    f"epoch, the files here have {len(dataset)}"
                )
            self._dataset = dataset
        return self._dataset

    def read(self, draw: int, sample: int) -> dict[str, Any]:
        """One sample: what Megatron's dataset returns."""
        found: dict[str, Any] = self.dataset[sample]
        return found

    def forget(self) -> None:
        """Close the files; they are opened again when needed."""
        self._dataset = None


class Pinned(OneEpoch):
    """A domain in order `megatron`: first Megatron's arrays, then epochs of our own.

    Args:
        corpus: What it is.
        pinned: Megatron's dataset as it was first built; None if it was not.
        built: Its size.
        build: As in OneEpoch, for what comes after.
        seed: Of the run.
    """

    def __init__(
        self, corpus: Corpus, pinned: Any, built: Built, build: Callable[[], Any], seed: int
    ) -> None:
        super().__init__(corpus, build)
        if pinned is not None and len(pinned) != built.samples:
            raise DataError(
                f"{corpus.prefix}: the run began with {built.samples} samples in {built.epochs} "
                f"epochs, the files here give {len(pinned)}"
            )
        self.pinned, self.built = pinned, built
        self._key = stream_key(seed, "appended", corpus.name)

    def read(self, draw: int, sample: int) -> dict[str, Any]:
        """The sample of a draw; the ledger's own sample is of no use here."""
        after = draw - self.built.samples
        if after < 0:
            found: dict[str, Any] = self.pinned[draw]
            return found
        epoch, place = divmod(after, self.corpus.samples)
        return super().read(draw, appended(self.corpus.samples, self._key, epoch, place))


def appended(samples: int, key: int, epoch: int, place: int) -> int:
    """The sample at a place of an epoch that follows Megatron's arrays: shuffled by our own key."""
    point: npt.NDArray[np.int64] = np.array([place], dtype=np.int64)
    return int(_core.permutation(samples, key, epoch, EPOCH, point)[0])
