"""Megatron's arrays: known answers, the slow twin, every instruction set, properties, bad input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcore import _core, reference_megatron
from mixcore.errors import ArgumentError, ArgumentTypeError, DeviceError
from mixcore.megatron_arrays import (
    build_blending_indices,
    build_exhaustive_blending_indices,
    build_sample_idx,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "megatron.json").read_text())


def supported(isa):
    try:
        _core.greedy(np.ones(1), None, 0, None, 0, isa)
    except ArgumentError:
        return False
    return True


ISAS = [isa for isa in ("plain", "avx2", "avx512") if supported(isa)]


def running_counts(domains):
    """How often each entry's domain came before it."""
    seen = {}
    counts = []
    for d in domains:
        counts.append(seen.get(d, 0))
        seen[d] = counts[-1] + 1
    return counts


def assert_pair(pair, domains, counts=None):
    assert pair[0].tolist() == list(domains)
    assert pair[1].tolist() == list(running_counts(domains) if counts is None else counts)


def weights_of(kind, num, seed=0):
    rng = np.random.default_rng(seed)
    ranks = np.arange(1, num + 1)
    made = {
        "dirichlet": lambda: rng.dirichlet(np.ones(num)),
        "sparse": lambda: rng.dirichlet(np.full(num, 0.1)),
        "zipf": lambda: (1 / ranks) / (1 / ranks).sum(),
        "equal": lambda: np.full(num, 1 / num),
        "one big": lambda: np.r_[0.9, np.full(num - 1, 0.1 / (num - 1))],
        "tiny": lambda: np.r_[1 - 1e-9, np.full(num - 1, 1e-9)],
        "few values": lambda: rng.integers(0, 4, num) / 10,
        "decimals": lambda: np.round(rng.dirichlet(np.ones(num)), 3),
        "one hot": lambda: np.r_[np.zeros(num - 1), 1.0],
        "zeros": lambda: np.zeros(num),
        "not normalised": lambda: rng.uniform(0, 5, num),
        "too little": lambda: rng.uniform(0, 0.1 / num, num),
        "denormal": lambda: rng.integers(0, 9, num) * 5e-324,
        "huge": lambda: rng.choice([1e300, 1e17, 1.0, 1e305], num),
        "huge and equal": lambda: np.full(num, 1e17),
    }
    return made[kind]()


KINDS = """dirichlet,sparse,zipf,equal,one big,tiny,few values,decimals,one hot,zeros,not normalised
too little,denormal,huge,huge and equal""".replace("\n", ",").split(",")


# Known answers ------------------------------------------------------------------------------------


def test_known_order():
    dataset_index, dataset_sample_index = build_blending_indices([0.1, 0.2, 0.7], 12)
    assert dataset_index.tolist() == [2, 1, 2, 0, 2, 2, 1, 2, 2, 2, 0, 2]
    assert dataset_sample_index.tolist() == [0, 0, 1, 0, 2, 3, 1, 4, 5, 6, 1, 7]
    assert dataset_index.dtype == np.int16
    assert dataset_sample_index.dtype == np.int64


@pytest.mark.parametrize("case", GOLDEN["blend"], ids=lambda case: case["name"])
def test_golden_blend(case):
    weights = [float.fromhex(w) for w in case["weights"]]
    assert_pair(build_blending_indices(weights, case["size"]), case["drawn"])
    assert_pair(_core.greedy_plain(np.array(weights), case["size"]), case["drawn"])
    assert reference_megatron.build_blending_indices(weights, case["size"])[0] == case["drawn"]


@pytest.mark.parametrize("case", GOLDEN["exhaust"], ids=lambda case: str(case["sizes"][:5]))
def test_golden_exhaust(case):
    sizes = np.array(case["sizes"])
    assert_pair(build_exhaustive_blending_indices(case["sizes"]), case["drawn"])
    assert_pair(_core.exhaustive_plain(sizes), case["drawn"])
    assert reference_megatron.build_exhaustive_blending_indices(case["sizes"])[0] == case["drawn"]


@pytest.mark.parametrize("case", GOLDEN["sample_idx"])
def test_golden_sample_idx(case):
    names = ("seq_length", "num_epochs", "tokens_per_epoch", "drop_last", "extra")
    rest = [case[name] for name in names]
    arrays = [np.array(case[name], dtype=np.int32) for name in ("sizes", "document_idx")]
    assert build_sample_idx(*arrays, *rest).tolist() == case["rows"]
    assert _core.build_sample_idx(*arrays, *rest, 32, 1, True).tolist() == case["rows"]
    twin = reference_megatron.build_sample_idx(case["sizes"], case["document_idx"], *rest)
    assert twin == case["rows"]


