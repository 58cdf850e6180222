"""GPTDataset against a twin that concatenates the documents, and the purity of its orders."""

import multiprocessing
import pickle
import struct
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixcore.gpt_dataset
from mixcore.errors import ArgumentError, ArgumentTypeError, DataError, OutOfRangeError
from mixcore.gpt_dataset import (
    GPTDataset,
    _permutation,
    build_sample_idx,
    document_order,
    inputs_and_labels,
)
from mixcore.indexed_writer import IndexedWriter


def corpus(directory, lengths, dtype="uint16"):
    """Documents of the given lengths whose tokens are all different: 0, 1, 2, ... in the stream."""
    prefix = f"{directory}/corpus"
    first = 0
    with IndexedWriter(prefix, dtype, overwrite=True) as writer:
        for length in lengths:
            writer.add_document(range(first, first + length))
            first += length
    return prefix


def twin(lengths, order, seq_length):
    """The documents in their order, concatenated, then cut: in plain Python."""
    documents, first = [], 0
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    stream = [token for document in order for token in documents[document]]
    count = (len(stream) - 1) // seq_length
    return [stream[i * seq_length : (i + 1) * seq_length + 1] for i in range(count)]


LENGTHS = [3, 0, 5, 1, 8, 0, 0, 2, 4]  # 23 tokens
MANY = [7, 1, 0, 12, 5] * 8  # 200 tokens in 40 documents


def test_known_cuts():
    """By hand: rows are (place in the order, offset) of tokens 0, 4, 8 and 12."""
    sizes = np.array([3, 0, 5, 6], np.int32)
    order = np.array([1, 2, 0, 3], np.int32)  # 5 tokens end at 5, 3 at 8, 6 at 14
    assert build_sample_idx(sizes, order, 4, 1, 14).tolist() == [[0, 0], [1, 4], [3, 0], [3, 4]]


def philox4x64(counter, key):
    """Ten rounds in plain integers (Salmon et al. 2011, "Parallel Random Numbers", section 4)."""
    mask = 2**64 - 1
    (a, b, c, d), (low, high) = counter, key
    for _ in range(10):
        left, right = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = right >> 64 ^ b ^ low, right & mask, left >> 64 ^ d ^ high, left & mask
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return a, b, c, d


@pytest.mark.parametrize("key", [0, 1, 2**64 + 5, 2**128 - 1])
@pytest.mark.parametrize("size", [1, 2, 5, 64, 1000])
def test_permutation_equals_twin(size, key):
    """Numbers sorted by the high bits of their words; numpy's counter begins at 1."""
    assert philox4x64((0, 0, 0, 0), (0, 0))[0] == 0x16554D9ECA36314C  # Random123's known answer
    words = [
        word
        for block in range(1, size // 4 + 2)
        for word in philox4x64((block, 0, 0, 0), (key % 2**64, key >> 64))
    ]
    bits = (size - 1).bit_length()
    expected = sorted(range(size), key=lambda i: (words[i] >> bits, i))
    assert _permutation(size, key).tolist() == expected


def test_known_permutations():
    """Pinned: a release or a numpy that changes these would repeat samples of a running epoch."""
    assert _permutation(8, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert _permutation(8, 2**128 - 1).tolist() == [6, 4, 5, 0, 1, 7, 3, 2]


def test_known_order(tmp_path):
    dataset = GPTDataset(corpus(tmp_path, LENGTHS), 4, name="web", seed=1234)
    assert len(dataset) == 5
    assert dataset._epoch(3).documents.tolist() == [2, 7, 4, 1, 8, 0, 6, 3, 5]
    assert dataset._epoch(3).samples.tolist() == [4, 1, 2, 3, 0]
    default = GPTDataset(corpus(tmp_path, LENGTHS), 4, seed=1234)  # its name: "corpus"
    assert default._epoch(3).documents.tolist() != dataset._epoch(3).documents.tolist()
    assert document_order(9, seed=1234, name="web", epoch=3).tolist() == [2, 7, 4, 1, 8, 0, 6, 3, 5]
    assert dataset[3, 0].tolist() == [20, 21, 22, 0, 1]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 256, 257, 4096, 10_007])
def test_permutation_is_onto(size):
    assert np.array_equal(np.sort(_permutation(size, 77)), np.arange(size))


