"""Batch sizes decided for later, and what new weights do to them; notes in the header."""

import numpy as np
import pytest

import mixcore
from mixcore import Domain, Ledger, LedgerError

DOMAINS = [Domain("web", 1000), Domain("code", 300)]
RAMP = [{"at": 100, "batch_size": 20}, {"at": 1000, "batch_size": 40}]


def ramped(order="balanced"):
    return Ledger(DOMAINS, [0.5, 0.5], batch_size=10, order=order, schedule=RAMP)


def pieces(ledger):
    return [(p.start, p.batch_size, p.shares.tolist()) for p in ledger.pieces]


@pytest.mark.parametrize("order", ["balanced", "megatron", "random"])
def test_new_weights_keep_batch_sizes_decided_for_later(order):
    ledger = ramped(order)
    half = 1 << 61
    assert ledger.append(205, [0.25, 0.75]) == 220  # batches of 20 from 100 on
    quarter, rest = 1 << 60, 3 << 60
    assert pieces(ledger) == [
        (0, 10, [half, half]),
        (100, 20, [half, half]),
        (220, 20, [quarter, rest]),
        (1000, 40, [quarter, rest]),
    ]
    again = Ledger.from_bytes(ledger.to_bytes())
    assert pieces(again) == pieces(ledger)
    assert again.digest == ledger.digest


def test_shares_of_another_rank_keep_them_too():
    ours, theirs = ramped(), ramped()
    ours.append(220, [0.25, 0.75])
    theirs._append_shares(220, np.array([1 << 60, 3 << 60], np.uint64))
    assert ours.digest == theirs.digest
    assert theirs.batch_at(1000) == (1000, 40)


def test_nothing_is_lost_or_repeated_across_both():
    ledger = ramped()
    for position in (40, 160, 400, 1200):
        ledger.append(position, [position % 7 + 1, 3])
    picks = mixcore.Sampler(ledger).picks(0, 2000)
    for domain in range(2):
        draws = picks.draw[picks.domain == domain]
        assert sorted(draws) == list(range(len(draws)))
    assert [ledger.batch_at(p)[1] for p in (0, 99, 100, 999, 1000, 5000)] == [
        10,
        10,
        20,
        20,
        40,
        40,
    ]


@pytest.mark.parametrize("change", [{"weights": [1, 3], "batch_size": 30}, {"batch_size": 30}])
def test_another_batch_size_still_contradicts_them(change):
    with pytest.raises(LedgerError, match="dated before the one already decided for position 100"):
        ramped().append(50, **change)


def test_later_weights_still_stand_in_the_way():
    ledger = ramped()
    ledger.append(1000, [0.1, 0.9])
    with pytest.raises(LedgerError, match="for position 100;"):
        ledger.append(50, [0.3, 0.7])


def test_dropping_the_future_drops_batch_sizes():
    ledger = ramped()
    ledger.append(50, [0.3, 0.7], replace_future=True)
    assert ledger.batch_at(5000)[1] == 10


def test_notes_are_kept_and_decide_nothing(tmp_path):
    notes = {"megatron": {"built": [["web", 7]], "epochs": None}}
    ledger = Ledger(DOMAINS, [0.5, 0.5], batch_size=10, notes=notes)
    assert ledger.digest == Ledger(DOMAINS, [0.5, 0.5], batch_size=10).digest
    notes["megatron"] = "changed by the caller"
    ledger.save(tmp_path / "ledger.json")
    for again in (Ledger.load(tmp_path / "ledger.json"), Ledger.from_bytes(ledger.to_bytes())):
        assert again.notes == {"megatron": {"built": [["web", 7]], "epochs": None}}
    assert Ledger(DOMAINS, [0.5, 0.5], batch_size=10).notes == {}


@pytest.mark.parametrize("notes", [[1], "text", {"a": object()}, {"a": float("nan")}])
def test_bad_notes(notes):
    with pytest.raises(TypeError, match="notes must be"):
        Ledger(DOMAINS, [0.5, 0.5], batch_size=10, notes=notes)


def test_order_megatron_does_not_notice_batch_sizes():
    """With constant weights it stays Megatron's order, whatever the batches: bit for bit."""
    weights = [0.31, 0.29, 0.4]
    domains = [*DOMAINS, Domain("books", 77)]
    plain = Ledger(domains, weights, batch_size=10, order="megatron")
    ramp = Ledger(domains, weights, batch_size=10, order="megatron", schedule=RAMP)
    changed, ramped_too = (
        Ledger.from_bytes(ledger.to_bytes()) for ledger in (plain, ramp)
    )  # both change their weights in the middle of it
    for ledger in (changed, ramped_too):
        ledger.append(500, [0.5, 0.2, 0.3])
    for one, other in ((plain, ramp), (changed, ramped_too)):
        x, y = (mixcore.Sampler(ledger).picks(0, 3000) for ledger in (one, other))
        assert (x.domain == y.domain).all()
        assert (x.draw == y.draw).all()
        positions = [2900, 17, 1000, 999, 500, 100]
        x, y = (mixcore.Sampler(ledger).at(positions) for ledger in (one, other))
        assert (x.draw == y.draw).all()
    domain, _ = mixcore.build_blending_indices(np.array(weights), 3000)
    assert (mixcore.Sampler(ramp).picks(0, 3000).domain == domain).all()
