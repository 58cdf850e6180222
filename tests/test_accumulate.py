"""Accumulation: exact sums by domain, in any order, on any device, over any number of ranks."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcore import accumulate
from mixcore.accumulate import SCALE, Accumulator, Window, _DeviceTable, table_from_plain

torch = pytest.importorskip("torch")

ENTRY = st.tuples(
    st.integers(0, 4),
    st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 2.0**38, 2.0**39]),
    st.integers(0, 10_000),
)


def filled(entries, num=5, each=1):
    sums = Accumulator(num)
    for i in range(0, len(entries), each):
        sums.observe(*map(list, zip(*entries[i : i + each], strict=True)))
    return sums.table()


def slow(entries, num=5):
    """Slow twin: Python integers, one sample at a time."""
    rows = [[0, 0, 0, 0] for _ in range(num)]
    for d, x, n in entries:
        if math.isnan(x) or abs(x) > 2.0**38:
            rows[d][3] += 1
            continue
        rows[d][0] += round(Fraction(x) * (1 << 24))
        rows[d][1] += n
        rows[d][2] += 1
    return rows


def plain(table):
    return [[(int(h) << 32) + int(low), *map(int, rest)] for h, low, *rest in table.tolist()]


def test_by_hand():
    sums = Accumulator(3)
    sums.observe([0, 2, 0], [2.0, 1.5, 4.0], [10, 10, 10])
    sums.observe(np.array([1], np.int32), np.array([0.25], np.float32), np.array([4]))
    w = Window(sums.table())
    assert w.loss_sum.tolist() == [6.0, 0.25, 1.5]
    assert w.tokens.tolist() == [20, 4, 10]
    assert w.samples.tolist() == [2, 1, 1]
    assert not w.dropped.any()
    sums.clear()
    assert not sums.table().any()


@given(st.lists(ENTRY, max_size=60), st.integers(1, 7))
def test_against_the_slow_twin(entries, each):
    table = filled(entries, each=each)
    assert plain(table) == slow(entries)
    for i, (total, *_) in enumerate(slow(entries)):
        assert Window(table).loss_sum[i] == pytest.approx(total / SCALE, rel=1e-15)


@given(st.lists(ENTRY, max_size=40), st.randoms(use_true_random=False))
def test_order_and_ranks_do_not_matter(entries, random):
    whole = filled(entries)
    shuffled = random.sample(entries, len(entries))
    parts = [filled(shuffled[r::3]) for r in range(3)]
    random.shuffle(parts)
    total = sum(parts, np.zeros_like(whole))
    assert Window(total).loss_sum.tobytes() == Window(whole).loss_sum.tobytes()
    assert np.array_equal(Window(total).tokens, Window(whole).tokens)


@given(st.lists(ENTRY, max_size=40), st.integers(1, 7))
def test_device_table_is_the_same(entries, each):
    """The tensor path, which a GPU takes, run on CPU tensors."""
    table = _DeviceTable(5, torch.device("cpu"))
    for i in range(0, len(entries), each):
        ids, losses, tokens = zip(*entries[i : i + each], strict=True)
        table.observe(torch.tensor(ids), torch.tensor(losses, dtype=torch.float64), list(tokens))
    assert np.array_equal(table.read()[:-1], filled(entries))


@pytest.mark.gpu
def test_on_a_gpu():
    rng = np.random.default_rng(1)
    ids, losses = rng.integers(0, 7, 20_000), rng.normal(1e3, 1e2, 20_000).astype(np.float32)
    tokens = rng.integers(1, 4_096, 20_000)
    there, here = Accumulator(7), Accumulator(7)
    for i in range(0, 20_000, 100):
        part = slice(i, i + 100)
        there.observe(ids[part], torch.from_numpy(losses[part]).cuda(), tokens[part])
        here.observe(ids[part], losses[part], tokens[part])
    assert np.array_equal(there.table(), here.table())


def test_floats_added_in_another_order_would_differ():
    """What the fixed point is for: the same losses, added as float32, depend on the order."""
    rng = np.random.default_rng(0)
    losses = rng.normal(3e3, 1e3, 10_000).astype(np.float32)
    other = losses[rng.permutation(10_000)]
    assert np.cumsum(losses)[-1] != np.cumsum(other)[-1]
    ids, tokens = np.zeros(10_000, int), np.ones(10_000, int)
    a, b = Accumulator(1), Accumulator(1)
    a.observe(ids, losses, tokens)
    b.observe(ids, other, tokens)
    assert np.array_equal(a.table(), b.table())
    exact = math.fsum(losses.tolist())
    assert Window(a.table()).loss_sum[0] == pytest.approx(exact, abs=10_000 / SCALE / 2)


def test_no_overflow_at_the_stated_bounds():
    """2^31 samples of the largest loss and the most tokens: as one table, 2^31 times."""
    sums = Accumulator(2)
    sums.observe([0, 1], [np.nextafter(2.0**38, 0), -(2.0**38)], [(1 << 31) - 1] * 2)
    one = sums.table()
    worst = [[int(x) * (1 << 31) for x in row] for row in one.tolist()]
    assert all(abs(x) < 1 << 63 for row in worst for x in row)
    assert max(abs(x) for x in slow([(0, 2.0**38, 1)])[0]) == 1 << 62  # one word would not do


def test_many_observations_are_flushed(monkeypatch):
    sums = Accumulator(2)
    for i in range(1_000):
        sums.observe([i % 2], [1.0], [1])
        assert len(sums._pending) < accumulate.PENDING
    assert Window(sums.table()).tokens.tolist() == [500, 500]


def test_what_is_observed_is_copied():
    ids, losses, tokens = np.array([0]), np.array([1.0]), np.array([1])
    tensor = torch.ones(1)
    sums, device = Accumulator(1), _DeviceTable(1, torch.device("cpu"))
    sums.observe(ids, losses, tokens)
    sums.observe(ids, tensor, tokens)
    device.observe(ids, tensor, tokens)
    losses[0] = tokens[0] = 9
    tensor[0] = 9
    assert Window(sums.table()).loss_sum.tolist() == [2.0]
    assert Window(sums.table()).tokens.tolist() == [2]
    assert Window(device.read()).loss_sum.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors(dtype):
    sums = Accumulator(2)
    losses = torch.tensor([[1.5], [2.5]], dtype=dtype, requires_grad=True)
    sums.observe(torch.tensor([[0], [1]]), losses * 2, torch.tensor([[7], [8]], dtype=torch.int32))
    assert Window(sums.table()).loss_sum.tolist() == [3.0, 5.0]
    sums.observe([], [], [])
    assert Window(sums.table()).tokens.tolist() == [7, 8]


def test_save_and_load():
    sums, again = Accumulator(3), Accumulator(3)
    sums.observe([0, 2], [1.1, float("nan")], [3, 4])
    again.load(table_from_plain(sums.table().tolist(), 3))
    for s in (sums, again):
        s.observe([1], [0.7], [5])
    assert np.array_equal(sums.table(), again.table())
    assert Window(again.table()).dropped.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda s: s.observe([3], [1.0], [1]),
            ValueError,
            r"domain_ids must be in \[0, 3\), got 3",
        ),
        (lambda s: s.observe([-1], [1.0], [1]), ValueError, r"domain_ids .* got -1"),
        (lambda s: s.observe([0.5], [1.0], [1]), TypeError, "domain_ids must be integers"),
        (lambda s: s.observe(["a"], [1.0], [1]), TypeError, "domain_ids must be integers"),
        (lambda s: s.observe([0], ["a"], [1]), TypeError, "loss_sums must be numbers"),
        (lambda s: s.observe([0], [1.0], [1.5]), TypeError, "tokens must be integers"),
        (lambda s: s.observe([0], [1.0], [-1]), ValueError, "tokens must be >= 0, got -1"),
        (lambda s: s.observe([0, 1], [1.0], [1]), ValueError, "one entry a sample each, got 2, 1"),
        (lambda s: s.load(np.zeros((2, 5), np.int64)), ValueError, "table must have the shape"),
        (lambda s: table_from_plain([[1.5]], 1), ValueError, "must have the shape"),
        (lambda s: table_from_plain("x", 1), ValueError, "must be integers"),
        (lambda s: Accumulator(0), ValueError, "num_domains must be in"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(Accumulator(3))


def test_numbers_out_of_range_on_a_device():
    sums = Accumulator(2)
    sums._on_device["x"] = table = _DeviceTable(2, torch.device("cpu"))
    table.observe(torch.tensor([0, 2, -5]), torch.ones(3), torch.ones(3, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"domain_ids must be in \[0, 2\), got 2 others on the GPU"
    ):
        sums.table()
    with pytest.raises(TypeError, match=r"tokens must be integers, got dtype torch\.float32"):
        table.observe(torch.tensor([0]), torch.ones(1), torch.ones(1))