def test_permutation_is_fair():
    """All 24 orders of 4 in equal parts: chi-squared, 23 degrees of freedom, below 1e-6."""
    orders = [tuple(_permutation(4, key).tolist()) for key in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 74


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=30),
    st.integers(1, 20),
    st.integers(0, 5),
    st.integers(0, 2**64 - 1),
    st.booleans(),
)
def test_packing_equals_twin(lengths, seq_length, epoch, seed, sample_shuffle):
    with tempfile.TemporaryDirectory() as directory:
        prefix = corpus(directory, lengths)
        if sum(lengths) < seq_length + 1:
            with pytest.raises(ArgumentError, match=f"seq_length .* got {seq_length} for"):
                GPTDataset(prefix, seq_length)
            return
        dataset = GPTDataset(prefix, seq_length, seed=seed, sample_shuffle=sample_shuffle)
        arrays = dataset._epoch(epoch)
        assert sorted(arrays.documents.tolist()) == list(range(len(lengths)))
        expected = twin(lengths, arrays.documents.tolist(), seq_length)
        assert len(dataset) == len(expected)
        if sample_shuffle:
            assert sorted(arrays.samples.tolist()) == list(range(len(dataset)))
            expected = [expected[cut] for cut in arrays.samples]
        got = [dataset[epoch, i] for i in range(len(dataset))]
        assert [sample.tolist() for sample in got] == expected
        assert all(sample.dtype == np.int64 for sample in got)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 20))
def test_virtual_is_the_stream(lengths, seq_length):
    total = sum(lengths)
    with tempfile.TemporaryDirectory() as directory:
        prefix = corpus(directory, lengths, "int32")
        if total < seq_length + 1:
            with pytest.raises(ArgumentError, match=f"{total} tokens"):
                GPTDataset(prefix, seq_length, mode="virtual")
            return
        dataset = GPTDataset(prefix, seq_length, mode="virtual")
        got = [dataset[i].tolist() for i in range(len(dataset))]
        assert got == twin(lengths, range(len(lengths)), seq_length)
        assert got[-1][-1] + seq_length >= total  # no further sample would fit
        assert all(dataset[7, i].tolist() == got[i] for i in range(len(dataset)))


@pytest.mark.parametrize("seq_length", [1, 4, 7, 199])
def test_nothing_lost(tmp_path, seq_length):
    """The inputs of an epoch are its stream without the tail: each token once, in all epochs."""
    dataset = GPTDataset(corpus(tmp_path, MANY), seq_length)
    tails = set()
    for epoch in range(4):
        inputs = [inputs_and_labels(dataset[epoch, i])[0] for i in range(len(dataset))]
        tokens = np.sort(np.concatenate(inputs))
        assert len(np.unique(tokens)) == len(tokens) == len(dataset) * seq_length
        tails.add(tuple(np.setdiff1d(np.arange(200), tokens)))
        labels = [inputs_and_labels(dataset[epoch, i])[1] for i in range(len(dataset))]
        assert len(np.unique(np.concatenate(labels))) == len(tokens)
    assert len(tails) > 1  # not the same tokens are dropped for ever


def samples(dataset, epoch):
    return np.stack([dataset[epoch, i] for i in range(len(dataset))])


def test_order_is_a_function_of_seed_name_epoch(tmp_path):
    """Nothing asked before, and no cache, changes an epoch; each part of the key does."""
    prefix = corpus(tmp_path, MANY)
    expected = samples(GPTDataset(prefix, 8, name="a", seed=1), 5)
    used = GPTDataset(prefix, 8, name="a", seed=1, cache_epochs=1)
    for epoch in (0, 9, 5, 2, 10**15):
        used[epoch, 0]
        assert list(used._epochs) == [epoch]
    assert np.array_equal(samples(used, 5), expected)
    assert not np.array_equal(samples(used, 6), expected)
    # seed + epoch and seed with name run together would collide here
    for other in ({"seed": 2, "name": "a"}, {"seed": 1, "name": "b"}, {"seed": 15, "name": "a"}):
        dataset = GPTDataset(prefix, 8, **other)
        for epoch in (4, 5, 6):
            assert not np.array_equal(samples(dataset, epoch), expected)
    assert np.array_equal(used[3], used[0, 3])  # a plain number is epoch 0


def test_cache_keeps_the_last(tmp_path):
    dataset = GPTDataset(corpus(tmp_path, MANY), 8, cache_epochs=3)
    for epoch in (0, 1, 0, 2, 3, 2, 4):
        dataset[epoch, 0]
    assert list(dataset._epochs) == [2, 3, 4]
    kept = dataset._epochs[3]
    dataset[3, 1]
    assert dataset._epochs[3] is kept


def test_sample_shuffle_off(tmp_path):
    """Then sample i is the i-th cut of the same documents."""
    prefix = corpus(tmp_path, MANY)
    on, off = GPTDataset(prefix, 8), GPTDataset(prefix, 8, sample_shuffle=False)
    assert np.array_equal(samples(on, 1), samples(off, 1)[on._epoch(1).samples])
    assert off._epoch(1).samples is None