# Greedy against the plain loop --------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 2, 7, 24, 25, 33, 64, 65, 100, 257, 2048])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_loop(kind, num):
    if num == 1 and kind in ("one big", "tiny"):
        pytest.skip("needs two domains")
    weights = weights_of(kind, num, seed=num)
    size = 20_000 if num <= 300 else 6_000
    domains, counts = _core.greedy_plain(weights, size)
    for isa in ISAS:
        got = _core.greedy(weights, None, 0, None, size, isa)
        np.testing.assert_array_equal(got[0], domains)
        np.testing.assert_array_equal(got[1], counts)


@pytest.mark.parametrize("kind", ["dirichlet", "zipf", "equal", "few values"])
def test_equals_plain_loop_with_many_domains(kind):
    num, size = 40_000, 3_000
    weights = weights_of(kind, num)
    domains, counts = _core.greedy_plain(weights, size)
    got = build_blending_indices(weights, size)
    assert got[0].dtype == np.int32
    np.testing.assert_array_equal(got[0], domains)
    np.testing.assert_array_equal(got[1], counts)
    for isa in ISAS:
        np.testing.assert_array_equal(_core.greedy(weights, None, 0, None, size, isa)[0], domains)


@pytest.mark.parametrize("num", [32_766, 32_767])
def test_ids_get_wider(num):
    domains = build_blending_indices(np.full(num, 1 / num), num)[0]
    assert domains.dtype == (np.int16 if num == 32_766 else np.int32)
    assert domains.tolist() == list(range(num))


# Weights people write, which tie often, and any others; zeros and equal ones among them.
round_weights = st.integers(0, 20).map(lambda k: k / 20) | st.integers(0, 9).map(lambda k: k / 10)
any_weights = st.floats(0, 1, allow_subnormal=True) | st.just(1e-9)
weight_lists = st.lists(round_weights, min_size=1, max_size=90) | st.lists(
    any_weights, min_size=1, max_size=90
)


@settings(max_examples=60, deadline=None)
@given(weights=weight_lists, part=st.integers(1, 700), isa=st.sampled_from(ISAS))
def test_any_weights_in_any_parts(weights, part, isa):
    weights = np.array(weights)
    domains, counts = _core.greedy_plain(weights, 3000)
    got = _core.greedy(weights, None, 0, None, 3000, isa, part)
    np.testing.assert_array_equal(got[0], domains)
    np.testing.assert_array_equal(got[1], counts)


@settings(max_examples=40, deadline=None)
@given(weights=weight_lists, at=st.integers(0, 2000), isa=st.sampled_from(ISAS))
def test_seek_goes_on_where_it_was(weights, at, isa):
    weights = np.array(weights)
    domains, counts = _core.greedy_plain(weights, 3000)
    before = np.bincount(domains[:at], minlength=len(weights)).astype(np.int64)
    got = _core.greedy(weights, None, at, before, 3000 - at, isa)
    np.testing.assert_array_equal(got[0], domains[at:])
    np.testing.assert_array_equal(got[1], counts[at:])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), weights=weight_lists, isa=st.sampled_from(ISAS))
def test_debts_and_any_counts(data, weights, isa):
    """Any start state at all, where counts need not look like turns taken, against the twin."""
    num = len(weights)
    debt = st.floats(-3, 3) | st.sampled_from([0.0, 0.5, -0.5, 1.0])
    debts = data.draw(st.none() | st.lists(debt, min_size=num, max_size=num))
    start = data.draw(st.integers(0, 1000))
    counts = data.draw(st.lists(st.integers(0, 40), min_size=num, max_size=num))
    want = reference_megatron.greedy(weights, 300, debts=debts, start=start, counts=counts)
    got = _core.greedy(
        np.array(weights),
        None if debts is None else np.array(debts),
        start,
        np.array(counts),
        300,
        isa,
        data.draw(st.integers(1, 300)),
    )
    assert_pair(got, *want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["dirichlet", "zipf", "equal", "one big", "decimals"])
@pytest.mark.parametrize("num", [5, 40, 150])
def test_far_away(kind, num, isa):
    """At position 10^12, where a product has lost 13 bits behind the point."""
    weights = weights_of(kind, num)
    start = 10**12 + 7
    counts = np.floor(weights * start).astype(np.int64)
    want = reference_megatron.greedy(weights.tolist(), 1500, start=start, counts=counts.tolist())
    assert_pair(_core.greedy(weights, None, start, counts, 1500, isa), *want)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 60) | st.just(7), min_size=1, max_size=120))
