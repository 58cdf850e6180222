"""Samples of a fixed length from one corpus in Megatron's format: numpy only, no cache files.

`mode="shuffled"` packs as Megatron's GPTDataset does (megatron/core/datasets/gpt_dataset.py:
shuffle the documents, lay them end to end, cut every `seq_length` tokens, shuffle the samples),
with one difference that matters when a run changes its plan: an epoch's order is a function of
(seed, name, epoch) alone, while Megatron's depends on how many samples are asked for.
`mode="virtual"` cuts the stream as it lies in the `.bin` and keeps no index at all.

Not for padding, masks or end-of-document handling: a sample is tokens and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixcore.errors import ArgumentError, ArgumentTypeError, DataError, OutOfRangeError
from mixcore.indexed import as_int
from mixcore.megatron_arrays import build_sample_idx
from mixcore.views import open_corpus

_INT32_MAX = 2**31 - 1


class _Epoch(NamedTuple):
    """What one epoch of mode `shuffled` needs; 4 bytes a document, 8 to 16 a sample."""

    documents: NDArray[np.int32]  # [n], sequences of the corpus in this epoch's order
    starts: NDArray[Any]  # [N + 1, 2], place in `documents` and offset there of each cut
    samples: NDArray[np.int64] | None  # [N], which cut sample i is; None: cut i


class GPTDataset:
    """Samples of `seq_length + 1` tokens; neighbours in the stream share one token, as labels need.

    Example:
        >>> web = GPTDataset("data/web", 1024, name="web", seed=1234)
        >>> len(web)                                   # samples in every epoch
        1333
        >>> tokens, labels = inputs_and_labels(web[2, 17])   # epoch, sample; web[17]: epoch 0
        >>> tokens.shape, labels.shape
        ((1024,), (1024,))

    Every epoch has `(tokens - 1) // seq_length` samples: each token but the tail comes as an input
    once. Mode `shuffled` drops another tail in each epoch. Its "documents" are the sequences of the
    `.idx`, as in Megatron: one each unless a document was written with `lengths`.

    Pickles as its arguments and opens the files again; safe to fork. The arrays of an epoch are
    built when it is first asked for (about 0.4 s for ten million documents on two cores).

    Args:
        prefix: Path of the corpus without `.bin` and `.idx`.
        seq_length: Tokens a sample, not counting the one for the last label.
        mode: "shuffled" or "virtual" (module docstring). "virtual" checks the index where it reads,
            so that opening takes the same time for every corpus.
        name: The domain's name, part of the key of the shuffles; the last part of `prefix` by
            default.
        seed: 0 to 2^64 - 1, the other part.
        sample_shuffle: Shuffle the samples of an epoch after the documents. Leave it off (False)
            where a `Sampler` does that. None means on in mode "shuffled"; "virtual" has none.
        cache_epochs: Epochs whose arrays are kept, the last ones built.

    Attributes:
        corpus: The `IndexedReader`, perhaps a `View`.

    Raises:
        ArgumentError: An argument cannot be used, or the corpus has no seq_length + 1 tokens.
        DataError: The files are missing or damaged, or hold floats.
    """

    takes_epoch = True  # MixDataset asks for [epoch, sample]

    def __init__(
        self,
        prefix: str | os.PathLike[str],
        seq_length: int,
        *,
        mode: str = "shuffled",
        name: str | None = None,
        seed: int = 0,
        sample_shuffle: bool | None = None,
        cache_epochs: int = 2,
    ) -> None:
        self.seq_length = as_int("seq_length", seq_length)
        if not 1 <= self.seq_length < _INT32_MAX:
            raise ArgumentError(f"seq_length must be in [1, 2^31 - 2], got {seq_length}")
        if mode not in ("shuffled", "virtual"):
            raise ArgumentError(f'mode must be "shuffled" or "virtual", got {mode!r}')
        self.mode = mode
        self.seed = as_int("seed", seed)
        if not 0 <= self.seed < 2**64:
            raise ArgumentError(f"seed must be in [0, 2^64 - 1], got {seed}")
        if not (sample_shuffle is None or isinstance(sample_shuffle, bool)):
            raise ArgumentTypeError(f"sample_shuffle must be a bool, got {sample_shuffle!r}")
        if mode == "virtual" and sample_shuffle:
            raise ArgumentError('sample_shuffle must not be True in mode "virtual", got True')
        self.sample_shuffle = mode == "shuffled" if sample_shuffle is None else sample_shuffle
        self.cache_epochs = as_int("cache_epochs", cache_epochs)
        if self.cache_epochs < 1:
            raise ArgumentError(f"cache_epochs must be at least 1, got {cache_epochs}")
        self.corpus = open_corpus(prefix, verify=mode == "shuffled")
        self.name = os.path.basename(self.corpus.prefix) if name is None else name
        if not isinstance(self.name, str):
            raise ArgumentTypeError(f"name must be a str, got {name!r}")
        if self.corpus.dtype.kind not in "iu":
            raise DataError(f"{self.corpus.idx_path}: dtype = {self.corpus.dtype}: not tokens")
        self._num_samples = (self.corpus.num_tokens - 1) // self.seq_length
        if self._num_samples < 1:
            raise ArgumentError(
                f"seq_length must be below the number of tokens, got {seq_length} for "
                f"{self.corpus.num_tokens} tokens ({self.corpus.prefix})"
            )
        if mode == "shuffled" and len(self.corpus) > _INT32_MAX:
            raise ArgumentError(
                f'mode must be "virtual" beyond 2^31 - 1 sequences, got "shuffled" for '
                f"{len(self.corpus)} ({self.corpus.prefix})"
            )
        self._epochs: dict[int, _Epoch] = {}

    def __len__(self) -> int:
        """Samples per epoch, the same in every epoch."""
        return self._num_samples

    def __getitem__(self, key: int | tuple[int, int]) -> NDArray[np.int64]:
        """The tokens of one sample.

        Args:
            key: A sample of epoch 0, or (epoch, sample). Mode "virtual" is the same in all epochs.

        Returns:
            int64[seq_length + 1], a fresh array, whatever the dtype of the files.

        Raises:
            OutOfRangeError: (an IndexError) There is no such sample or epoch.
        """
        if isinstance(key, tuple) and len(key) != 2:
            raise ArgumentTypeError(f"key must be a sample or (epoch, sample), got {key!r}")
        epoch, sample = key if isinstance(key, tuple) else (0, key)
        epoch, sample = as_int("epoch", epoch), as_int("sample", sample)
        if not 0 <= sample < self._num_samples:
            raise OutOfRangeError(
                f"sample must be in [0, {self._num_samples}), got {sample} ({self.name})"
            )
        if epoch < 0:
            raise OutOfRangeError(f"epoch must not be negative, got {epoch} ({self.name})")
        if self.mode == "virtual":
            first = sample * self.seq_length
            return self.corpus.read(first, self.seq_length + 1).astype(np.int64)
        return self._packed(self._epoch(epoch), sample)

    def _packed(self, epoch: _Epoch, sample: int) -> NDArray[np.int64]:
        """The tokens between two cuts, and the one after them."""
        cut = sample if epoch.samples is None else int(epoch.samples[sample])
        (first, skip), (last, _) = epoch.starts[cut : cut + 2].tolist()
        starts, lengths = self.corpus.entries(epoch.documents[first : last + 1])
        tokens = np.empty(self.seq_length + 1, np.int64)
        filled = 0
        for start, length in zip(starts, lengths, strict=True):
            taken = min(length - skip, len(tokens) - filled)
            tokens[filled : filled + taken] = self.corpus.stream[
                start + skip : start + skip + taken
            ]
            filled += taken
            skip = 0
        if filled != len(tokens):
            raise DataError(f"{self.corpus.idx_path}: changed while it was open")
        return tokens

    def _epoch(self, number: int) -> _Epoch:
        # No lock: two threads may build the same epoch, which costs time and changes nothing, while
        # a lock held during a fork would hang the child.
        epoch = self._epochs.get(number)
        if epoch is None:
            documents = document_order(
                len(self.corpus), seed=self.seed, name=self.name, epoch=number
            )
            lengths = np.array(self.corpus.sequence_lengths)  # a copy: the file's is not aligned
            starts = build_sample_idx(
                lengths, documents, self.seq_length, 1, self.corpus.num_tokens
            )
            samples = None
            if self.sample_shuffle:
                samples = _permutation(len(self), _key(self.seed, self.name, number, "samples"))
            epoch = self._epochs[number] = _Epoch(documents, starts, samples)
            for old in list(self._epochs)[: -self.cache_epochs]:
                self._epochs.pop(old, None)
        return epoch

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_epochs": {},
        }  # rebuilt there on demand: smaller than sending them


def inputs_and_labels(sample: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A sample of S + 1 tokens as its S inputs and, one place on, its S labels (two views)."""
    return sample[:-1], sample[1:]


