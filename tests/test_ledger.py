import pickle

import numpy as np
import pytest
from conftest import make_ledger

import mixcore
from mixcore import _core, reference


def rows(ledger, start=0, count=5_000):
    p = mixcore.Sampler(ledger).picks(start, count)
    return np.stack([p.domain, p.draw, p.epoch, p.sample])


def state(ledger):
    return ledger.to_bytes(), ledger.digest, ledger.domains, ledger.fetched, rows(ledger).tobytes()


def test_append_rounds_up_to_a_batch_boundary():
    ledger = make_ledger(2, batch_size=512)
    before = rows(ledger, 0, 51_200)
    assert ledger.append(51_000, [0.5, 0.5], reason="odm step 100") == 51_200
    assert ledger.append(51_200, [0.4, 0.6]) == 51_200  # the same boundary: the later one counts
    assert ledger.append(51_201, batch_size=1_024) == 51_712
    assert ledger.append(51_713, [0.3, 0.7]) == 52_736
    assert np.array_equal(rows(ledger, 0, 51_200), before)
    assert ledger.weights_at(51_199) == pytest.approx([1 / 3, 2 / 3])
    assert ledger.weights_at(51_200) == pytest.approx([0.4, 0.6])
    assert [p.batch_size for p in ledger.pieces] == [512, 512, 1_024, 1_024]


def test_steps_and_positions():
    ledger = make_ledger(2, batch_size=100)
    ledger.append(1_000, batch_size=30)
    ledger.append(1_090, batch_size=7)
    starts = [ledger.position_of_step(s) for s in range(20)]
    assert starts == [*range(0, 1_000, 100), 1_000, 1_030, 1_060, *range(1_090, 1_139, 7)]
    assert [ledger.step_of_position(p) for p in starts] == list(range(20))
    assert ledger.step_of_position(1_089) == 12
    assert ledger.batch_at(1_089) == (1_060, 30)


def test_adding_and_pausing_a_domain():
    ledger = make_ledger(2, [0.5, 0.5], batch_size=64)
    at = ledger.append(
        640, {"d0": 0.4, "d1": 0.3, "math": 0.3}, add=[mixcore.Domain("math", 9_000)]
    )
    off = ledger.append(6_400, {"d0": 0, "d1": 1, "math": 1})
    on = ledger.append(12_800, {"d0": 1, "d1": 1, "math": 1})
    sampler = mixcore.Sampler(ledger)
    assert sampler.counts(at)[2] == 0
    assert sampler.counts(off)[0] == sampler.counts(on)[0] > 0
    p = sampler.picks(0, 19_200)
    for d in range(3):  # a pause keeps the place: the next draw goes on where it stopped
        assert np.array_equal(np.sort(p.draw[p.domain == d]), np.arange(sampler.counts(19_200)[d]))


def test_the_past_does_not_depend_on_the_future():
    plain = make_ledger(3, batch_size=32)
    grown = make_ledger(3, batch_size=32)
    grown.append(3_200, np.ones(4), add=[mixcore.Domain("x", 5)], batch_size=48)
    assert np.array_equal(rows(plain, 0, 3_200), rows(grown, 0, 3_200))
    assert plain.digest_at(3_200) == grown.digest_at(3_200) == plain.digest
    assert grown.digest_at(3_201) == grown.digest != plain.digest


