"""Signals gathered on a GPU: the step never waits for it, and the sums are the CPU's."""

import numpy as np
import pytest
import torch
from no_sync import NoSync, Waits, aten
from torch._subclasses.fake_tensor import FakeTensorMode

from mixcore.accumulate import PENDING, Accumulator

CALLS = 3 * PENDING + 5  # enough to be added up several times


def batch(device, loss_type=torch.float32, id_device=None):
    ids = torch.zeros(8, dtype=torch.int32, device=id_device or device)
    losses = torch.ones(8, dtype=loss_type, device=device)
    return ids, losses, torch.ones(8, dtype=torch.int64, device=device)


@pytest.mark.parametrize("loss_type", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("id_device", ["cuda", "cpu"])
def test_observe_never_waits(loss_type, id_device):
    sums = Accumulator(5)
    with FakeTensorMode(), NoSync() as watch:
        for _ in range(CALLS):
            sums.observe(*batch("cuda", loss_type, id_device))
    assert watch.operations > 3 * CALLS  # something was looked at


def test_table_is_what_waits():
    sums = Accumulator(5)
    with FakeTensorMode(), NoSync():
        sums.observe(*batch("cuda"))
        with pytest.raises(Waits, match="to cpu waits"):
            sums.table()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: aten.nonzero(x),
        lambda x: aten.index(x, [x > 0]),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.unique(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.empty(8).copy_(x),
        lambda x: aten._to_copy(torch.ones(8), device="cuda"),
        lambda x: aten.copy_(x, torch.ones(8)),
    ],
)
def test_the_watch_sees_what_waits(wait):
    with FakeTensorMode(), NoSync(), pytest.raises(Waits):
        wait(torch.ones(8, device="cuda"))


@pytest.mark.gpu
def test_observe_never_waits_on_a_gpu():
    sums, waits = Accumulator(5), torch.ones(1, device="cuda")
    entries = batch("cuda")
    sums.observe(*entries)
    sums.table()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(CALLS):
            sums.observe(*entries)
        with pytest.raises(RuntimeError, match="synchroniz"):
            waits.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.table()[0].tolist()[2:] == [8 * (CALLS + 1), 8 * (CALLS + 1), 0]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_the_same_bits_on_a_gpu_in_any_order(seed):
    rng = np.random.default_rng(seed)
    entries = rng.integers(0, 7, 5_000), rng.lognormal(0, 8, 5_000), rng.integers(0, 4_096, 5_000)
    entries[1][::97] = np.nan
    here, there = Accumulator(7), Accumulator(7)
    here.observe(*entries)
    order = rng.permutation(5_000)
    for part in np.array_split(order, 150):
        there.observe(*(torch.from_numpy(column[part]).cuda() for column in entries))
    assert np.array_equal(here.table(), there.table())
