"""The checkpoint file of the sequential orders: used where it fits, never where it does not."""

import warnings

import numpy as np
import pytest
from conftest import make_ledger

import mixcore
from mixcore import checkpoints

ORDERS = ("megatron", "random")


def walked(order, path=None):
    ledger = make_ledger(3, order=order)
    ledger.append(150_000, [1, 1, 1, 2], add=[mixcore.Domain("late", 10)])
    mixcore.Sampler(ledger).picks(0, 500_000, fields=("domain",))
    if path:
        ledger.save(path)
    return ledger


@pytest.mark.parametrize("order", ORDERS)
def test_a_loaded_run_goes_on_from_its_checkpoints(tmp_path, order):
    path = tmp_path / "ledger.json"
    ledger = walked(order, path)
    again = mixcore.Ledger.load(path)
    held = [c[0] for c in again._plan.checkpoints()]
    assert held[0] == 65_536
    assert 500_000 in held  # where the run stopped
    one, two = mixcore.Sampler(ledger), mixcore.Sampler(again)
    for first in (0, 65_500, 149_990, 499_000, 700_000):
        p, q = one.picks(first, 1_000), two.picks(first, 1_000)
        assert np.array_equal(p.domain, q.domain)
        assert np.array_equal(p.draw, q.draw)


@pytest.mark.parametrize("order", ORDERS)
def test_a_far_position_can_be_reached_step_by_step_and_after_a_restart(
    tmp_path, order, monkeypatch
):
    path = tmp_path / "ledger.json"
    far = 2**47
    ledger = make_ledger(3, order=order)
    # What a run that came this far would hold: a checkpoint near the position it resumes at.
    counts = np.array([far - 2, 1, 1])
    ledger._plan.restore(far, 0, counts, np.zeros(3, np.int64), np.zeros(3), np.zeros(0, np.int64))
    ledger.save(path)
    again = mixcore.Sampler(mixcore.Ledger.load(path))
    assert again.picks(far, 100).domain.shape == (100,)
    path_without = tmp_path / "other.json"
    path_without.write_bytes(path.read_bytes())
    with pytest.raises(mixcore.DistanceError, match="steps from the nearest checkpoint"):
        mixcore.Sampler(mixcore.Ledger.load(path_without)).picks(far, 100)


@pytest.mark.parametrize("order", ORDERS)
def test_entries_of_another_history_are_not_used(tmp_path, order):
    path = tmp_path / "ledger.json"
    walked(order, path)
    other = make_ledger(3, order=order)
    other.append(100_032, [3, 2, 1])  # agrees up to here only
    assert checkpoints.load(other, path) == 1
    assert [c[0] for c in other._plan.checkpoints()] == [65_536]
    fresh = make_ledger(3, order=order)
    fresh.append(100_032, [3, 2, 1])
    p, q = (mixcore.Sampler(x).picks(0, 200_000) for x in (other, fresh))
    assert np.array_equal(p.domain, q.domain)


def test_a_damaged_file_is_reported_and_not_used(tmp_path):
    path = tmp_path / "ledger.json"
    want = mixcore.Sampler(walked("megatron", path)).counts(400_000)
    side = checkpoints.path_of(path)
    whole = side.read_bytes()
    for damaged in (b"", b"hello", whole[: len(whole) // 2], whole[:-1]):
        side.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is not used, positions will be replayed instead"):
            ledger = mixcore.Ledger.load(path)
        assert mixcore.Sampler(ledger).counts(400_000).tolist() == want.tolist()
        assert side.read_bytes() == damaged


def test_a_damaged_zip_is_reported_whatever_byte_is_wrong(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = make_ledger(2, order="random")
    mixcore.Sampler(ledger).counts(70_000)
    ledger.save(path)
    side = checkpoints.path_of(path)
    whole = side.read_bytes()
    reported = 0
    for at in range(len(whole)):
        for byte in {(8, 255, whole[at] ^ 1)[at % 3]} - {whole[at]}:
            side.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                checkpoints.load(ledger, path)
            reported += any("is not used" in str(w.message) for w in caught)
    assert reported > 100


def test_balanced_keeps_no_such_file(tmp_path):
    ledger = make_ledger(3)
    mixcore.Sampler(ledger).picks(0, 100_000)
    ledger.save(tmp_path / "ledger.json")
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]
    none = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="this order has no checkpoints"):
        ledger._plan.restore(0, 0, np.zeros(3, np.int64), none, np.zeros(0), none)