def test_digest_covers_what_decides_and_nothing_else():
    base = make_ledger(2, [0.5, 0.5], batch_size=8, seed=3)
    same = make_ledger(2, [7, 7], batch_size=8, seed=3)
    same_later = make_ledger(2, [7, 7], batch_size=8, seed=3)
    base.append(80, [1, 2], reason="one", author="me")
    same.append(75, [0.5, 1.0], reason="another", author="you")
    assert base.digest == same.digest
    assert same_later.digest == base.digest_at(80)
    others = [
        make_ledger(2, [0.5, 0.5], batch_size=8, seed=4),
        make_ledger(2, [0.5, 0.5], batch_size=9, seed=3),
        make_ledger(2, [0.5, 0.5 + 1e-15], batch_size=8, seed=3),
        make_ledger(2, [0.5, 0.5], batch_size=8, seed=3, size=1_001),
        make_ledger(2, [0.5, 0.5], batch_size=8, seed=3, order="megatron"),
        make_ledger(2, [0.5, 0.5], batch_size=8, seed=3, on_cap="stop"),
        mixcore.Ledger(
            [mixcore.Domain("d0", 1_000), mixcore.Domain("d2", 1_000)], [1, 1], batch_size=8, seed=3
        ),
    ]
    digests = {o.digest for o in others} | {base.digest_at(80)}
    assert len(digests) == len(others) + 1


def test_digest_covers_caps_as_they_are_kept():
    def digest(epochs):
        return mixcore.Ledger([mixcore.Domain("a", 10, epochs)], [1], batch_size=8).digest

    assert digest(4) == digest(4.0) == digest(4.04)  # 40 samples
    assert len({digest(None), digest(4), digest(4.1)}) == 3


def test_digest_covers_domains_whose_decision_was_replaced():
    digests = set()
    for size in (5, 6):
        ledger = make_ledger(1, batch_size=8)
        ledger.append(80, [1, 1], add=[mixcore.Domain("x", size)])
        ledger.append(80, [2, 1])  # the same boundary: takes the place of the piece before
        digests.add(ledger.digest)
    assert len(digests) == 2


def test_a_later_dated_decision_stands_in_the_way():
    ledger = make_ledger(2, batch_size=10)
    ledger.append(1_000, [1, 0])
    before = state(ledger)
    message = "change at position 500 is dated before the one already decided for position 1000"
    with pytest.raises(mixcore.LedgerError, match=message):
        ledger.append(500, [0, 1])
    assert state(ledger) == before
    ledger.append(500, [0, 1], replace_future=True, reason="changed my mind")
    assert ledger.weights_at(2_000).tolist() == [0, 1]
    again = mixcore.Ledger.from_bytes(ledger.to_bytes())
    assert again.digest == ledger.digest
    assert again.decisions[-1].replace_future
    assert again.decisions[-1].reason == "changed my mind"
    other = make_ledger(2, batch_size=10)
    other.append(500, [0, 1])
    assert np.array_equal(rows(other), rows(ledger))


def test_no_change_where_samples_were_fetched():
    ledger = make_ledger(2, batch_size=10)
    ledger.mark_fetched(105)
    ledger.mark_fetched(50)
    before = state(ledger)
    message = "change at position 100 comes too late: positions below 105 have already been fetched"
    with pytest.raises(mixcore.LedgerError, match=message):
        ledger.append(95, [1, 1])
    assert state(ledger) == before
    assert ledger.append(101, [1, 1]) == 110


def test_megatron_weights_are_normalised_twice_and_kept_as_hex():
    raw = np.random.default_rng(0).random(37) * 100
    once = raw / np.sum(raw)
    want = once / np.sum(once)
    ledger = make_ledger(37, raw, order="megatron")
    assert np.array_equal(ledger.pieces[0].floats, want)
    assert want[0].item().hex() in ledger.to_bytes().decode()
    domain, draw = mixcore.build_blending_indices(want, 5_000)
    p = mixcore.Sampler(ledger).picks(0, 5_000)
    assert np.array_equal(p.domain, domain)
    assert np.array_equal(p.draw, draw)


def test_megatron_refuses_weights_whose_sum_is_infinite():
    with pytest.raises(
        ValueError, match=r"weights must have a finite sum .* got \[1e\+308, 1e\+308\]"
    ):
        make_ledger(2, [1e308, 1e308], order="megatron")
    assert make_ledger(2, [1e308, 1e308]).weights_at(0).tolist() == [0.5, 0.5]


def test_megatron_pauses_a_domain_that_the_greedy_rule_would_draw():
    ledger = make_ledger(3, [0.0, 1.0, 0.0], order="megatron")
    assert set(mixcore.Sampler(ledger).picks(0, 100).domain) == {1}