def test_any_sizes_are_used_up(sizes):
    want = _core.exhaustive_plain(np.array(sizes))
    got = build_exhaustive_blending_indices(sizes)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert np.bincount(got[0], minlength=len(sizes)).tolist() == sizes


@pytest.mark.parametrize("sizes", [[5] * 3000, [9000] + [3] * 2000, list(range(1, 300))])
def test_many_sizes_are_used_up(sizes):
    want = _core.exhaustive_plain(np.array(sizes))
    got = build_exhaustive_blending_indices(np.array(sizes, dtype=np.int32))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_twin_of_exhaust():
    sizes = [17, 1, 40, 40, 3]
    want = reference_megatron.build_exhaustive_blending_indices(sizes)
    assert_pair(build_exhaustive_blending_indices(sizes), *want)


# The sample index ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(0, 30) | st.just(0), min_size=1, max_size=30))
def test_any_documents(data, sizes):
    order = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=60))
    seq_length = data.draw(st.integers(1, 40))
    epochs = data.draw(st.integers(1, 3))
    held = sum(sizes[d] for d in order)
    tokens = max(1, held // epochs + data.draw(st.integers(-5, 90)))
    rest = (seq_length, epochs, tokens, data.draw(st.booleans()), data.draw(st.integers(0, 1)))
    got = build_sample_idx(np.array(sizes, np.int32), np.array(order, np.int32), *rest)
    assert got.tolist() == reference_megatron.build_sample_idx(sizes, order, *rest)


@pytest.mark.parametrize("seq_length", [300, 4097])
def test_threads_do_not_matter(seq_length):
    rng = np.random.default_rng(1)
    sizes = rng.lognormal(6.5, 1.2, 200_000).astype(np.int32)
    sizes[::9] = 0
    sizes[77] = 5_000_000  # one document with many samples
    order = np.concatenate([rng.permutation(len(sizes)) for _ in range(2)]).astype(np.int32)
    total = int(sizes.sum())
    for tokens, drop in ((total, True), (total, False), (total + 10**6, True), (10**6, True)):
        rest = (seq_length, 2, tokens, drop, 1)
        want = _core.build_sample_idx(sizes, order, *rest, 64, 1, True)
        for threads in (1, 2, 5, None):
            got = build_sample_idx(sizes, order, *rest, dtype=np.int64, threads=threads)
            np.testing.assert_array_equal(got, want)


def test_rounding_up_goes_through_a_32_bit_float():
    """2^24 + 1 tokens are 2^24 as a 32-bit float: the last, partial sample is not counted."""
    sizes = np.array([2**24 + 2], dtype=np.int32)
    order = np.zeros(1, dtype=np.int32)
    assert len(build_sample_idx(sizes, order, 2**12, 1, 2**24 + 2, False)) - 1 == 2**12
    # And 2^25 - 1 are 2^25, one sample of 1 token too many: its row is the end of the text.
    rows = build_sample_idx(np.array([2**25], dtype=np.int32), order, 1, 1, 2**25, False)
    assert len(rows) - 1 == 2**25
    assert rows[-2].tolist() == rows[-1].tolist() == [0, 2**25 - 1]


def test_dtype():
    sizes, order = np.array([9], dtype=np.int32), np.zeros(1, dtype=np.int32)
    assert build_sample_idx(sizes, order, 2, 1, 9).dtype == np.int32
    assert build_sample_idx(sizes, order, 2, 1, 9, dtype=np.int64).dtype == np.int64


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "size", "error", "says"),
    [
        ([], 3, ArgumentError, "weights must not be empty"),
        ([0.5, -0.5], 3, ArgumentError, r"weights\[1\] must be finite and not negative, got -0.5"),
        ([math.nan], 3, ArgumentError, r"weights\[0\].*nan"),
        ([1.0, math.inf], 3, ArgumentError, r"weights\[1\].*inf"),
        ([[0.5], [0.5]], 3, ArgumentError, "weights must have 1 axes, got 2"),
        (["a"], 3, ArgumentTypeError, "weights must be numbers"),
        ([1.0], -1, ArgumentError, "size must be in .*, got -1"),
        ([1.0], 2**48 + 1, ArgumentError, "size must be in .*, got 281474976710657"),
        ([1.0], 2**70, ArgumentError, "size must fit in 64 bits"),
        ([1.0], 2.5, ArgumentTypeError, "size must be an integer, got 2.5"),
    ],
)
def test_bad_blend(weights, size, error, says):
    with pytest.raises(error, match=says):
        build_blending_indices(weights, size)


