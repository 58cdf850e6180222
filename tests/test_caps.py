import numpy as np
import pytest

import mixcore

ORDERS = ("balanced", "random")


def capped(
    on_cap="redistribute", order="balanced", batch_size=64, weights=(0.5, 0.3, 0.2), caps=(2, 1.5)
):
    domains = [
        mixcore.Domain("web", 10_000),
        mixcore.Domain("code", 500, max_epochs=caps[0]),
        mixcore.Domain("math", 400, max_epochs=caps[1]),
    ]
    return mixcore.Ledger(
        domains, weights, batch_size=batch_size, seed=1, order=order, on_cap=on_cap
    )


@pytest.mark.parametrize("order", ORDERS)
def test_redistribute_draws_exactly_the_cap_and_shares_out_the_rest(order):
    ledger = capped(order=order)
    sampler = mixcore.Sampler(ledger)
    p = sampler.picks(0, 64_000)
    for d, cap in ((1, 1_000), (2, 600)):
        assert np.array_equal(np.sort(p.draw[p.domain == d]), np.arange(cap))
        last = np.flatnonzero(p.domain == d).max()
        event = dict((name, at) for at, name in ledger.cap_events(64_000))[ledger.domains[d].name]
        assert last < event <= last + 1 + 64
    assert ledger.end(64_000) is None
    assert set(p.domain[-1_000:]) == {0}


def test_the_share_of_a_spent_domain_goes_to_the_others_in_proportion():
    ledger = capped(weights=(0.5, 0.1, 0.4), caps=(50, 0.5))  # math ends first, at 200 samples
    at = ledger.cap_events(10_000)[0][0]
    counts = mixcore.Sampler(ledger).counts
    span = 6_400
    drawn = counts(at + span) - counts(at)
    assert drawn == pytest.approx([span * 5 / 6, span / 6, 0], abs=2)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 4_096])
