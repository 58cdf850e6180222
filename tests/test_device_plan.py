"""Everything of `device="cuda"` but the GPU: windows over segments, uploads, streams, arguments."""

import pickle
import sys

import fake_cuda
import numpy as np
import pytest
import torch
from conftest import make_ledger
from histories import end_of, random_history
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mixcore
from mixcore import gpu

NAMES = ("domain", "draw", "epoch", "sample")


@pytest.fixture
def cuda(monkeypatch):
    sys.modules.pop("mixcore.device_plan", None)
    yield fake_cuda.install(monkeypatch)
    sys.modules.pop("mixcore.device_plan", None)  # it holds the fake


def same(tensors, arrays):
    for name in NAMES:
        tensor, array = getattr(tensors, name), getattr(arrays, name)
        assert (tensor is None) == (array is None)
        if array is not None:
            assert isinstance(tensor, torch.Tensor)
            assert tensor.numpy().dtype == array.dtype
            assert np.array_equal(tensor.numpy(), array)


@pytest.mark.usefixtures("cuda")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), data=st.data())
def test_random_histories(seed, data):
    fake = sys.modules["mixcore._cuda"]
    ledger = random_history(seed)
    fake.domains = len(ledger.domains)
    end = end_of(ledger, 30_000)
    sampler = mixcore.Sampler(ledger)
    for _ in range(2):  # from what is uploaded, too
        start = data.draw(st.integers(0, end))
        count = data.draw(st.integers(0, min(end - start, 2_000)))
        fields = data.draw(st.lists(st.sampled_from(NAMES), min_size=1))
        same(
            sampler.picks(start, count, device="cuda", fields=fields),
            sampler.picks(start, count, fields=fields),
        )
    if end:
        positions = np.random.default_rng(seed).integers(0, end, 100)
        same(sampler.at(positions, device="cuda"), sampler.at(positions))


@pytest.mark.parametrize("seed", [510510, *range(60)])
def test_spans_cover_a_window_without_an_empty_one(seed):
    """510510 has a segment that a cap leaves empty: nothing may be launched for it."""
    ledger = random_history(seed)
    end = end_of(ledger, 5_000)
    spans = ledger._plan.spans(0, end)
    assert all(begin < stop for _, begin, stop in spans)
    edges = [0, *(stop for _, _, stop in spans)]
    assert [begin for _, begin, _ in spans] == edges[:-1]
    assert edges[-1] == end


def test_a_window_over_many_segments(cuda):
    fake, _ = cuda
    ledger = make_ledger(6, batch_size=10, size=77)
    rng = np.random.default_rng(0)
    for position in range(10, 1_000, 10):
        ledger.append(position, rng.dirichlet(np.ones(6)))
    fake.domains = 6
    sampler = mixcore.Sampler(ledger)
    same(sampler.picks(3, 1_100, device="cuda"), sampler.picks(3, 1_100))
    assert len(fake.calls) == len(ledger._plan.spans(3, 1_100)) == 100


def test_uploads_once_a_change(cuda, monkeypatch):
    fake, _ = cuda
    ledger = make_ledger(4, batch_size=10)
    fake.domains = 4
    sampler = mixcore.Sampler(ledger)
    sampler.picks(0, 100, device="cuda")
    plan = sampler._on_gpus["cpu"]
    uploaded = []
    upload = plan.upload
    monkeypatch.setattr(plan, "upload", lambda array: (uploaded.append(array), upload(array))[1])
    sampler.picks(500, 100, device="cuda")
    assert uploaded == []
    ledger.append(300, [1, 1, 1, 1])
    same(sampler.picks(0, 1_000, device="cuda"), sampler.picks(0, 1_000))
    changed = len(ledger._plan.spans(0, 1_000)) - 1  # the first segment is there already
    assert changed >= 1
    assert len(uploaded) == changed
    for _ in range(3):
        same(sampler.at([0, 999, 5], device="cuda"), sampler.at([0, 999, 5]))
    starts, pointers = 1, 1
    assert len(uploaded) == changed + starts + pointers + 3  # and the three lists of positions
    ledger.append(2_000, weights=[1] * 5, add=[mixcore.Domain("new", 50)])
    fake.domains = 5
    same(sampler.picks(1_990, 200, device="cuda"), sampler.picks(1_990, 200))
    same(sampler.at([1_999, 2_150], device="cuda"), sampler.at([1_999, 2_150]))


def test_keeps_no_more_than_it_may(cuda, monkeypatch):
    fake, _ = cuda
    ledger = make_ledger(50, batch_size=10)
    for position in range(100, 1_000, 100):
        ledger.append(position, np.random.default_rng(position).dirichlet(np.ones(50)))
    fake.domains = 50
    sampler = mixcore.Sampler(ledger)
    sampler.picks(0, 10, device="cuda")
    module = sys.modules["mixcore.device_plan"]
    plan = sampler._on_gpus["cpu"]
    monkeypatch.setattr(module, "KEPT_BYTES", 3 * plan._segments[0].data.numel())
    for start in range(0, 1_000, 50):
        same(sampler.picks(start, 50, device="cuda"), sampler.picks(start, 50))
        assert sum(s.data.numel() for s in plan._segments.values()) <= module.KEPT_BYTES
    same(sampler.picks(0, 1_000, device="cuda"), sampler.picks(0, 1_000))  # needs more at a time
    same(sampler.at([5, 555, 999], device="cuda"), sampler.at([5, 555, 999]))


