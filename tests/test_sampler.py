import threading
from itertools import pairwise

import numpy as np
import pytest
from conftest import make_ledger
from hypothesis import given
from hypothesis import strategies as st

import mixcore
from mixcore import reference

ORDERS = ("balanced", "megatron", "random")
FAR = 10**12


def rows(p):
    return np.stack([p.domain, p.draw, p.epoch, p.sample])


def changed_ledger(order, batch_size=32):
    ledger = make_ledger(5, [0.4, 0.3, 0.2, 0.1, 0.0], batch_size=batch_size, size=77, order=order)
    ledger.append(1_000, [0.1, 0.1, 0.1, 0.1, 0.6])
    ledger.append(2_000, batch_size=batch_size + 7)
    ledger.append(3_000, [0.0, 0.5, 0.0, 0.5, 0.0])
    return ledger


@pytest.mark.parametrize("order", ORDERS)
def test_types_and_shapes(order):
    sampler = mixcore.Sampler(make_ledger(order=order))
    p = sampler.picks(0, 100)
    assert [a.dtype for a in (p.domain, p.draw, p.epoch, p.sample)] == ["i4", "i8", "i8", "i8"]
    assert all(a.shape == (100,) for a in (p.domain, p.draw, p.epoch, p.sample))
    assert sampler.picks(5, 0).domain.shape == (0,)
    assert sampler.at([]).draw.shape == (0,)
    assert sampler.counts(0).tolist() == [0, 0, 0]
    assert sampler.counts(0).dtype == np.int64


@pytest.mark.parametrize("order", ORDERS)
@given(data=st.data())
def test_windows_concatenate(order, data):
    sampler = mixcore.Sampler(changed_ledger(order))
    cuts = data.draw(st.lists(st.integers(0, 5_000), min_size=1, max_size=8).map(sorted))
    parts = [rows(sampler.picks(a, b - a)) for a, b in pairwise(cuts)]
    whole = rows(mixcore.Sampler(changed_ledger(order)).picks(cuts[0], cuts[-1] - cuts[0]))
    assert np.array_equal(np.concatenate([whole[:, :0], *parts], axis=1), whole)


@pytest.mark.parametrize("order", ORDERS)
@given(positions=st.lists(st.integers(0, 4_999), min_size=1, max_size=60))
def test_at_equals_picks_in_any_order(order, positions):
    sampler = mixcore.Sampler(changed_ledger(order))
    assert np.array_equal(rows(sampler.at(positions)), rows(sampler.picks(0, 5_000))[:, positions])