def test_order_random_follows_the_shares():
    ledger = make_ledger(3, [0.5, 0.3, 0.2], order="random")
    counts = mixcore.Sampler(ledger).counts(100_000)
    sigma = np.sqrt(100_000 * np.array([0.25, 0.21, 0.16]))
    assert (np.abs(counts - [50_000, 30_000, 20_000]) < 6 * sigma).all()


def test_pickle():
    ledger = make_ledger(3)
    ledger.append(640, [1, 1, 1], author="me")
    ledger.mark_fetched(700)
    copy = pickle.loads(pickle.dumps(ledger))
    assert state(copy) == state(ledger)


def test_many_decisions_stay_cheap():
    ledger = make_ledger(8, batch_size=4)
    rng = np.random.default_rng(0)
    for i in range(3_000):
        ledger.append(i * 40, rng.random(8))
    assert mixcore.Ledger.from_bytes(ledger.to_bytes()).digest == ledger.digest
    assert ledger.memory_bytes < 3_000 * 8 * 150


def test_memory_does_not_grow_with_the_run():
    ledger = make_ledger(50)
    sampler = mixcore.Sampler(ledger)
    sampler.picks(0, 10)
    held = ledger.memory_bytes
    sampler.picks(0, 2_000_000, fields=("draw",))
    sampler.at([2**48 - 1])
    assert ledger.memory_bytes == held


def test_too_many_shares(monkeypatch):
    monkeypatch.setattr("mixcore.ledger.MAX_SHARES", 12)
    ledger = make_ledger(4, batch_size=8)
    ledger.append(80, [1, 1, 1, 1])
    ledger.append(160, [1, 1, 1, 1])
    before = state(ledger)
    with pytest.raises(mixcore.LedgerError, match="at most 12 shares in all, got 16"):
        ledger.append(240, [1, 1, 1, 1])
    assert state(ledger) == before


def test_shares_that_were_replaced_do_not_count(monkeypatch):
    monkeypatch.setattr("mixcore.ledger.MAX_SHARES", 8)
    ledger = make_ledger(2, batch_size=8)
    for i in range(10):
        ledger.append(80, [1, 1 + i])
        ledger.append(40, [1, 1], schedule=[(160, [1, i])], replace_future=True)
        ledger.append(80, [1, 2], replace_future=True)
    ledger.append(88, [1, 1])
    with pytest.raises(mixcore.LedgerError, match="at most 8 shares in all, got 10"):
        ledger.append(96, [1, 1])


def test_integers_of_numpy_are_stored_as_integers(tmp_path):
    i = np.int64
    plain, numpy = (
        mixcore.Ledger(
            [mixcore.Domain("a", kind(100), max_epochs=kind(90)), mixcore.Domain("b", kind(50))],
            [1, 1],
            batch_size=kind(8),
            seed=kind(3),
            tokens_per_sample=kind(4),
        )
        for kind in (int, i)
    )
    linear = mixcore.linear([(i(160), [1, 2]), (i(320), [2, 1])], every=i(5))
    steps = mixcore.piecewise([(i(1_600), [1, 1], i(16))], unit="tokens")
    for ledger in (plain, numpy):
        ledger.append(i(80), batch_size=i(16), schedule=linear)
        ledger.append(i(400), schedule=steps)
        ledger._append_shares(i(480), ledger.pieces[0].shares)
        assert type(ledger.batch_at(i(90))[0]) is int
    assert numpy.to_bytes() == plain.to_bytes()
    assert numpy.digest == plain.digest
    numpy.save(tmp_path / "ledger.json")
    assert mixcore.Ledger.load(tmp_path / "ledger.json").digest == plain.digest