def document_order(count: int, *, seed: int, name: str, epoch: int = 0) -> NDArray[np.int32]:
    """The order in which an epoch of a domain lays its documents end to end.

    Args:
        count: Documents, at most 2^31 - 1.
        seed: Of the run.
        name: The domain's.
        epoch: Which one.

    Returns:
        int32[count], a permutation of 0 to count - 1.
    """
    return _permutation(count, _key(seed, name, epoch, "documents")).astype(np.int32)


def _key(seed: int, name: str, epoch: int, purpose: str) -> int:
    """128 bits named by (seed, name, epoch, purpose); sums like seed + epoch would collide."""
    text = f"{seed}\0{epoch}\0{purpose}\0{name}"  # the free text last: unambiguous
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def _permutation(size: int, key: int) -> NDArray[np.int64]:
    """A permutation of 0 to size - 1 that no version of numpy may change.

    Sorts Philox's raw words with the number itself in their low bits. numpy promises the raw stream
    of a bit generator for ever, but not what Generator.permutation makes of it, and an order that
    changed in the middle of an epoch would repeat samples. (It is faster, too.) 64 - log2(size)
    bits of each word are random; words equal in those keep the order of their numbers.
    """
    words = np.random.Philox(key=key).random_raw(size)
    low = np.uint64((1 << max(size - 1, 0).bit_length()) - 1)
    words &= ~low
    words |= np.arange(size, dtype=np.uint64)
    words.sort()
    words &= low
    return words.view(np.int64)
