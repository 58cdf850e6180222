"""The controller saved and restored: as if nothing had happened."""

import json

import numpy as np
import pytest
from controlled import BATCH, Hedge, Ring, make, train

import mixcore


@pytest.mark.parametrize("at", [1, 5, 8, 13])
def test_resume_in_the_middle_of_a_window_is_as_if_nothing_had_happened(at):
    """Steps 8 and 13: losses observed, not decided on; and changes decided, not yet in force."""
    whole, first = (make(update_every=5, lag_steps=7) for _ in range(2))
    train(whole, 0, 30)
    train(first, 0, at)
    state = json.loads(json.dumps(first.state_dict()))
    ledger = mixcore.Ledger.from_bytes(first.ledger.to_bytes())
    second = mixcore.Controller(ledger, Hedge(ledger.domains), 5, lag_steps=7)
    second.load_state_dict(state)
    assert second.state_dict() == state
    train(second, at, 30 - at)
    assert second.ledger.to_bytes() == whole.ledger.to_bytes()
    assert second.state_dict() == whole.state_dict()


def test_a_state_does_not_disturb_the_run():
    whole, other = (make(update_every=5) for _ in range(2))
    train(whole, 0, 12)
    for i in range(12):
        other.state_dict()
        train(other, i, 1)
    assert other.ledger.to_bytes() == whole.ledger.to_bytes()


@pytest.mark.parametrize("worlds", [(4, 2), (1, 4), (4, 1)])
def test_resume_with_another_number_of_ranks(worlds):
    whole = make(update_every=5, lag_steps=2)
    train(whole, 0, 30)
    before, after = worlds
    ring = Ring(before)

    def until(rank):
        controller = make(update_every=5, lag_steps=2, **ring.options(rank))
        train(controller, 0, 13, rank, before)
        return controller.state_dict(), controller.ledger.to_bytes()

    saved = ring.run(until)
    assert all(s == saved[0] for s in saved)
    state, data = saved[0]
    ring = Ring(after)

    def since(rank):
        ledger = mixcore.Ledger.from_bytes(data)
        method = Hedge(ledger.domains)
        controller = mixcore.Controller(ledger, method, 5, lag_steps=2, **ring.options(rank))
        controller.load_state_dict(state)
        train(controller, 13, 17, rank, after)
        return controller.ledger

    assert all(x.to_bytes() == whole.ledger.to_bytes() for x in ring.run(since))


def test_resume_with_a_ledger_file_that_went_on(tmp_path):
    """Checkpoint at step 13, killed at step 22: the decisions of steps 15 and 20 are on disk."""
    path = tmp_path / "ledger.json"
    whole, first = (make(update_every=5, lag_steps=2) for _ in range(2))
    train(whole, 0, 30)
    first.ledger.attach(path)
    train(first, 0, 13)
    state, first_weights = first.state_dict(), first.ledger.weights_at(40 * BATCH).tolist()
    train(first, 13, 9)
    for attempt in range(2):  # a second crash at once
        ledger = mixcore.Ledger.load(path)
        ledger.attach(path)
        second = mixcore.Controller(ledger, Hedge(ledger.domains), 5, lag_steps=2)
        second.load_state_dict(state)
        assert ledger.decisions[-1].reason.startswith("resumed from step 13: what was decided")
        assert len(ledger.decisions) == 6 + attempt
        assert ledger.weights_at(40 * BATCH).tolist() == first_weights
    train(second, 13, 17)
    assert second.ledger.digest == whole.ledger.digest
    want, got = (mixcore.Sampler(c.ledger).picks(0, 30 * BATCH) for c in (whole, second))
    assert np.array_equal(want.domain, got.domain)
    assert np.array_equal(want.sample, got.sample)
    assert mixcore.Ledger.load(path).digest == whole.ledger.digest


def test_what_does_not_fit_is_refused():
    controller = make(update_every=5, lag_steps=2)
    train(controller, 0, 7)
    state = controller.state_dict()
    cases = [
        ({"format": "x"}, ValueError, "state must have the format 'mixcore.controller/1', got 'x'"),
        ({"lag_steps": 3}, ValueError, "lag_steps=3, this controller 2: give the controller lag"),
        ({"update_every": 6}, ValueError, "update_every=6"),
        ({"accumulated": [[1] * 5]}, ValueError, "must have the shape"),
        ({"position": -4}, ValueError, r"state\['position'\] must be in"),
        ({"ledger": {"decisions": 9, "digest": "ab"}}, mixcore.LedgerError, "has 2 decisions, the"),
        ({"ledger": {"decisions": 2, "digest": "ab"}}, mixcore.LedgerError, "of another run"),
        ({"method": {}}, ValueError, r"state\['format'\] must be"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            controller.load_state_dict(state | change)
    with pytest.raises(ValueError, match="state must have the format"):
        controller.load_state_dict(3)
    del state["since"]
    with pytest.raises(ValueError, match=r"state lacks \['since'\]"):
        controller.load_state_dict(state)


def test_what_cannot_be_undone_is_refused():
    controller = make(update_every=5, lag_steps=2)
    train(controller, 0, 7)
    state = controller.state_dict()
    controller.ledger.append(90 * BATCH, batch_size=2 * BATCH)
    with pytest.raises(mixcore.LedgerError, match="decided more than new weights"):
        controller.load_state_dict(state)
