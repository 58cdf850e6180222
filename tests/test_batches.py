"""MixBatchSampler without any loader: slices, live decisions, ends, states, bad input."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcore import CapError, Domain, Ledger, LedgerError, MixBatchSampler, Sampler, piecewise
from mixcore.batches import Key

ORDERS = ("balanced", "megatron", "random")


def make(batch_size=16, order="balanced", weights=(0.5, 0.3, 0.2), **options):
    domains = [Domain("web", 70), Domain("code", 33), Domain("open", None)]
    return Ledger(domains, weights, batch_size=batch_size, seed=5, order=order, **options)


def expected(ledger, start, stop):
    """The keys of positions start to stop - 1, from the ledger alone."""
    p = Sampler(ledger).picks(start, stop - start)
    columns = (p.domain, p.draw, p.epoch, p.sample)
    return [Key(start + i, *(int(c[i]) for c in columns)) for i in range(stop - start)]


def flat(batches):
    return [key for batch in batches for key in batch]


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def ranks(ledger, micro, world, **options):
    return [
        MixBatchSampler(ledger, micro, rank=r, world_size=world, **options) for r in range(world)
    ]


# Slices


def test_slices_are_megatrons():
    ledger = make(batch_size=8)
    first, second = ranks(ledger, 2, 2, end=16)
    positions = [[key.position for key in batch] for batch in first]
    assert positions == [[0, 1], [4, 5], [8, 9], [12, 13]]
    positions = [[key.position for key in batch] for batch in second]
    assert positions == [[2, 3], [6, 7], [10, 11], [14, 15]]


@pytest.mark.parametrize("order", ORDERS)
def test_keys_are_the_samplers_answers(order):
    ledger = make(order=order)
    batches = list(MixBatchSampler(ledger, 4, end=320))
    assert flat(batches) == expected(ledger, 0, 320)
    assert all(type(x) is int for key in batches[0] for x in key)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_ranks_share_every_global_batch(world, micro):
    ledger = make(schedule=piecewise([(64, None, 32), (160, [1, 1, 0], 48)]))
    iterators = [iter(s) for s in ranks(ledger, micro, world)]
    position = 0
    for _ in range(8):
        first, size = ledger.batch_at(position)
        assert first == position
        parts = [flat(take(it, size // (micro * world))) for it in iterators]
        assert sorted(flat(parts)) == expected(ledger, first, first + size)
        assert {len(part) for part in parts} == {size // world}
        position += size
    assert position == 16 * 4 + 32 * 3 + 48


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_history_joins_to_the_uninterrupted_run(data):
    """Decisions, restarts and new shapes at random places: nothing lost, nothing repeated."""
    order = data.draw(st.sampled_from(ORDERS))
    ledger, got, position, state = make(batch_size=24, order=order), [], 0, None
    for _ in range(data.draw(st.integers(1, 4))):
        world = data.draw(st.sampled_from([1, 2, 3, 4]))
        micro = data.draw(st.sampled_from([1, 2, 3] if world != 3 else [1, 2, 4]))
        samplers = ranks(ledger, micro, world)
        for sampler in samplers:
            if state:
                sampler.load_state_dict(state)
        iterators = [iter(s) for s in samplers]
        micros_of_batch = 24 // (micro * world)
        for _ in range(data.draw(st.integers(1, 4)) * micros_of_batch):
            got += sorted(flat(next(it) for it in iterators))
            position += micro * world
            if data.draw(st.booleans()):
                weights = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3))
                ledger.append(ledger.fetched, weights)
        saved = data.draw(st.sampled_from([None, position - 24]))
        state = json.loads(json.dumps(samplers[0].state_dict(saved)))
        position = state["position"]
        del got[position:]
        if data.draw(st.booleans()):
            ledger = Ledger.from_bytes(ledger.to_bytes())
    assert got == expected(ledger, 0, position)


# Decisions while it runs


@pytest.mark.parametrize("order", ORDERS)
def test_a_change_shows_at_its_position_and_nowhere_else(order):
    ledger = make(order=order)
    before = Ledger.from_bytes(ledger.to_bytes())
    samplers = ranks(ledger, 2, 2)
    iterators = [iter(s) for s in samplers]
    queues = [take(iterators[0], 9), take(iterators[1], 3)]  # one rank is further ahead
    assert ledger.fetched == 48
    with pytest.raises(LedgerError, match="below 48 have already been fetched"):
        ledger.append(32, [0, 0, 1])
    assert ledger.append(33, [0, 0, 1]) == 48
    queues[0] += take(iterators[0], 11)
    queues[1] += take(iterators[1], 17)
    keys = sorted(flat(queues[0] + queues[1]))
    assert keys == expected(ledger, 0, 80)
    assert keys[:48] == expected(before, 0, 48)
    assert all(key.domain == 2 for key in keys[48:])
    assert keys[48:] != expected(before, 48, 80)


def test_handing_out_marks_the_whole_global_batch():
    ledger = make()
    sampler = MixBatchSampler(ledger, 2, rank=3, world_size=4)
    iterator = iter(sampler)
    assert ledger.fetched == 0
    next(iterator)
    assert ledger.fetched == 16
    next(iterator)
    assert ledger.fetched == 16
    next(iterator)
    assert ledger.fetched == 32


def test_restoring_marks_what_was_consumed():
    state = MixBatchSampler(make(), 4, position=32).state_dict()
    ledger = make()
    MixBatchSampler(ledger, 4).load_state_dict(state)
    with pytest.raises(LedgerError, match="fetched"):
        ledger.append(16, [1, 1, 1])
    assert ledger.append(32, [1, 1, 1]) == 32
    MixBatchSampler(ledger, 4, position=36)
    assert ledger.fetched == 48


def test_a_new_domain_is_drawn_from_its_position_on():
    ledger = make()
    iterator = iter(MixBatchSampler(ledger, 16))
    next(iterator)
    ledger.append(32, [1, 1, 1, 5], add=[Domain("math", 9)])
    assert max(key.domain for key in next(iterator)) < 3
    assert max(key.domain for key in next(iterator)) == 3


def test_a_batch_size_that_does_not_divide_is_refused_where_it_is_seen():
    with pytest.raises(ValueError, match=r"3 \* 2 = 6 for the batch size 16 in force from pos.* 0"):
        MixBatchSampler(make(), 3, world_size=2)
    ledger = make(schedule=piecewise([(64, None, 20)]))
    with pytest.raises(ValueError, match="batch size 20 in force from position 64 on"):
        MixBatchSampler(ledger, 8)
    assert len(list(MixBatchSampler(ledger, 8, end=64))) == 8  # not reached
    MixBatchSampler(ledger, 2, world_size=2)

    ledger = make()
    sampler = MixBatchSampler(ledger, 8)
    iterator = iter(sampler)
    next(iterator)
    ledger.append(160, batch_size=12)
    for _ in range(2):
        with pytest.raises(ValueError, match="batch size 12 in force from position 160 on"):
            next(iterator)
    assert sampler.position == 8
    ledger.append(160, batch_size=24)
    assert [key.position for key in next(iterator)] == list(range(8, 16))
    with pytest.raises(ValueError, match="batch size 24"):
        MixBatchSampler(ledger, 16)


# Ends


@pytest.mark.parametrize(("end", "batches"), [(0, 0), (15, 0), (16, 4), (47, 8), (48, 12)])
def test_end_is_the_last_full_batch(end, batches):
    ledger = make()
    assert len(list(MixBatchSampler(ledger, 4, end=end))) == batches
    assert ledger.fetched == batches * 4


def capped(on_cap):
    domains = [Domain("a", 10, max_epochs=1), Domain("b", 35, max_epochs=1)]
    return Ledger(domains, [0.5, 0.5], batch_size=8, on_cap=on_cap)


@pytest.mark.parametrize(("on_cap", "position"), [("stop", 16), ("redistribute", 40)])
def test_the_run_ends_where_the_ledger_says(on_cap, position):
    ledger = capped(on_cap)
    sampler = MixBatchSampler(ledger, 2, world_size=2)
    iterator = iter(sampler)
    assert len(list(iterator)) == position // 4
    assert next(iterator, None) is None
    assert list(sampler) == []
    assert sampler.position == ledger.fetched == position
    resumed = MixBatchSampler(capped(on_cap), 8)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == []


def test_a_run_that_ended_goes_on_with_a_new_domain():
    ledger = capped("redistribute")
    sampler = MixBatchSampler(ledger, 8)
    first = iter(sampler)
    assert len(list(first)) == 5
    ledger.append(40, [1, 1, 1], add=[Domain("c", 16, max_epochs=1)])
    assert list(first) == []  # an iterator that has ended stays so
    assert flat(sampler) == expected(ledger, 40, 56)


def test_on_cap_error_raises():
    ledger = capped("error")
    iterator = iter(MixBatchSampler(ledger, 8))
    take(iterator, 2)
    with pytest.raises(CapError, match="ends at position 16: domain 'a'"):
        next(iterator)
    assert ledger.fetched == 16
    assert len(list(MixBatchSampler(ledger, 8, end=16))) == 2


# One pass at a time


def test_a_second_pass_needs_a_position():
    ledger = make()
    sampler = MixBatchSampler(ledger, 4)
    unused, first, second = iter(sampler), iter(sampler), iter(sampler)
    take(first, 3)
    for other in (unused, second):
        with pytest.raises(LedgerError, match=r"up to position 12: call seek"):
            next(other)
    sampler.seek(8)
    with pytest.raises(LedgerError, match="call seek"):
        next(first)
    assert flat(take(iter(sampler), 2)) == expected(ledger, 8, 16)


# States


def test_the_state_is_small_and_plain():
    ledger = make()
    sampler = MixBatchSampler(ledger, 2, world_size=4, rank=1)
    take(iter(sampler), 6)
    assert sampler.state_dict() == {
        "format": "mixcore.batches/1",
        "position": 48,
        "digest": ledger.digest_at(48),
        "micro_batch_size": 2,
        "world_size": 4,
    }
    assert sampler.state_dict(40)["position"] == 40
    assert sampler.state_dict(40) == json.loads(json.dumps(sampler.state_dict(40)))


def test_a_state_is_the_same_on_every_rank():
    states = []
    for sampler in ranks(make(), 2, 4):
        take(iter(sampler), 7)
        states.append(sampler.state_dict())
    assert all(state == states[0] for state in states)


def test_inside_a_global_batch_another_shape_fits_if_it_comes_out_even():
    ledger = make()
    sampler = MixBatchSampler(ledger, 2, world_size=2)
    take(iter(sampler), 6)
    state = sampler.state_dict()
    assert state["position"] == 24
    for micro, world in [(4, 2), (1, 1), (8, 1), (1, 4)]:
        keys = []
        for other in ranks(ledger, micro, world, end=48):
            other.load_state_dict(state)
            keys += flat(other)
        assert sorted(keys) == expected(ledger, 24, 48)
    other = MixBatchSampler(ledger, 4, world_size=4)
    with pytest.raises(ValueError, match=r"24: that is 8 samples into .* 4 \* 4 does not divide"):
        other.load_state_dict(state)
    assert other.position == 0


def test_a_state_of_another_ledger_is_refused():
    ledger = make()
    sampler = MixBatchSampler(ledger, 4)
    take(iter(sampler), 8)
    state = sampler.state_dict()
    others = [make(weights=(0.5, 0.2, 0.3)), make(order="random"), make(batch_size=32)]
    changed = make()
    changed.append(16, [1, 0, 0])
    for other in [*others, changed]:
        fresh = MixBatchSampler(other, 4)
        with pytest.raises(LedgerError) as e:
            fresh.load_state_dict(state)
        assert state["digest"] in str(e.value)
        assert other.digest_at(32) in str(e.value)
        assert (fresh.position, other.fetched) == (0, 0)
    later = make()
    later.append(32, [1, 0, 0])  # not consumed yet: no concern of the state's
    MixBatchSampler(later, 4).load_state_dict(state)


@pytest.mark.parametrize(
    ("state", "error", "match"),
    [
        (7, TypeError, "state must be a mapping, got 7"),
        ({}, ValueError, "mixcore.batches/1"),
        ({"format": "mixcore.batches/9"}, ValueError, "got 'mixcore.batches/9'"),
        ({"format": "mixcore.batches/1", "position": 0}, ValueError, r"lacks \['digest'"),
        ({"_index_sampler_state": None}, ValueError, "got None"),
        ({"_snapshot": {}}, TypeError, "_steps_since_snapshot"),
        ({"_snapshot": {}, "_steps_since_snapshot": 0}, ValueError, "got None"),
    ],
)
def test_bad_states(state, error, match):
    sampler = MixBatchSampler(make(), 4, position=8)
    with pytest.raises(error, match=match):
        sampler.load_state_dict(state)
    assert sampler.position == 8


@pytest.mark.parametrize("key", ["position", "micro_batch_size", "world_size"])
@pytest.mark.parametrize("value", [-1, 1.5, "4", None, 1 << 60])
def test_bad_values_in_a_state(key, value):
    sampler = MixBatchSampler(make(), 4, position=8)
    state = {**sampler.state_dict(), key: value}
    with pytest.raises((ValueError, TypeError), match=key):
        sampler.load_state_dict(state)
    assert sampler.position == 8


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"ledger": None}, TypeError, "ledger must be a mixcore.Ledger"),
        ({"micro_batch_size": 0}, ValueError, r"micro_batch_size must be in .* got 0"),
        ({"micro_batch_size": 2.0}, TypeError, "micro_batch_size must be an integer, got 2.0"),
        ({"world_size": 0}, ValueError, "world_size must be in .* got 0"),
        ({"rank": 1}, ValueError, r"rank must be in \[0, 0\], got 1"),
        ({"rank": -1}, ValueError, "rank must be in .* got -1"),
        ({"rank": True}, TypeError, "rank must be an integer, got True"),
        ({"position": -16}, ValueError, "position must be in .* got -16"),
        ({"position": 1 << 48}, ValueError, "position must be in"),
        ({"position": 6}, ValueError, "got 6: that is 6 samples into the global batch of 16 at 0"),
        ({"end": -1}, ValueError, "end must be in .* got -1"),
        ({"end": "many"}, TypeError, "end must be an integer, got 'many'"),
    ],
)
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        MixBatchSampler(**{"ledger": make(), "micro_batch_size": 4, **options})


@pytest.mark.parametrize("position", [-1, 4, 6, 2.5, "8"])
def test_bad_positions(position):
    sampler = MixBatchSampler(make(), 8)
    next(iter(sampler))
    for call in (sampler.state_dict, sampler.seek):
        with pytest.raises((ValueError, TypeError), match="position must be"):
            call(position)
    assert sampler.position == 8


def test_a_state_of_what_was_not_handed_out_is_refused():
    sampler = MixBatchSampler(make(), 8)
    next(iter(sampler))
    with pytest.raises(ValueError, match=r"position must be in \[0, 8\], got 16"):
        sampler.state_dict(16)


def test_positions_up_to_the_limit():
    top = 1 << 48
    sampler = MixBatchSampler(make(), 16, position=top - 32)
    assert flat(sampler) == expected(sampler.ledger, top - 32, top)
    assert np.array(sampler.position) == top
