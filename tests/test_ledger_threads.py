"""A ledger that grows while other threads ask it: they see the old one or the new one."""

import contextlib
import threading

import numpy as np
import pytest
from conftest import make_ledger

import mixcore

FAR = 40_000


def answers(ledger):
    """What a reader can ask beyond the change, each answer in a form that compares."""
    sampler = mixcore.Sampler(ledger)
    p = sampler.picks(FAR, 200)
    return {
        "picks": (p.domain.tobytes(), p.draw.tobytes()),
        "counts": tuple(sampler.counts(FAR).tolist()),
        "batch_at": ledger.batch_at(FAR),
        "step": ledger.step_of_position(FAR),
        "weights": tuple(ledger.weights_at(FAR).tolist()),
        "digest": ledger.digest,
    }


def histories(order, rounds):
    """A ledger and what is appended to it: new domains, and schedules that replace schedules."""
    ledger = make_ledger(3, batch_size=64, seed=1, order=order)
    changes = []
    for i in range(rounds):
        num = 4 + i
        weights = [1.0 + (i + d) % 5 for d in range(num)]
        points = [
            (1_000 * k, [1.0 + (i * k + d) % 7 for d in range(num)], 16 + 8 * ((i + k) % 5))
            for k in range(2, 39)
        ]
        changes.append(
            {
                "weights": weights,
                "add": [mixcore.Domain(f"new{i}", 500)],
                "schedule": points,
                "replace_future": True,
            }
        )
    return ledger, changes


@pytest.mark.parametrize("order", ["balanced", "megatron", "random"])
def test_readers_see_the_old_ledger_or_the_new_one(order):
    ledger, changes = histories(order, 12)
    twin = mixcore.Ledger.from_bytes(ledger.to_bytes())
    allowed = {name: {value} for name, value in answers(twin).items()}
    for change in changes:
        twin.append(1_280, **change)
        for name, value in answers(twin).items():
            allowed[name].add(value)
    assert len(allowed["picks"]) == len(changes) + 1

    done, failures, seen = threading.Event(), [], {name: set() for name in allowed}

    def read():
        try:
            while not done.is_set():
                for name, value in answers(ledger).items():
                    seen[name].add(value)
        except BaseException as e:
            failures.append(e)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in readers:
        thread.start()
    for change in changes:
        ledger.append(1_280, **change)
    done.set()
    for thread in readers:
        thread.join()
    assert not failures
    for name in allowed:
        assert seen[name] <= allowed[name], name
    assert answers(ledger) == answers(twin)


def test_what_is_handed_out_never_changes():
    """One thread iterates, another decides at the first position that is still open."""
    ledger = make_ledger(3, batch_size=8)
    done, failures = threading.Event(), []

    def decide():
        rng = np.random.default_rng(0)
        try:
            while not done.is_set():
                with contextlib.suppress(mixcore.LedgerError):  # it came too late
                    ledger.append(ledger.fetched, rng.random(3), batch_size=8)
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=decide)
    thread.start()
    handed_out = []
    for keys in mixcore.MixBatchSampler(ledger, 4, end=12_000):
        handed_out += keys
    done.set()
    thread.join()
    assert not failures
    assert ledger.num_decisions > 50
    assert [k.position for k in handed_out] == list(range(12_000))
    p = mixcore.Sampler(ledger).picks(0, 12_000)
    assert [k.domain for k in handed_out] == p.domain.tolist()
    assert [k.draw for k in handed_out] == p.draw.tolist()
