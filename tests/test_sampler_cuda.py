"""The GPU's picks are the CPU's, byte for byte. What needs no GPU of this is in test_grid.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_ledger
from histories import end_of, random_history

import mixcore

pytestmark = pytest.mark.gpu
GOLDEN = Path(__file__).parent / "golden"
NAMES = ("domain", "draw", "epoch", "sample")
STRATEGIES = ("auto", "walk", "search", "slots")


def same(tensors, arrays):
    for name in NAMES:
        tensor, array = getattr(tensors, name), getattr(arrays, name)
        assert (tensor is None) == (array is None)
        if array is not None:
            assert tensor.device.type == "cuda"
            assert tensor.cpu().numpy().dtype == array.dtype
            assert np.array_equal(tensor.cpu().numpy(), array)


def with_strategy(sampler, start, count, mask=15, **tuning):
    plan = sampler._on("cuda")
    return mixcore.Picks(*plan.picks(start, count, mask, **tuning)), plan.launches


def test_parity_golden():
    sampler = mixcore.Sampler(mixcore.Ledger.load(GOLDEN / "ledger_balanced.json"))
    golden = json.loads((GOLDEN / "picks_balanced.json").read_text())
    p = sampler.picks(0, golden["end"], device="cuda")
    q = sampler.at(torch.tensor(golden["positions"], device="cuda"))
    for name in NAMES:
        assert getattr(p, name).cpu().numpy()[golden["positions"]].tolist() == golden[name]
        assert getattr(q, name).tolist() == golden[name]


@pytest.mark.parametrize("seed", range(25))
def test_parity_random_histories(seed):
    ledger = random_history(seed)
    sampler = mixcore.Sampler(ledger)
    end = end_of(ledger, 30_000)
    rng = np.random.default_rng(seed)
    for strategy in STRATEGIES:
        start = int(rng.integers(0, end + 1))
        count = int(rng.integers(0, end - start + 1))
        for threads in (32, 96, 512):
            got, _ = with_strategy(sampler, start, count, strategy=strategy, threads=threads)
            same(got, sampler.picks(start, count))
    if end:
        positions = rng.integers(0, end, 1_001)
        wanted = sampler.at(positions)
        same(sampler.at(positions, device="cuda"), wanted)
        same(sampler.at(torch.from_numpy(positions).cuda()), wanted)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("strategy", ["walk", "search", "slots"])
def test_parity_every_window_of_a_few_batches(batch, strategy):
    sampler = mixcore.Sampler(make_ledger(5, batch_size=batch, size=11))
    for start in range(2 * batch + 1):
        for count in range(2 * batch + 2):
            got, _ = with_strategy(sampler, start, count, strategy=strategy, threads=32)
            same(got, sampler.picks(start, count))


@pytest.mark.parametrize("num", [1, 2, 32, 256, 2_048])
@pytest.mark.parametrize("batch", [1_000, 1_024, 5_000, 70_001])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parity_strategies(num, batch, strategy):
    weights = np.random.default_rng(num).dirichlet(np.ones(num))
    sampler = mixcore.Sampler(make_ledger(num, weights, batch_size=batch, size=1_009))
    for start in (0, 12_345, 2**40 + 77, 2**48 - 20_000):
        for mask in (3, 15, 8):
            got, launches = with_strategy(sampler, start, 19_999, mask, strategy=strategy)
            fields = [n for i, n in enumerate(NAMES) if mask >> i & 1]
            same(got, sampler.picks(start, 19_999, fields=fields))
            assert len(launches) == 1
    positions = np.random.default_rng(0).integers(0, 2**48, 10_001)
    same(sampler.at(torch.from_numpy(positions).cuda()), sampler.at(positions))


def test_parity_most_domains():
    weights = np.random.default_rng(0).dirichlet(np.ones(65_536))
    sampler = mixcore.Sampler(make_ledger(65_536, weights, batch_size=1_024, size=10**6))
    for start in (0, 2**41 + 3):
        same(sampler.picks(start, 30_001, device="cuda"), sampler.picks(start, 30_001))
    positions = np.random.default_rng(1).integers(0, 2**48, 10_001)
    same(sampler.at(positions, device="cuda"), sampler.at(positions))


def test_parity_many_segments():
    ledger = make_ledger(300, batch_size=64, size=777)
    rng = np.random.default_rng(0)
    for position in range(64, 64 * 300, 64):
        ledger.append(position, rng.dirichlet(np.ones(300)))
    sampler = mixcore.Sampler(ledger)
    same(sampler.picks(5, 64 * 310, device="cuda"), sampler.picks(5, 64 * 310))
    positions = rng.integers(0, 64 * 310, 20_001)
    same(sampler.at(torch.from_numpy(positions).cuda()), sampler.at(positions))


def test_large_window():
    sampler = mixcore.Sampler(make_ledger(256, batch_size=1_024, size=10**6))
    count = 20_000_003
    same(sampler.picks(10**12 + 1, count, device="cuda"), sampler.picks(10**12 + 1, count))


def test_no_such_position_is_minus_one():
    domains = [mixcore.Domain("a", 10, max_epochs=3)]
    sampler = mixcore.Sampler(mixcore.Ledger(domains, [1.0], batch_size=10, on_cap="stop"))
    p = sampler.at(torch.tensor([29, 30, -1, 2**48], device="cuda"))
    for name in NAMES:
        assert getattr(p, name).tolist()[1:] == [-1, -1, -1]
        assert getattr(p, name).tolist()[0] >= 0


def test_appends_are_seen():
    ledger = make_ledger(4, batch_size=100)
    sampler = mixcore.Sampler(ledger)
    same(sampler.picks(0, 1_000, device="cuda"), sampler.picks(0, 1_000))
    ledger.append(500, [1] * 5, add=[mixcore.Domain("new", 50)])
    same(sampler.picks(0, 1_000, device="cuda"), sampler.picks(0, 1_000))
    positions = torch.tensor([3, 999, 499, 500], device="cuda")
    same(sampler.at(positions), sampler.at(positions.tolist()))


def test_a_call_does_not_wait():
    ledger = make_ledger(32, batch_size=1_024)
    sampler = mixcore.Sampler(ledger)
    positions = torch.arange(0, 10**6, 1_000, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for position in (0, 2_048):  # the uploads of a change do not wait either
            p, q = sampler.picks(position, 10_000, device="cuda"), sampler.at(positions)
            ledger.append(position + 1_024, np.arange(32, 0, -1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert p.draw.shape == (10_000,)
    assert q.draw.shape == (1_000,)


def test_runs_on_the_current_stream():
    sampler = mixcore.Sampler(make_ledger(2_048, batch_size=1_024, size=10**6))
    wanted = sampler.picks(0, 3_000_000, fields=("domain", "draw"))
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for stream in streams:
        with torch.cuda.stream(stream):
            for sleep in (0, 200_000_000):  # the first call allocates, which may wait
                torch.cuda._sleep(sleep)
                p = sampler.picks(0, 3_000_000, device="cuda", fields=("domain", "draw"))
                assert sleep == 0 or not stream.query()  # it is behind the sleep; nobody waited
                stream.synchronize()
            results.append(p)
    for result in results:
        same(result, wanted)


def test_other_libraries_arrays():
    cupy = pytest.importorskip("cupy")
    sampler = mixcore.Sampler(make_ledger(4))
    positions = cupy.array([7, 0, 99])
    p = sampler.at(positions)
    same(p, sampler.at([7, 0, 99]))
    assert cupy.asarray(p.draw).tolist() == p.draw.tolist()
    assert torch.from_dlpack(cupy.from_dlpack(p.draw)).data_ptr() == p.draw.data_ptr()


def test_balanced_blending_indices():
    weights = np.random.default_rng(3).random(40)
    ours = mixcore.build_blending_indices(weights, 100_001, order="balanced")
    tensors = mixcore.build_blending_indices(weights, 100_001, order="balanced", device="cuda")
    for tensor, array in zip(tensors, ours, strict=True):
        assert tensor.cpu().numpy().dtype == array.dtype
        assert np.array_equal(tensor.cpu().numpy(), array)


def test_wrong_device():
    sampler = mixcore.Sampler(make_ledger(2))
    with pytest.raises(mixcore.DeviceError, match="there are"):
        sampler.picks(0, 1, device="cuda:63")
    with pytest.raises(ValueError, match="device must be a GPU as positions are, got 'cpu'"):
        sampler.at(torch.arange(3, device="cuda"), device="cpu")
    with pytest.raises(TypeError, match="positions must be integers"):
        sampler.at(torch.ones(3, device="cuda"))