@pytest.mark.parametrize("order", ORDERS)
def test_epochs_are_permutations(order):
    ledger = make_ledger(3, [0.5, 0.3, 0.2], batch_size=50, size=77, order=order)
    p = mixcore.Sampler(ledger).picks(0, 5_000)
    orders_seen = set()
    for d in range(3):
        for epoch in range(int(p.epoch[p.domain == d].max())):  # the last one is incomplete
            inside = (p.domain == d) & (p.epoch == epoch)
            in_order = p.sample[inside][np.argsort(p.draw[inside])]
            assert sorted(in_order) == list(range(77))
            orders_seen.add(tuple(in_order.tolist()))
    assert len(orders_seen) > 20  # every epoch of every domain has its own shuffle
    assert np.array_equal(p.epoch, p.draw // 77)


def test_far_positions():
    """Random access at 10^12 and at the last position there is."""
    sampler = mixcore.Sampler(make_ledger(22, batch_size=1_000))
    top = 2**48
    p = sampler.picks(FAR, 5_000)
    assert np.array_equal(rows(sampler.at(np.arange(FAR, FAR + 5_000)[::-1]))[:, ::-1], rows(p))
    steps = sampler.counts(FAR + 5_000) - sampler.counts(FAR)
    assert np.array_equal(np.bincount(p.domain, minlength=22), steps)
    assert sampler.counts(top).sum() == top
    assert sampler.picks(top - 3, 3).draw.min() > 10**11


def test_a_large_batch_is_not_materialised():
    ledger = make_ledger(4, batch_size=2**31 - 1)
    p = mixcore.Sampler(ledger).picks(10**10, 100)
    assert np.array_equal(
        rows(mixcore.Sampler(ledger).at(np.arange(10**10, 10**10 + 100))), rows(p)
    )


@pytest.mark.parametrize("batch_size", [1, 3, 1_000, 5_000, 2**18, 2**21])
def test_bulk_equals_random_access_for_any_batch_size(batch_size):
    ledger = make_ledger(70, np.random.default_rng(1).dirichlet(np.ones(70)), batch_size=batch_size)
    sampler = mixcore.Sampler(ledger)
    assert np.array_equal(rows(sampler.picks(777, 9_000)), rows(sampler.at(range(777, 9_777))))


@pytest.mark.parametrize("order", ORDERS)
def test_threads_do_not_change_the_answer(order):
    sampler = mixcore.Sampler(changed_ledger(order))
    one = rows(sampler.picks(100, 300_000, threads=1))
    assert np.array_equal(rows(sampler.picks(100, 300_000, threads=7)), one)
    assert np.array_equal(rows(sampler.picks(100, 300_000)), one)


@pytest.mark.parametrize("order", ORDERS)
def test_questions_from_many_threads_while_appending(order):
    """A live ledger: readers see either the old or the new future, never a torn one."""
    ledger = make_ledger(9, batch_size=16, order=order)
    sampler = mixcore.Sampler(ledger)
    want = rows(sampler.picks(0, 1_600))
    wrong, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            if not np.array_equal(rows(sampler.picks(0, 1_600)), want):
                wrong.append("picks")
            if sampler.counts(1_600).sum() != 1_600:
                wrong.append("counts")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for r in readers:
        r.start()
    rng = np.random.default_rng(0)
    for i in range(100, 200):
        ledger.append(i * 16, rng.random(9))
        sampler.picks(i * 16, 64)
    stop.set()
    for r in readers:
        r.join()
    assert not wrong


def test_fields():
    sampler = mixcore.Sampler(make_ledger())
    whole = sampler.picks(0, 1_000)
    for fields in (("domain", "draw"), ["sample"], ("epoch",), ("draw", "sample")):
        part = sampler.picks(0, 1_000, fields=fields)
        some = sampler.at(range(1_000), fields=fields)
        for name in ("domain", "draw", "epoch", "sample"):
            if name in fields:
                assert np.array_equal(getattr(part, name), getattr(whole, name))
                assert np.array_equal(getattr(some, name), getattr(whole, name))
            else:
                assert getattr(part, name) is None


def test_the_name_decides_the_samples():
    """Inserting a domain before another leaves the other's order of samples as it was."""
    code = mixcore.Domain("code", 500)
    one = mixcore.Sampler(mixcore.Ledger([code], [1], batch_size=10, seed=5)).picks(0, 500)
    two = mixcore.Sampler(
        mixcore.Ledger([mixcore.Domain("web", 9), code], [1, 1], batch_size=10, seed=5)
    ).picks(0, 1_000)
    mine = two.domain == 1
    assert np.array_equal(two.sample[mine][np.argsort(two.draw[mine])], _by_draw(one))
    other = mixcore.Sampler(mixcore.Ledger([code], [1], batch_size=10, seed=6)).picks(0, 500)
    assert not np.array_equal(_by_draw(other), _by_draw(one))


def _by_draw(p):
    return p.sample[np.argsort(p.draw)]


def test_open_ended_domains():
    ledger = mixcore.Ledger([mixcore.Domain("stream", None)], [1], batch_size=4)
    p = mixcore.Sampler(ledger).picks(0, 1_000)
    assert not p.epoch.any()
    assert np.array_equal(p.sample, p.draw)


def test_most_domains_there_may_be():
    num = 65_536
    domains = [mixcore.Domain(str(i), 10) for i in range(num)]
    weights = np.random.default_rng(0).dirichlet(np.ones(num))
    sampler = mixcore.Sampler(mixcore.Ledger(domains, weights, batch_size=4_096))
    p = sampler.picks(FAR, 20_000)
    assert p.domain.max() > 65_000
    assert np.array_equal(rows(sampler.at(range(FAR, FAR + 20_000))), rows(p))
    deviation = sampler.counts(40_960_000) - weights * 40_960_000
    assert np.abs(deviation).max() < 1.5
    with pytest.raises(ValueError, match="domains must be at most 65536, got 65537"):
        mixcore.Ledger([*domains, mixcore.Domain("one more", 1)], np.ones(num + 1), batch_size=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.picks(-1, 5), ValueError, r"start must be in \[0, 281474976710656\], got -1"),
        (lambda s: s.picks(0, -3), ValueError, "count must be in .*, got -3"),
        (lambda s: s.picks(2**48, 1), ValueError, r"count must be in \[0, 0\], got 1"),
        (lambda s: s.picks(0, 2**70), ValueError, "count must be in"),
        (lambda s: s.picks(0.0, 5), TypeError, r"start must be an integer, got 0.0 \(float\)"),
        (lambda s: s.picks(0, True), TypeError, "count must be an integer, got True"),
        (lambda s: s.picks(0, 5, threads=0), ValueError, "threads must be in .*, got 0"),
        (
            lambda s: s.picks(0, 5, fields=("weight",)),
            ValueError,
            "fields must be among .*'weight'",
        ),
        (lambda s: s.picks(0, 5, fields="domain"), TypeError, "fields must be a sequence of names"),
        (lambda s: s.picks(0, 5, fields=()), ValueError, "fields must name at least one"),
        (lambda s: s.at([0, -7]), ValueError, r"positions\[1\] must be in .*, got -7"),
        (lambda s: s.at([2**48]), ValueError, r"positions\[0\] must be in .*, got 281474976710656"),
        (lambda s: s.at([2**80]), ValueError, r"positions\[0\] must be in"),
        (lambda s: s.at([0.5]), TypeError, "positions must be integers, got dtype float64"),
        (lambda s: s.at(["a"]), TypeError, "positions must be integers"),
        (lambda s: s.at(3), TypeError, "positions must be a sequence of integers, got 3"),
        (lambda s: s.at([[1, 2]]), ValueError, "positions must have 1 axis, got 2"),
        (lambda s: s.at(np.array([2**63], np.uint64)), ValueError, "positions must be below"),
        (lambda s: s.counts(2**48 + 1), ValueError, "position must be in .*, got 281474976710657"),
        (lambda s: s.counts("7"), TypeError, "position must be an integer, got '7'"),
        (lambda s: s.picks(0, 5, device="tpu"), RuntimeError, "device='tpu' is not available"),
        (lambda s: mixcore.Sampler("x"), TypeError, "ledger must be a mixcore.Ledger, got 'x'"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(mixcore.Sampler(make_ledger()))
    assert isinstance(caught.value, mixcore.MixcoreError)


@pytest.mark.parametrize("order", ["megatron", "random"])
def test_sequential_orders_refuse_what_is_too_far(order):
    sampler = mixcore.Sampler(make_ledger(order=order))
    sampler.picks(0, 200_000)
    message = r"position 1000000000000 is 9999\d+ steps from the nearest checkpoint \(\d+\)"
    with pytest.raises(mixcore.DistanceError, match=message):
        sampler.at([FAR])
    assert sampler.counts(100).sum() == 100  # and goes on working


@pytest.mark.parametrize("order", ["megatron", "random"])
def test_checkpoints_of_a_sequential_order_are_bounded(order):
    ledger = make_ledger(3, order=order)
    sampler = mixcore.Sampler(ledger)
    sampler.picks(0, 3_000_000, fields=("domain",))
    held = ledger.memory_bytes
    assert held < 1_000_000  # 300 KB of 64 MiB: 24 bytes a domain, once in 65,536 positions
    tail = rows(sampler.picks(2_999_000, 1_000))
    fresh = mixcore.Sampler(make_ledger(3, order=order))
    assert np.array_equal(rows(fresh.at(range(2_999_000, 3_000_000))), tail)


@pytest.mark.parametrize("size", [63, 64, 999, 1_000, 65_537, 2**31 - 1, 2**31, 2**40, 2**48])
def test_samples_of_any_size_equal_the_twin(size):
    """Bulk and single look-ups take different paths to a sample, by size; the twin has one."""
    domains = [mixcore.Domain("a", size), mixcore.Domain("b", 1_500), mixcore.Domain("c", None)]
    sampler = mixcore.Sampler(mixcore.Ledger(domains, [4, 2, 1], batch_size=70, seed=3))
    for p in (sampler.picks(10**9, 700), sampler.at(range(10**9, 10**9 + 100))):
        for d, draw, epoch, sample in zip(p.domain, p.draw, p.epoch, p.sample, strict=True):
            domain = domains[d]
            if domain.size is None:
                assert (epoch, sample) == (0, draw)
                continue
            want, place = divmod(int(draw), domain.size)
            keys = reference.words(domain.key(3), want, reference.EPOCH)
            assert (epoch, sample) == (want, reference.permute(domain.size, keys, place))