def test_the_mix_is_kept_through_caps(batch_size):
    ledger = capped(batch_size=batch_size)
    sampler = mixcore.Sampler(ledger)
    ends = [at for at, _ in ledger.cap_events(100_000)]
    for boundary in range(0, 60_000, batch_size * max(1, 1_000 // batch_size)):
        counts = sampler.counts(boundary)
        assert counts.sum() == boundary
        assert (counts[1:] <= [1_000, 600]).all()
        if boundary < min(ends) - batch_size:
            assert np.abs(counts - boundary * np.array([0.5, 0.3, 0.2])).max() <= 1.5


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("on_cap", ["stop", "error"])
def test_stop_and_error_end_the_run_at_the_last_full_batch(order, on_cap):
    ledger = capped(on_cap, order)
    end, name = ledger.end(10**6)
    free = mixcore.Sampler(capped("redistribute", order)).picks(0, end)
    sampler = mixcore.Sampler(ledger)
    p = sampler.picks(0, end)
    assert end % 64 == 0
    assert np.array_equal(p.domain, free.domain)  # nothing differs before the end
    counts = sampler.counts(end)
    assert (counts[1:] <= [1_000, 600]).all()
    spent = {"code": 1, "math": 2}[name]
    assert counts[spent] > {1: 1_000, 2: 600}[spent] - 64
    message = f"position {end} is beyond the end of the run at position {end}: domain '{name}'"
    for ask in (
        lambda: sampler.picks(end, 1),
        lambda: sampler.at([end]),
        lambda: sampler.counts(end + 1),
    ):
        with pytest.raises(mixcore.CapError, match=message):
            ask()
    with pytest.raises(mixcore.LedgerError):
        sampler.picks(0, 10**6)
    assert sampler.counts(end).sum() == end


def test_appending_at_the_end_lets_the_run_go_on():
    ledger = capped("stop")
    end, _ = ledger.end()
    with pytest.raises(
        mixcore.LedgerError, match=f"beyond the end of the run at {end}: domain 'math'"
    ):
        ledger.append(end + 64, [1, 0, 0])
    message = "position {} ask for domain 'math', which has reached its cap of 600 samples"
    for later in ({"weights": [1, 0, 1]}, {"batch_size": 8}):
        if mixcore.Sampler(ledger).counts(end)[2] == 600:
            with pytest.raises(mixcore.LedgerError, match=message.format(end)):
                ledger.append(end, **later)
    ledger.append(end, [1, 0, 0], reason="go on with web alone")
    assert ledger.end() is None
    assert set(mixcore.Sampler(ledger).picks(end, 500).domain) == {0}


def test_weights_for_used_up_domains_alone_are_refused():
    ledger = capped()
    at = max(at for at, _ in ledger.cap_events(64_000))
    digest = ledger.digest
    message = "domain 'code', which has reached its cap of 1000 samples"
    with pytest.raises(mixcore.LedgerError, match=message):
        ledger.append(at, [0, 1, 1])
    assert ledger.digest == digest
    ledger.append(at, [1, 1, 1])  # their shares go to web


def test_when_everything_is_spent_the_run_ends():
    domains = [mixcore.Domain(n, 100, max_epochs=1) for n in "abc"]
    ledger = mixcore.Ledger(domains, [1, 1, 1], batch_size=64)
    end, name = ledger.end()
    assert (end, name) == (256, "")  # 300 samples are 4 full batches
    counts = mixcore.Sampler(ledger).counts(end)
    assert counts.sum() == 256
    with pytest.raises(mixcore.CapError, match="every domain with a positive weight has reached"):
        mixcore.Sampler(ledger).picks(250, 7)
    ledger.append(128, np.ones(4), add=[mixcore.Domain("d", 10)])
    assert ledger.end() is None


def test_a_cap_holds_over_later_decisions():
    ledger = capped()
    for i in range(1, 60):
        ledger.append(i * 640, np.random.default_rng(i).dirichlet([1, 1, 1]))
    sampler = mixcore.Sampler(ledger)
    p = sampler.picks(0, 64_000)
    assert sampler.counts(64_000)[1:].tolist() == [1_000, 600]
    assert sorted(p.draw[p.domain == 1]) == list(range(1_000))


def test_many_domains_that_all_have_caps():
    rng = np.random.default_rng(0)
    domains = [mixcore.Domain(f"d{i}", int(rng.integers(5, 400)), max_epochs=1) for i in range(300)]
    domains.append(mixcore.Domain("rest", 10_000))
    ledger = mixcore.Ledger(domains, np.r_[rng.dirichlet(np.ones(300)), 1e-3], batch_size=128)
    total = sum(d.cap for d in domains[:-1])
    position = 128 * (300 * total // 128)  # the smallest weight is below 1e-5
    counts = mixcore.Sampler(ledger).counts(position)
    assert counts.sum() == position
    assert counts[:-1].tolist() == [d.cap for d in domains[:-1]]
    assert len(ledger.cap_events(position)) == 300


def test_order_megatron_refuses_caps():
    with pytest.raises(ValueError, match=r"order 'megatron' has no caps, but \['code', 'math'\]"):
        capped(order="megatron")
    ledger = mixcore.Ledger([mixcore.Domain("a", 10)], [1], batch_size=4, order="megatron")
    with pytest.raises(ValueError, match="order 'megatron' has no caps"):
        ledger.append(40, [1, 1], add=[mixcore.Domain("b", 10, max_epochs=2)])
    assert len(ledger.domains) == 1


def test_cap_events_do_not_depend_on_what_was_asked_before(tmp_path):
    def fresh():
        domains = [mixcore.Domain("a", 10**6)]
        domains += [mixcore.Domain(n, 5, max_epochs=1) for n in "bc"]
        return mixcore.Ledger(domains, [1, 1, 1], batch_size=1, order="random")

    ledger, want = fresh(), fresh().cap_events(300_000)
    assert len(want) == 2
    mixcore.Sampler(ledger).picks(0, 300_000)
    ledger.save(tmp_path / "l")
    assert mixcore.Ledger.load(tmp_path / "l").cap_events(300_000) == want
    ledger.append(want[0][0], [1, 1, 1])
    assert ledger.cap_events(300_000) == want


@pytest.mark.parametrize("order", ["balanced", "random", "megatron"])
def test_explain_does_not_depend_on_what_was_asked_before(order):
    def ends(ask_first):
        schedule = [(800, [1, 1]), (1_600, [1, 1]), (2_400, [1, 2])]
        domains = [mixcore.Domain("a", 100), mixcore.Domain("b", 50)]
        ledger = mixcore.Ledger(domains, [1, 1], batch_size=8, order=order, schedule=schedule)
        if ask_first:
            mixcore.Sampler(ledger).counts(10_000)
        return [(ledger.explain(p).start, ledger.explain(p).end) for p in range(0, 3_200, 400)]

    assert ends(True) == ends(False)