@pytest.mark.parametrize("mode", ["shuffled", "virtual"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pickle_and_workers(tmp_path, mode, method):
    dataset = GPTDataset(corpus(tmp_path, MANY), 8, mode=mode, name="web", seed=3)
    expected = samples(dataset, 1)
    text = pickle.dumps(dataset)
    assert len(text) < 1000  # neither the tokens nor the arrays of an epoch
    assert np.array_equal(samples(pickle.loads(text), 1), expected)
    with multiprocessing.get_context(method).Pool(2) as pool:
        got = pool.map(dataset.__getitem__, [(1, i) for i in range(len(dataset))])
    assert np.array_equal(np.stack(got), expected)


def test_unverified_index(tmp_path):
    """Virtual mode opens a corpus with a damaged inner entry and refuses the samples on it only."""
    prefix = corpus(tmp_path, [10, 10, 10, 10])
    with open(prefix + ".idx", "r+b") as index:
        index.seek(34 + 4 * 2)
        index.write(struct.pack("<i", 9))
    with pytest.raises(DataError, match=r"sequence_pointers\[3\] = 60: must be 58"):
        GPTDataset(prefix, 4)
    dataset = GPTDataset(prefix, 4, mode="virtual")
    assert dataset[4].tolist() == [16, 17, 18, 19, 20]
    with pytest.raises(DataError, match=r"sequence_pointers\[3\] = 60: must be 58"):
        dataset[7]


def test_changed_while_open(tmp_path):
    """Shared mappings see it: an error, never uninitialised memory."""
    prefix = corpus(tmp_path, [10, 10])
    dataset = GPTDataset(prefix, 19)
    dataset[0]
    with open(prefix + ".idx", "r+b") as index:
        index.seek(34)
        index.write(struct.pack("<ii", 4, 4))
    with pytest.raises(DataError, match="changed while it was open"):
        dataset[0]


def test_inputs_and_labels(tmp_path):
    sample = GPTDataset(corpus(tmp_path, [9]), 4, mode="virtual")[1]
    tokens, labels = inputs_and_labels(sample)
    assert tokens.tolist() == [4, 5, 6, 7]
    assert labels.tolist() == [5, 6, 7, 8]


def test_bad_arguments(tmp_path):
    prefix = corpus(tmp_path, LENGTHS)
    for options, message in (
        ({"seq_length": 0}, "seq_length must be in .* got 0"),
        ({"seq_length": -4}, "seq_length must be in .* got -4"),
        ({"seq_length": 2**31}, "seq_length must be in .* got 2147483648"),
        ({"seq_length": 23}, "seq_length must be below .* got 23 for 23 tokens"),
        ({"mode": "random"}, "mode must be .* got 'random'"),
        ({"seed": -1}, "seed must be in .* got -1"),
        ({"seed": 2**64}, f"seed must be in .* got {2**64}"),
        ({"cache_epochs": 0}, "cache_epochs must be .* got 0"),
        ({"mode": "virtual", "sample_shuffle": True}, "sample_shuffle must not be True"),
    ):
        with pytest.raises(ArgumentError, match=message):
            GPTDataset(prefix, **{"seq_length": 4, **options})
    for options, message in (
        ({"seq_length": 4.0}, "seq_length must be an integer, got 4.0"),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"sample_shuffle": 1}, "sample_shuffle must be a bool, got 1"),
        ({"name": 3}, "name must be a str, got 3"),
        ({"cache_epochs": None}, "cache_epochs must be an integer, got None"),
    ):
        with pytest.raises(ArgumentTypeError, match=message):
            GPTDataset(prefix, **{"seq_length": 4, **options})
    assert len(GPTDataset(prefix, 22)) == 1  # 23 tokens are just enough


@pytest.mark.parametrize("mode", ["shuffled", "virtual"])
def test_bad_keys(tmp_path, mode):
    dataset = GPTDataset(corpus(tmp_path, LENGTHS), 4, mode=mode, name="web")
    for key, message in (
        (5, "sample must be in .*5.* got 5"),
        (-1, "sample must be in .* got -1"),
        ((0, 5), "sample must be in .* got 5"),
        ((-1, 0), "epoch must not be negative, got -1"),
    ):
        with pytest.raises(OutOfRangeError, match=message) as caught:
            dataset[key]
        assert isinstance(caught.value, IndexError)
    for key in (1.0, "1", None, (1,), (1, 2, 3), (0.5, 1)):
        with pytest.raises(ArgumentTypeError, match="must be"):
            dataset[key]
    assert dataset._epochs.keys() <= {0}
    assert len(list(dataset)) == 5  # iteration ends by the IndexError


def test_floats_refused(tmp_path):
    idx = struct.pack("<9sQBQQiqqq", b"MMIDIDX\0\0", 1, 7, 1, 2, 3, 0, 0, 1)
    (tmp_path / "f.idx").write_bytes(idx)
    (tmp_path / "f.bin").write_bytes(np.ones(3, np.float32).tobytes())
    with pytest.raises(DataError, match="dtype = float32: not tokens"):
        GPTDataset(tmp_path / "f", 1)


def test_too_many_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(mixcore.gpt_dataset, "_INT32_MAX", 8)
    prefix = corpus(tmp_path, LENGTHS)
    with pytest.raises(ArgumentError, match="mode must be"):
        GPTDataset(prefix, 4)
    assert len(GPTDataset(prefix, 4, mode="virtual")) == 5
