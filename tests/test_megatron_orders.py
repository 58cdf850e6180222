"""megatron_patch.orders: one epoch of a domain, without Megatron."""

from types import SimpleNamespace

import numpy as np
import pytest

from megatron_patch import orders
from mixcore.errors import ArgumentError
from mixcore.gpt_dataset import document_order

LENGTHS = np.array([5, 0, 7, 3, 11, 2, 9, 4, 6, 8], dtype=np.int32)
LENGTH = 4


def dataset(indices):
    """As much of a GPTDataset as is asked for."""
    config = SimpleNamespace(sequence_length=LENGTH, add_extra_token_to_sequence=1)
    source = SimpleNamespace(sequence_lengths=LENGTHS)
    return SimpleNamespace(indices=indices, config=config, dataset=source)


def slow(indices, name, seed):
    """Documents in order, and (document, offset) at which each sample begins."""
    documents = [int(indices[i]) for i in document_order(len(indices), seed=seed, name=name)]
    tokens = [(k, at) for k, d in enumerate(documents) for at in range(LENGTHS[d])]
    samples = (len(tokens) - 1) // LENGTH
    return documents, [(0, 0)] + [tokens[k * LENGTH] for k in range(1, samples + 1)]


@pytest.mark.parametrize(
    "indices",
    [np.arange(10), np.arange(6), np.arange(3, 10), np.array([0, 2, 2, 3]), np.array([0, 2, 1, 3])],
    ids=["all", "first", "last", "twice", "swapped"],
)
@pytest.mark.parametrize("name", ["web", "code"])
def test_one_epoch(indices, name):
    indices = indices.astype(np.int32)
    documents, starts, shuffle = orders.one_epoch_arrays(dataset(indices), name, 7)
    assert documents.dtype == np.int32
    expected, begins = slow(indices, name, 7)
    assert documents.tolist() == expected
    assert starts.tolist() == [list(x) for x in begins]
    assert len(shuffle) == len(starts) - 1
    assert [shuffle[i] for i in range(len(shuffle))] == list(range(len(shuffle)))
    with pytest.raises(IndexError, match=f"sample {len(shuffle)} of"):
        shuffle[len(shuffle)]


def test_a_cache_that_does_not_exist_is_refused():
    with pytest.raises(ArgumentError, match="--dataloader-fast-cache-load"):
        orders.one_epoch_arrays(dataset(None), "web", 7)


@pytest.mark.parametrize("samples", [1, 2, 37])
def test_appended_epochs_are_permutations(samples):
    epochs = [
        [orders.appended(samples, 5, epoch, place) for place in range(samples)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    if samples == 37:
        assert epochs[0] != epochs[1] != epochs[2]
