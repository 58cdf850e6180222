"""Megatron-Core's index arrays, byte for byte, from faster loops.

The rules are those of megatron/core/datasets/helpers.cpp (Megatron-Core 0.16 to 0.19): which
dataset each sample of a blend comes from, and where in the documents each sample starts. The slow
twin of every function is in `mixcore.reference_megatron`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore import _core
from mixcore._checks import MAX_POSITION, choice, integer
from mixcore.domains import Domain
from mixcore.errors import ArgumentError, ArgumentTypeError, DeviceError

Blend = tuple[npt.NDArray[np.int16] | npt.NDArray[np.int32], npt.NDArray[np.int64]]


def build_blending_indices(
    weights: Sequence[float] | npt.NDArray[Any],
    size: int,
    *,
    order: str = "megatron",
    device: Any = None,
) -> Any:
    """Blend datasets by weight: Megatron's two arrays, in its own order or in order balanced.

    >>> dataset_index, dataset_sample_index = build_blending_indices([0.1, 0.2, 0.7], 6)
    >>> dataset_index.tolist(), dataset_sample_index.tolist()
    ([2, 1, 2, 0, 2, 2], [0, 0, 1, 0, 2, 3])

    Order "megatron", as Megatron's `BlendedDataset` has it: sample i comes from the dataset whose
    count lags most behind `weight * max(i, 1)`, ties from the first. Weights are taken as they are
    (float64, not normalised); a weight of zero is never owed anything, but wins while every other
    dataset is ahead of its share. Each sample is decided from all before it, one after another.

    Order "balanced": the samples of a ledger with these weights, batches of one and no end: each is
    a function of its number, so a GPU can do it. Counts stay within 1.5 of `weight * i`.

    Args:
        weights: one finite number >= 0 a dataset.
        size: samples to place, 0 to 2^48.
        order: "megatron" or "balanced".
        device: None or "cpu"; in order "balanced" also "cuda", "cuda:N" or a torch.device, for
            tensors computed there.

    Returns:
        dataset_index (int16, int32 from 32,767 datasets on) and dataset_sample_index (int64), new
        arrays of `size` entries: the dataset of each sample, and how many came from it before.

    Raises:
        ArgumentError, ArgumentTypeError: a weight, the size or the order is not usable.
        DeviceError: the device does not work here, or not with this order.
    """
    if choice("order", order, ("megatron", "balanced")) == "balanced":
        return _balanced(weights, size, device)
    if device is not None and str(device) != "cpu":
        raise DeviceError(
            f"device must be None or 'cpu' in order 'megatron', got {device!r}: it decides each "
            "sample from all before it, which is sequential by nature and a job for one CPU core; "
            "order='balanced' also runs on a GPU"
        )
    return _core.build_blending_indices(_floats("weights", weights), _integer("size", size))


def _balanced(weights: Sequence[float] | npt.NDArray[Any], size: int, device: Any) -> Any:
    from mixcore.ledger import Ledger
    from mixcore.sampler import Sampler

    floats = _floats("weights", weights)
    count = integer("size", size, 0, MAX_POSITION)
    domains = [Domain(str(i), None) for i in range(floats.size)]
    sampler = Sampler(Ledger(domains, floats, batch_size=1))
    p = sampler.picks(0, count, fields=("domain", "draw"), device=device)
    if floats.size >= 32_767:
        return p.domain, p.draw
    is_numpy = isinstance(p.domain, np.ndarray)
    return (p.domain.astype(np.int16) if is_numpy else p.domain.short()), p.draw


def build_exhaustive_blending_indices(sizes: Sequence[int] | npt.NDArray[Any]) -> Blend:
    """Blend datasets so that each is used up exactly, in proportion to its size.

    >>> dataset_index, dataset_sample_index = build_exhaustive_blending_indices([1, 3])
    >>> dataset_index.tolist(), dataset_sample_index.tolist()
    ([1, 0, 1, 1], [0, 0, 1, 2])

    Args:
        sizes: samples of each dataset, integers >= 1 with a sum of at most 2^48.

    Returns:
        The pair of `build_blending_indices`, `sum(sizes)` entries long.

    Raises:
        ArgumentError, ArgumentTypeError: a size is not usable.
    """
    array = np.asarray(sizes)
    if array.size and array.dtype.kind not in "iu":
        raise ArgumentTypeError(f"sizes must be integers, got dtype {array.dtype}")
    if array.size and array.dtype == np.uint64 and int(array.max()) > 2**48:
        raise ArgumentError(f"sizes must be at most 2^48, got {int(array.max())}")
    return _core.build_exhaustive_blending_indices(np.ascontiguousarray(array, dtype=np.int64))


def build_sample_idx(
    sizes: npt.NDArray[np.int32],
    document_idx: npt.NDArray[np.int32],
    seq_length: int,
    num_epochs: int,
    tokens_per_epoch: int,
    drop_last_partial_sequence: bool = True,
    add_extra_token_to_sequence: int = 1,
    *,
    dtype: npt.DTypeLike | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.int32] | npt.NDArray[np.int64]:
    """Cut documents, laid end to end, into samples of `seq_length` tokens.

    >>> sizes = np.array([5, 0, 7], dtype=np.int32)
    >>> build_sample_idx(sizes, np.array([2, 1, 0], dtype=np.int32), 4, 1, 12).tolist()
    [[0, 0], [0, 4], [2, 1]]

    Where tokens_per_epoch promises more than the documents hold, the remaining rows say the last
    token of the last document. Without `drop_last_partial_sequence` the number of samples is
    rounded up through a 32-bit float: beyond 2^24 tokens it may be off, as Megatron's is.

    Args:
        sizes: tokens of each document, int32.
        document_idx: the documents in order, int32; all epochs.
        seq_length: tokens a sample, >= 1.
        num_epochs: epochs in `document_idx`, >= 1; only the product with tokens_per_epoch counts.
        tokens_per_epoch: >= 1.
        drop_last_partial_sequence: whether a last sample with too few tokens is left out.
        add_extra_token_to_sequence: 1 if a sample also holds the first token of the next, else 0.
        dtype: numpy.int32, numpy.int64 or None: int64 only from 2^31 entries of document_idx on,
            which is when Megatron takes it.
        threads: None for one a core.

    Returns:
        (samples + 1, 2) array: row k is the place in document_idx and the token offset in that
        document where sample k starts.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not usable; a document number is out of
            range or its length negative.
    """
    wanted = None if dtype is None else np.dtype(dtype)
    if wanted is not None and wanted not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise ArgumentError(f"dtype must be None, int32 or int64, got {wanted}")
    if threads is not None and _integer("threads", threads) < 1:
        raise ArgumentError(f"threads must be None or at least 1, got {threads}")
    return _core.build_sample_idx(
        sizes,
        document_idx,
        _integer("seq_length", seq_length),
        _integer("num_epochs", num_epochs),
        _integer("tokens_per_epoch", tokens_per_epoch),
        bool(drop_last_partial_sequence),
        _integer("add_extra_token_to_sequence", add_extra_token_to_sequence),
        0 if wanted is None else 8 * wanted.itemsize,
        0 if threads is None else threads,
    )


def _floats(name: str, values: Sequence[float] | npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    try:
        return np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{name} must be numbers, got {values!r}") from error


def _integer(name: str, value: int) -> int:
    """Check that `value` is an integer that fits in 64 bits; the limits proper are checked below.

    A bool passes for add_extra_token_to_sequence, which Megatron gives as one.
    """
    if not isinstance(value, int | np.integer):
        raise ArgumentTypeError(f"{name} must be an integer, got {value!r}")
    if not -(2**63) <= int(value) < 2**63:
        raise ArgumentError(f"{name} must fit in 64 bits, got {value}")
    return int(value)