def test_order_balanced_keeps_the_mix():
    weights = np.array([0.5, 0.3, 0.2])
    index, sample = build_blending_indices(weights, 5_000, order="balanced")
    assert index.dtype == np.int16
    for d in range(3):
        assert sample[index == d].tolist() == list(range(int((index == d).sum())))
        drawn = np.cumsum(index == d)
        assert np.abs(drawn - weights[d] * np.arange(1, 5_001)).max() < 1.5
    with pytest.raises(ArgumentError, match="order must be one of 'megatron', 'balanced', got 'x'"):
        build_blending_indices(weights, 5, order="x")


def test_no_other_device():
    assert build_blending_indices([1.0], 2, device="cpu")[0].tolist() == [0, 0]
    with pytest.raises(
        DeviceError,
        match=r"device must be None or 'cpu' in order 'megatron', got 'cuda'.*sequential",
    ):
        build_blending_indices([1.0], 2, device="cuda")


@pytest.mark.parametrize(
    ("sizes", "error", "says"),
    [
        ([], ArgumentError, "sizes must not be empty"),
        ([3, 0], ArgumentError, r"sizes\[1\] must be in .*, got 0"),
        ([3, -2], ArgumentError, r"sizes\[1\] must be in .*, got -2"),
        ([2**48, 1], ArgumentError, "the sum of sizes must be in"),
        ([1.5], ArgumentTypeError, "sizes must be integers, got dtype float64"),
        (np.array([2**63], dtype=np.uint64), ArgumentError, "sizes must be at most"),
        ([2**80], ArgumentTypeError, "sizes must be integers, got dtype object"),
    ],
)
def test_bad_exhaust(sizes, error, says):
    with pytest.raises(error, match=says):
        build_exhaustive_blending_indices(sizes)


def int32(*values):
    return np.array(values, dtype=np.int32)


GOOD = {
    "sizes": int32(5, 6),
    "document_idx": int32(0, 1),
    "seq_length": 2,
    "num_epochs": 1,
    "tokens_per_epoch": 11,
}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"sizes": int32()}, ArgumentError, "sizes must not be empty"),
        ({"sizes": int32(5, -6)}, ArgumentError, r"sizes\[1\] must not be negative, got -6"),
        ({"sizes": np.array([5, 6])}, ArgumentTypeError, "sizes must have dtype int32, got int64"),
        ({"sizes": [5, 6]}, ArgumentTypeError, "sizes must be a numpy array, got list"),
        ({"sizes": int32(5, 0, 6)[::2]}, ArgumentError, "sizes must be C-contiguous"),
        ({"sizes": int32(5, 6)[None]}, ArgumentError, "sizes must have 1 axes, got 2"),
        ({"document_idx": int32()}, ArgumentError, "document_idx must not be empty"),
        ({"document_idx": int32(0, 2)}, ArgumentError, r"document_idx\[1\] must be in .*got 2"),
        ({"document_idx": int32(-1, 1)}, ArgumentError, r"document_idx\[0\] must be in .*got -1"),
        ({"document_idx": np.array([0.0])}, ArgumentTypeError, "document_idx must have dtype"),
        ({"seq_length": 0}, ArgumentError, "seq_length must be in .*got 0"),
        ({"seq_length": "4"}, ArgumentTypeError, "seq_length must be an integer"),
        ({"num_epochs": 0}, ArgumentError, "num_epochs must be in .*got 0"),
        ({"tokens_per_epoch": 0}, ArgumentError, "tokens_per_epoch must be in .*got 0"),
        ({"tokens_per_epoch": 2**61}, ArgumentError, "tokens_per_epoch must be in"),
        ({"add_extra_token_to_sequence": 2}, ArgumentError, "add_extra_token_to_sequence must be"),
        ({"dtype": np.float64}, ArgumentError, "dtype must be None, int32 or int64, got float64"),
        ({"threads": 0}, ArgumentError, "threads must be None or at least 1, got 0"),
    ],
)
def test_bad_sample_idx(change, error, says):
    with pytest.raises(error, match=says):
        build_sample_idx(**(GOOD | change))


def test_first_bad_document_is_named_whatever_the_threads():
    order = np.zeros(1_000_000, dtype=np.int32)
    order[[400_000, 900_000]] = 7, -3
    for threads in (1, 2, 8):
        with pytest.raises(ArgumentError, match=r"document_idx\[400000\].*got 7"):
            build_sample_idx(int32(5), order, 4, 1, 5_000_000, threads=threads)