def test_other_streams_wait_for_the_upload(cuda):
    fake, now = cuda
    sampler = mixcore.Sampler(make_ledger(4))
    fake.domains = 4
    sampler.picks(0, 10, device="cuda", fields=["draw"])
    assert now.stream.waited == []
    first, now.stream = now.stream, fake_cuda.FakeStream(2)
    sampler.picks(0, 10, device="cuda", fields=["draw"])
    assert len(now.stream.waited) == 1
    assert now.recorded == [now.stream]
    assert first.waited == []
    assert fake.calls == [("picks", 1), ("picks", 2)]


def test_positions_of_any_integer_type(cuda):
    fake, _ = cuda
    sampler = mixcore.Sampler(make_ledger(4))
    fake.domains = 4
    sampler.picks(0, 1, device="cuda")
    plan = sampler._on_gpus["cpu"]
    for dtype in (torch.int32, torch.uint8, torch.int64):
        tensor = torch.tensor([7, 0, 99, 7], dtype=dtype)
        same(mixcore.Picks(*plan.at(plan.positions(tensor), 15)), sampler.at([7, 0, 99, 7]))
    backwards = torch.arange(10)[::2]  # not contiguous
    same(mixcore.Picks(*plan.at(plan.positions(backwards), 15)), sampler.at([0, 2, 4, 6, 8]))
    same(
        mixcore.Picks(*plan.at(plan.positions(np.array([3, 4])), 15)), sampler.at([3, 4])
    )  # DLPack


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.ones(3), TypeError, r"positions must be integers, got dtype torch\.float32"),
        (torch.ones(3, dtype=torch.bool), TypeError, "got dtype torch.bool"),
        (torch.ones(3, 1, dtype=torch.int64), ValueError, "positions must have 1 axis, got 2"),
        (torch.ones(3, device="meta"), ValueError, "positions must be on cpu, got meta"),
    ],
)
def test_bad_positions(cuda, value, error, message):
    sampler = mixcore.Sampler(make_ledger(4))
    plan = sampler._on("cuda")
    with pytest.raises(error, match=message):
        plan.positions(value)


@pytest.mark.usefixtures("cuda")
def test_what_the_host_knows_is_checked_on_the_host():
    domains = [mixcore.Domain("a", 10, max_epochs=3)]
    sampler = mixcore.Sampler(mixcore.Ledger(domains, [1.0], batch_size=10, on_cap="stop"))
    with pytest.raises(mixcore.CapError, match="position 30 is beyond the end of the run"):
        sampler.at([3, 30], device="cuda")
    with pytest.raises(mixcore.CapError, match="position 30 is beyond the end of the run"):
        sampler.picks(3, 28, device="cuda")
    with pytest.raises(ValueError, match="got -1"):
        sampler.at([3, -1], device="cuda")
    assert sampler.at([], device="cuda").draw.shape == (0,)
    assert sampler.picks(30, 0, device="cuda").draw.shape == (0,)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("num", [3, 40])
def test_balanced_blending_indices(num):
    weights = np.random.default_rng(num).random(num)
    ours = mixcore.build_blending_indices(weights, 2_001, order="balanced")
    tensors = mixcore.build_blending_indices(weights, 2_001, order="balanced", device="cuda")
    for tensor, array in zip(tensors, ours, strict=True):
        assert tensor.numpy().dtype == array.dtype
        assert np.array_equal(tensor.numpy(), array)


def test_a_sampler_leaves_the_gpu_behind_when_pickled(cuda):
    sampler = mixcore.Sampler(make_ledger(4))
    sampler.picks(0, 1, device="cuda", fields=["draw"])
    assert sampler._on_gpus
    again = pickle.loads(pickle.dumps(sampler))
    assert again._on_gpus == {}
    assert np.array_equal(again.picks(0, 50).sample, sampler.picks(0, 50).sample)


@pytest.mark.parametrize("order", ["megatron", "random"])
def test_only_order_balanced(order):
    sampler = mixcore.Sampler(make_ledger(2, order=order))
    for call in (
        lambda: sampler.picks(0, 5, device="cuda"),
        lambda: sampler.at([1], device="cuda"),
    ):
        with pytest.raises(mixcore.DeviceError, match=f"needs order 'balanced'.*'{order}'"):
            call()


@pytest.mark.parametrize(("device", "is_gpu"), [
    (None, False), ("cpu", False), (torch.device("cpu"), False),
    ("cuda", True), ("cuda:3", True), (torch.device("cuda"), True), (torch.device("cuda", 1), True),
])  # fmt: skip
def test_devices(device, is_gpu):
    assert gpu.is_cuda(device) == is_gpu


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:-1", 0, torch.device("meta")])
def test_no_devices(device):
    with pytest.raises(mixcore.DeviceError, match="must be 'cpu', 'cuda' or 'cuda:N'"):
        mixcore.Sampler(make_ledger(2)).picks(0, 1, device=device)
