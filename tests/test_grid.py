"""The bodies of the CUDA kernels, executed on the CPU by walking the launch geometry."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_ledger
from histories import end_of, random_history
from hypothesis import given
from hypothesis import strategies as st

import mixcore
from mixcore import _core

GOLDEN = Path(__file__).parent / "golden"
H100 = (232_448, 233_472)  # bytes of shared memory: most for a block, a multiprocessor's
A10 = (101_376, 102_400)
STRATEGIES = ("auto", "walk", "search", "slots")
TURNS = ("forward", "backward", "odd first")
ALL = 15


def by_grid(ledger, start, count, **options):
    """(columns, strategies) of a window, segment by segment, as the GPU would have it."""
    plan = ledger._plan
    asked = {
        "mask": ALL, "strategy": "auto", "threads": 32, "blocks": 3, "shared": 0, "limits": H100,
        "turn": "backward",
    } | options  # fmt: skip
    parts, strategies = [], []
    for serial, begin, end in plan.spans(start, count):
        flat = plan.flat(serial)
        first = begin - _core.flat_head(flat)["start"]
        columns, strategy, _, shared = _core.grid_picks(
            flat, plan.views(), plan.order_key, first, end - begin, **asked
        )
        assert shared <= asked["limits"][0]
        parts.append(columns)
        strategies.append(strategy)
    return [np.concatenate(column) for column in zip(*parts, strict=True)], strategies


def check(ledger, start, count, **options):
    columns, strategies = by_grid(ledger, start, count, **options)
    for got, wanted in zip(columns, ledger._plan.picks(start, count, 1, ALL), strict=True):
        assert got.dtype == wanted.dtype
        assert np.array_equal(got, wanted)
    return strategies


def at_by_grid(ledger, positions, *, threads=32, shared=1 << 20, turn="backward"):
    plan = ledger._plan
    spans = plan.spans(0, -1)
    flats = [plan.flat(serial) for serial, _, _ in spans]
    return _core.grid_at(
        flats, plan.views(), plan.order_key, spans[-1][2], positions, ALL, threads, 3, shared, turn
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_golden_picks(strategy):
    ledger = mixcore.Ledger.load(GOLDEN / "ledger_balanced.json")
    golden = json.loads((GOLDEN / "picks_balanced.json").read_text())
    names = ("domain", "draw", "epoch", "sample")
    where = np.array(golden["positions"])
    columns, _ = by_grid(ledger, 0, golden["end"], strategy=strategy)
    for name, column, found in zip(names, columns, at_by_grid(ledger, where), strict=True):
        assert column[where].tolist() == golden[name]
        assert found.tolist() == golden[name]


@given(seed=st.integers(0, 10**6), data=st.data())
def test_random_histories(seed, data):
    ledger = random_history(seed)
    end = end_of(ledger, 30_000)
    start = data.draw(st.integers(0, max(end - 1, 0)))
    count = min(end - start, data.draw(st.integers(1, 3_000)))
    options = {
        "strategy": data.draw(st.sampled_from(STRATEGIES)),
        "threads": data.draw(st.sampled_from([1, 5, 32, 512])),
        "blocks": data.draw(st.integers(1, 4)),
        "shared": data.draw(st.sampled_from([0, 1_000, 20_000])),
        "limits": data.draw(st.sampled_from([H100, A10])),
        "turn": data.draw(st.sampled_from(TURNS)),
    }
    if count:
        check(ledger, start, count, **options)
        positions = np.random.default_rng(seed).integers(0, end, 200)
        wanted = ledger._plan.at(positions, ALL)
        found = at_by_grid(ledger, positions, threads=options["threads"], turn=options["turn"])
        for got, expected in zip(found, wanted, strict=True):
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("batch", [1, 2, 7, 33])
@pytest.mark.parametrize("strategy", ["walk", "search", "slots"])
def test_every_window_of_a_few_batches(batch, strategy):
    ledger = make_ledger(5, batch_size=batch, size=11)
    for start in range(2 * batch + 1):
        for count in range(1, 2 * batch + 2):
            check(ledger, start, count, strategy=strategy, threads=8)


@pytest.mark.parametrize("start", [2**40 - 1, 2**40 + 12_345, 2**47 + 1, 2**48 - 5_000])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_far_positions(start, strategy):
    ledger = make_ledger(32, batch_size=1_000, size=10**9)
    check(ledger, start, 4_999, strategy=strategy)
    positions = np.array([start, start + 4_999, 2**48 - 1, 0])
    for got, wanted in zip(
        at_by_grid(ledger, positions), ledger._plan.at(positions, ALL), strict=True
    ):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("start", [0, 2**41 + 3])
def test_most_domains(start):
    weights = np.random.default_rng(0).dirichlet(np.ones(65_536))
    ledger = make_ledger(65_536, weights, batch_size=1_024, size=10**6)
    for shared in (0, 4_096):  # the top of the tree is kept, the rest is not
        assert check(ledger, start, 3_001, shared=shared) == ["walk"]
    positions = np.random.default_rng(1).integers(0, 2**48, 1_001)
    found = at_by_grid(ledger, positions, shared=50_000)
    for got, wanted in zip(found, ledger._plan.at(positions, ALL), strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("num", "batch", "limits", "expected"),
    [
        (32, 1_024, H100, "slots"),
        (2_048, 1_024, H100, "slots"),
        (2_048, 1_024, A10, "slots"),
        (2_048, 100, H100, "walk"),  # 20 leaves a sample
        (32, 1, H100, "walk"),
        (8, 2, H100, "slots"),
        (300, 70_001, H100, "search"),  # no batch fits
        (3, 2**31 - 1, H100, "search"),
        (16_000, 8_192, H100, "walk"),  # not even the leaves fit
    ],
)
def test_strategy(num, batch, limits, expected):
    ledger = make_ledger(num, batch_size=batch, size=10**6)
    for start in (0, 900 * batch + batch // 3):
        assert check(ledger, start, 1_501, limits=limits) == [expected]


@pytest.mark.parametrize("weights", [[0.0, 1.0, 0.0], [1e-12, 1.0, 1e-12], [1.0, 0.5, 0.25]])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_single_leaves_and_tiny_weights(weights, strategy):
    check(make_ledger(3, weights, batch_size=50), 13, 777, strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mask", range(1, 16))
def test_fields(mask, strategy):
    ledger = make_ledger(7, batch_size=96, size=50)
    columns, _ = by_grid(ledger, 10, 1_000, mask=ALL)
    plan = ledger._plan
    ((serial, _, _),) = plan.spans(10, 1_000)
    got, *_ = _core.grid_picks(
        plan.flat(serial), plan.views(), plan.order_key, 10, 1_000, mask, strategy, 32, 2, 0, H100,
        "forward",
    )  # fmt: skip
    for i, (column, wanted) in enumerate(zip(got, columns, strict=True)):
        assert (column is not None) == bool(mask >> i & 1)
        assert column is None or np.array_equal(column, wanted)


def test_the_largest_batch_is_permuted_like_any_other():
    # Batches are permuted in 32 bits, samples in 64: one domain shows the batch's permutation.
    batch, first = 2**31 - 1, 3 * (2**31 - 1)
    ledger = make_ledger(1, batch_size=batch, size=10)
    points = np.array([0, 1, 2, 46_340, 46_341, 2**30, 2**31 - 2])
    wanted = first + _core.permutation(batch, ledger._plan.order_key, first, 2, points)
    assert np.array_equal(ledger._plan.at(first + points, 2)[1], wanted)
    columns, _ = by_grid(ledger, first + 2**30, 1)
    assert columns[1][0] == wanted[5]


def test_no_such_position():
    ledger = make_ledger(2, batch_size=10, size=10)
    positions = np.array([-1, 5, 2**48, -(2**63), 2**63 - 1])
    for column in at_by_grid(ledger, positions):
        assert column[[0, 2, 3, 4]].tolist() == [-1] * 4
        assert column[1] >= 0


def test_beyond_the_end_of_the_run():
    domains = [mixcore.Domain("a", 10, max_epochs=3)]
    ledger = mixcore.Ledger(domains, [1.0], batch_size=10, on_cap="stop")
    for column in at_by_grid(ledger, np.array([29, 30])):
        assert column[0] >= 0
        assert column[1] == -1
    assert ledger._plan.spans(0, -1)[-1][2] == 30
    with pytest.raises(mixcore.CapError):
        ledger._plan.spans(0, 31)


def test_segments_are_known_by_serial_numbers():
    ledger = make_ledger(3, batch_size=10)
    ((serial, *_),) = ledger._plan.spans(0, 100)
    ledger.append(50, [1, 1, 1])
    spans = ledger._plan.spans(0, 100)
    assert [(begin, end) for _, begin, end in spans] == [(0, 50), (50, 100)]
    assert spans[0][0] == serial  # what was uploaded of it stays good
    ledger.append(50, [3, 1, 1], replace_future=True)
    again = ledger._plan.spans(0, 100)
    assert again[0][0] == serial
    assert again[1][0] not in (serial, spans[1][0])
    assert ledger._plan.flat(spans[1][0]).size == 0  # forgotten
    assert ledger._plan.spans(7, 0) == []


@pytest.mark.parametrize("order", ["megatron", "random"])
def test_other_orders_have_no_segments(order):
    plan = make_ledger(2, order=order)._plan
    with pytest.raises(ValueError, match="this order has no segments"):
        plan.spans(0, 10)
    with pytest.raises(ValueError, match="this order has no segments"):
        plan.flat(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "jump"}, "strategy must be 'auto', 'walk', 'search' or 'slots', got 'jump'"),
        ({"threads": 513}, r"threads must be in \[1, 512\], got 513"),
        ({"blocks": 0}, r"blocks must be in .*, got 0"),
        ({"shared": -1}, r"shared must be in .*, got -1"),
        ({"turn": "random"}, "turn must be"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        by_grid(make_ledger(2), 0, 10, **change)
    with pytest.raises(ValueError, match="this is no segment: it has 5 bytes"):
        _core.flat_head(np.zeros(5, np.uint8))