def test_native_plan_agrees_with_the_twin_through_the_ledger():
    ledger = make_ledger(4, [1, 2, 3, 4], batch_size=20, seed=9, size=70)
    ledger.append(1_000, [4, 3, 2, 1])
    specs = [reference.DomainSpec(d.key(9), d.size, d.cap) for d in ledger.domains]
    pieces = [reference.PieceSpec(p.start, p.batch_size, p.shares.tolist()) for p in ledger.pieces]
    key = mixcore.domains.stream_key(9, "order", "balanced")
    want = reference.Run("balanced", key, specs, pieces).picks(2_000)
    assert [tuple(c) for c in rows(ledger, 0, 2_000).T.tolist()] == want


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be in .*, got 0"),
        ({"batch_size": -1}, ValueError, "batch_size must be in .*, got -1"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer, got 2.0"),
        ({"batch_size": 2**31}, ValueError, "batch_size must be in .*, got 2147483648"),
        ({"seed": "x"}, TypeError, "seed must be an integer, got 'x'"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"order": "greedy"}, ValueError, "order must be one of .*, got 'greedy'"),
        ({"on_cap": "ignore"}, ValueError, "on_cap must be one of .*, got 'ignore'"),
        ({"tokens_per_sample": 0}, ValueError, "tokens_per_sample must be in .*, got 0"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message) as caught:
        make_ledger(2, **options)
    assert isinstance(caught.value, mixcore.MixcoreError)


@pytest.mark.parametrize(
    ("domains", "error", "message"),
    [
        ([], ValueError, "domains must not be empty"),
        ([mixcore.Domain("a", 1)] * 2, ValueError, "domains has the name 'a' twice"),
        (["a"], TypeError, "domains must be a sequence of Domain, found 'a'"),
        (mixcore.Domain("a", 1), TypeError, "domains must be a sequence of Domain"),
        (None, TypeError, "domains must be a sequence of Domain, got None"),
    ],
)
def test_bad_domains(domains, error, message):
    with pytest.raises(error, match=message):
        mixcore.Ledger(domains, [1], batch_size=8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((-1, [1, 1]), {}, ValueError, r"position must be in .*, got -1"),
        ((2**48, [1, 1]), {}, ValueError, "position must be in"),
        ((2**48 - 3, [1, 1]), {}, ValueError, "position must be in .*, got 281474976710656"),
        ((1.5, [1, 1]), {}, TypeError, "position must be an integer, got 1.5"),
        ((80,), {}, ValueError, "append needs weights, batch_size or a schedule"),
        ((80,), {"batch_size": 0}, ValueError, "batch_size must be in .*, got 0"),
        ((80, [1]), {}, ValueError, r"weights must have one entry a domain \(2\), got 1"),
        ((80, [1, -1]), {}, ValueError, r"weights\['d1'\] must be finite and >= 0, got -1.0"),
        ((80, {"d0": 1, "dx": 1}), {}, ValueError, r"unknown domains \['dx'\]"),
        ((80, [1, 1]), {"add": [mixcore.Domain("x", 1)]}, ValueError, r"one entry a domain \(3\)"),
        ((80, [1, 1, 1]), {"add": [mixcore.Domain("d0", 1)]}, ValueError, "name 'd0' twice"),
        ((80,), {"add": [mixcore.Domain("x", 1)], "batch_size": 4}, ValueError, "weights must be"),
        ((80, [1, 1]), {"reason": 7}, TypeError, "reason must be a str, got 7"),
        ((80, [1, 1]), {"schedule": 5}, TypeError, "schedule must be a Schedule, .*, got 5"),
        ((80, [1, 1]), {"schedule": [(16, [1, 1])]}, ValueError, "at or after position 80"),
        ((80,), {"schedule": [(2**48 - 1, [1, 3])]}, ValueError, r"points\[0\].at.*must be in"),
        ((80, [1, 1]), {"reason": "\udcff"}, ValueError, "reason must be encodable as UTF-8"),
        ((80, [1, 1]), {"author": "\ud800"}, ValueError, "author must be encodable as UTF-8"),
    ],
)
def test_bad_append_leaves_the_ledger_as_it_was(tmp_path, arguments, options, error, message):
    path = tmp_path / "ledger.json"
    ledger = make_ledger(2, batch_size=8)
    ledger.attach(path)
    before, file = state(ledger), path.read_bytes()
    with pytest.raises(error, match=message) as caught:
        ledger.append(*arguments, **options)
    assert isinstance(caught.value, mixcore.MixcoreError)
    assert state(ledger) == before
    assert path.read_bytes() == file
    ledger.append(80, [1, 2])
    assert state(mixcore.Ledger.load(path)) == state(ledger)


LAST = 2**48 - 1


@pytest.mark.parametrize(
    "schedule",
    [
        [(LAST, [1, 3])],
        mixcore.linear([(80, [1, 3]), (LAST, [3, 1])], every=2**31 - 1),
        [(80, None, 2**31 - 1), (LAST, [1, 3])],
    ],
)
def test_a_schedule_past_the_last_position_is_refused_by_all(schedule):
    message = r"schedule.points\[\d\].at, rounded up to a batch boundary, must be in .*, got 2814"
    with pytest.raises(ValueError, match=message):
        make_ledger(2, batch_size=8, schedule=schedule)
    ledger = make_ledger(2, batch_size=8)
    with pytest.raises(ValueError, match=message):
        ledger.append(80, schedule=schedule)


def test_the_binding_checks_its_own_arguments():
    plan = _core.Plan("balanced", 1, "redistribute")
    plan.add_domain("a", 1, 10, -1)
    shares = np.array([1 << 62], np.uint64)
    with pytest.raises(TypeError, match="shares must have dtype uint64, got int64"):
        plan.append(0, 1, shares.astype(np.int64), None)
    with pytest.raises(ValueError, match=r"shares must sum to 2\^62"):
        plan.append(0, 1, shares - np.uint64(1), None)
    with pytest.raises(ValueError, match=r"shares must have one entry a domain \(1\), got 2"):
        plan.append(0, 1, np.array([1 << 61, 1 << 61], np.uint64), None)
    with pytest.raises(mixcore.LedgerError, match="the plan has no piece yet"):
        plan.picks(0, 1, 1, 15)
    with pytest.raises(ValueError, match="order must be"):
        _core.Plan("other", 1, "stop")


@pytest.mark.parametrize("order", ["balanced", "megatron", "random"])
def test_shares_of_another_rank_are_taken_as_they_are(order):
    """The path of the controller: integers (and, for order megatron, floats) from one rank."""
    mine, theirs = (make_ledger(3, order=order) for _ in range(2))
    mine.append(100, [0.2, 0.2, 0.6], reason="r", author="a")
    d = mine.decisions[-1]
    assert theirs._append_shares(100, d.shares, d.floats, reason="r", author="a") == 128
    assert theirs.to_bytes() == mine.to_bytes()
    assert theirs.digest == mine.digest


@pytest.mark.parametrize(
    ("shares", "error", "message"),
    [
        ([1 << 62, 0, 0], TypeError, "shares must be a uint64 array"),
        (np.array([1 << 62, 0, 0]), TypeError, "shares must be a uint64 array"),
        (np.array([1 << 62, 0], np.uint64), ValueError, "shares must be 3 integers"),
        (np.array([1 << 62, 1, 0], np.uint64), ValueError, r"sum to 2\^62"),
        (np.array([1 << 62, 1 << 63, 1 << 63], np.uint64), ValueError, r"sum to 2\^62"),
    ],
)
def test_bad_shares(shares, error, message):
    ledger = make_ledger(3)
    with pytest.raises(error, match=message):
        ledger._append_shares(64, shares)
    with pytest.raises(ValueError, match="floats do not fit order 'balanced'"):
        ledger._append_shares(64, np.array([1 << 62, 0, 0], np.uint64), np.ones(3) / 3)
    ledger.mark_fetched(128)
    with pytest.raises(mixcore.LedgerError, match="comes too late"):
        ledger._append_shares(64, np.array([1 << 62, 0, 0], np.uint64))
    assert len(ledger.decisions) == 1
