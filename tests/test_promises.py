"""Promise 2 (nothing lost, nothing repeated) and promise 4 (the mix is kept), measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixcore
from mixcore import _core

TOTAL = float(1 << 62)
NUMS = (2, 3, 22, 257, 2048)


def weights_of(kind, num, rng):
    if kind == "dirichlet":
        return rng.dirichlet(np.ones(num))
    if kind == "sparse":
        return rng.dirichlet(np.full(num, 0.1)) + 1e-12
    if kind == "zipf":
        return rng.permutation(1 / np.arange(1.0, num + 1))
    if kind == "equal":
        return np.ones(num)
    if kind == "one big":
        return np.r_[1.0, np.full(num - 1, 1e-3)]
    if kind == "1e-7":
        return np.r_[rng.dirichlet(np.ones(num - 1)), 1e-7]
    if kind == "paused":
        return np.r_[1e-3, rng.dirichlet(np.ones(num - 1)) * (rng.random(num - 1) < 0.5)]
    assert kind == "one big, paused"
    return np.r_[1.0, np.full(num - 1, 1e-4) * (rng.random(num - 1) < 0.5)]


KINDS = ("dirichlet", "zipf", "equal", "one big", "1e-7")
CHANGING = (*KINDS, "sparse", "paused", "one big, paused")


def new_plan(num):
    plan = _core.Plan("balanced", 11, "redistribute")
    for d in range(num):
        plan.add_domain(str(d), d, 1_000, -1)
    return plan


def worst_deviation(num, kinds, batch, steps, hold=1, append_every=1, seed=0):
    """The largest |count - exact share| of any domain at any batch boundary of a history.

    Fresh weights every `hold` steps; the weights in force are appended every `append_every` steps.
    Exact: the deviation is summed in integers (units of 2^-62).
    """
    rng = np.random.default_rng(seed)
    plan, before = new_plan(num), np.zeros(num, np.int64)
    whole, part = np.zeros(num, np.int64), np.zeros(num)  # samples, and what rounding leaves
    worst = 0.0
    for i in range(steps):
        if i % hold == 0:
            shares = _core.shares(weights_of(kinds[i // hold % len(kinds)], num, rng))
        if i % append_every == 0 or i % hold == 0:
            plan.append(i * batch, batch, shares, None)
        counts = plan.counts((i + 1) * batch)
        assert (counts >= before).all()
        assert counts.sum() == (i + 1) * batch
        before = counts
        part += shares / TOTAL * batch
        whole += part.astype(np.int64)
        part -= part.astype(np.int64)
        worst = max(worst, float(np.abs(whole - counts + part).max()))
    return worst


@pytest.mark.parametrize("num", NUMS)
@pytest.mark.parametrize("kind", KINDS)
def test_constant_weights(num, kind):
    """First segment: within 1.5 at every batch boundary over 10^6 positions."""
    batch = 1_000
    steps = 1_000
    for seed in range(3 if num < 2_048 else 1):
        worst = worst_deviation(
            num, [kind], batch, steps, hold=steps, append_every=steps, seed=seed
        )
        assert worst <= 1.5


# Huffman alone strays by 1.508, 1.566 and more with weights like these (reviewed cases).
FIBONACCI = [0.012455522672431775, 1.0, 1.0076851699889626, 1.0145986352940641]
FIBONACCI += [2.036933613864305, 3.0366426534173905, 5.113538983889663]


@pytest.mark.parametrize("tiny", [FIBONACCI[0], 1e-3, 1e-6])
def test_hard_constant_weights(tiny):
    """Fibonacci-like weights beside a tiny one: the bound of the tree holds, and is below 1.5."""
    weights = np.array([tiny, *FIBONACCI[1:]])
    shares = _core.shares(weights)
    plan = new_plan(len(weights))
    plan.append(0, 1, shares, None)
    assert plan.explain(0)["bound"] <= 1.5
    exact = weights / weights.sum()
    for start in range(0, 2_000_000, 250_000):
        domain = plan.picks(start, 250_000, 2, 1)[0]
        counts = plan.counts(start)
        prefix = np.cumsum(domain[:, None] == np.arange(len(weights)), axis=0) + counts
        positions = np.arange(start + 1, start + 250_001)[:, None]
        assert np.abs(prefix - positions * exact).max() <= 1.5


def test_bounds_of_random_trees():
    """Over thousands of weight vectors the bound stays below 1.5 (Huffman alone reaches 1.57)."""
    rng = np.random.default_rng(1)
    for i in range(2_000):
        num = int(rng.integers(2, 40))
        golden = 1.618 ** np.arange(num)
        weights = [
            rng.dirichlet(np.ones(num)),
            rng.dirichlet(np.full(num, 0.2)) + 1e-12,
            golden * (1 + rng.random(num) * 0.1),
            np.r_[1e-3, golden[:-1] * (1 + rng.random(num - 1) * 0.02)],
        ][i % 4]
        plan = new_plan(num)
        plan.append(0, 1, _core.shares(weights), None)
        assert plan.explain(0)["bound"] <= 1.5, weights.tolist()


@pytest.mark.parametrize("num", NUMS)
@pytest.mark.parametrize("kind", CHANGING)
def test_fresh_weights_in_every_batch(num, kind):
    """Within 2, the aim (4 is promised), whatever is changed, pauses included."""
    assert worst_deviation(num, [kind], 8, 1_000 if num < 257 else 200) <= 2.0
    assert worst_deviation(num, [kind], 1_000, 1_000) <= 2.0  # 10^6 positions


@pytest.mark.parametrize("num", NUMS)
@pytest.mark.parametrize("hold", [3, 20, 150])
@pytest.mark.parametrize("append_every", [1, 1_000])
def test_any_history(num, hold, append_every):
    """Changes now and then, with and without the same weights appended in between.

    Correcting sums of debts alone fails here: 4.9 at 2,048 domains, and 106 where the domains that
    are ahead are paused.
    """
    steps = 600 if num < 257 else 200
    for batch in (8, 64, 1_024):
        assert worst_deviation(num, CHANGING, batch, steps, hold, append_every) <= 3.0


@pytest.mark.parametrize("num", [3, 257])
def test_pausing_whoever_is_ahead(num):
    """An adversary pauses the domains that are ahead and gives one domain nearly all the weight."""
    plan, batch = new_plan(num), 64
    ideal, worst = np.zeros(num), 0.0
    for i in range(900):
        debt = ideal - plan.counts(i * batch) if i else np.zeros(num)
        phase = i // 7 % 3
        weights = np.ones(num)
        if phase:
            weights = np.where(debt > 0, 1.0, 0.0)
            weights[0] = 1_000.0 if phase == 2 else 1.0
        if i % 7 == 0:
            shares = _core.shares(weights)
        plan.append(i * batch, batch, shares, None)
        ideal += shares / TOTAL * batch
        worst = max(worst, np.abs(ideal - plan.counts((i + 1) * batch)).max())
    assert worst <= 3.0


@pytest.mark.parametrize("num", NUMS)
def test_the_same_weights_again_10_000_times(num):
    """A change that changes nothing moves nothing: not one pick differs."""
    weights = _core.shares(weights_of("1e-7", num, np.random.default_rng(2)))
    once, often = new_plan(num), new_plan(num)
    once.append(0, 16, weights, None)
    for i in range(10_000):
        often.append(i * 16, 16, weights, None)
    assert np.array_equal(often.counts(160_000), once.counts(160_000))
    for first in (0, 79_990, 150_000):
        for a, b in zip(
            often.picks(first, 5_000, 1, 15), once.picks(first, 5_000, 1, 15), strict=True
        ):
            assert np.array_equal(a, b)


def test_a_tiny_weight_gets_its_samples_whatever_happens_to_the_others():
    """1e-7 over 10,000 reweightings of the others: 10^9 samples give it 100."""
    rng, batch = np.random.default_rng(4), 100_000
    plan = new_plan(4)
    for i in range(10_000):
        others = rng.dirichlet(np.ones(3)) * (1 - 1e-7)
        plan.append(i * batch, batch, _core.shares(np.r_[others, 1e-7]), None)
    assert abs(plan.counts(10_000 * batch)[3] - 100) <= 2


def test_no_rank_sees_a_biased_slice():
    """Inside a batch the order is a permutation: slices of a rank hold every domain alike."""
    plan = new_plan(4)
    plan.append(0, 64, _core.shares(np.full(4, 0.25)), None)
    domain = plan.picks(0, 64 * 4_000, 1, 1)[0].reshape(4_000, 8, 8)  # step, rank, micro-batch
    per_rank = np.stack([(domain == d).sum(axis=(0, 2)) for d in range(4)])
    assert np.abs(per_rank - 8_000).max() < 6 * np.sqrt(8_000 * 0.75)
    orders = {tuple(row) for row in domain.reshape(4_000, 64)}
    assert len(orders) == 4_000  # every batch has its own


@given(st.data())
@settings(max_examples=120)
def test_draws_are_complete_over_any_history(data):
    """Append, add, pause, cap, batch size, schedule, replace, save and load: draws are 0..n-1."""
    order = data.draw(st.sampled_from(["balanced", "random", "megatron"]))
    epochs = None if order == "megatron" else 1.5
    ledger = mixcore.Ledger(
        [mixcore.Domain("a", 40), mixcore.Domain("b", 300, max_epochs=epochs)],
        [1, 2],
        batch_size=16,
        seed=data.draw(st.integers(0, 99)),
        order=order,
        on_cap=data.draw(st.sampled_from(["redistribute", "stop", "error"])),
    )
    position = 0
    for i in range(data.draw(st.integers(0, 6))):
        position += data.draw(st.integers(1, 400))
        add = []
        if data.draw(st.booleans()):
            cap = None if order == "megatron" else data.draw(st.sampled_from([None, 0.5, 3]))
            add = [mixcore.Domain(f"new{i}", data.draw(st.sampled_from([3, 50])), max_epochs=cap)]
        domains = (*ledger.domains, *add)
        schedule = None
        if data.draw(st.booleans()):
            at = [position + 500, position + 650, position + 900]
            points = [(p, weights_over(data, domains)) for p in at]
            make = data.draw(st.sampled_from([mixcore.piecewise, mixcore.linear]))
            schedule = make(points)
        size = data.draw(st.sampled_from([None, None, 8, 24, 100]))
        before = ledger.to_bytes()
        try:
            position = ledger.append(
                position,
                weights_over(data, domains),
                add=add,
                batch_size=size,
                schedule=schedule,
                replace_future=data.draw(st.booleans()),
            )
        except mixcore.LedgerError:  # dated before another, past the end, or asks for what is spent
            assert ledger.to_bytes() == before
        if data.draw(st.booleans()):
            ledger = mixcore.Ledger.from_bytes(ledger.to_bytes())
    piece = ledger.pieces[-1]
    end = piece.start + 5 * piece.batch_size
    stopped = ledger.end(end)
    if stopped is not None:
        end = stopped[0]
    sampler = mixcore.Sampler(ledger)
    p = sampler.picks(0, end)
    num = len(ledger.domains)
    ordinal = np.zeros(num, np.int64)  # the counts at a position, kept by hand
    boundary = 0
    while boundary < end:
        first, size = ledger.batch_at(boundary)
        assert first == boundary
        assert sampler.counts(boundary).tolist() == ordinal.tolist()
        batch = slice(boundary, min(boundary + size, end))
        for d, domain in enumerate(ledger.domains):
            draws = np.sort(p.draw[batch][p.domain[batch] == d])
            assert np.array_equal(draws, ordinal[d] + np.arange(len(draws)))
            ordinal[d] += len(draws)
            assert domain.cap is None or ordinal[d] <= domain.cap
        boundary = first + size
        later = [q.start for q in ledger.pieces if first < q.start < boundary]
        assert not later  # a batch belongs to one piece
    assert sampler.counts(end).tolist() == ordinal.tolist()


def weights_over(data, domains):
    """Weights that leave an uncapped domain positive, whichever that is; any other may pause."""
    weight = st.sampled_from([0, 0.1, 1, 5])
    weights = data.draw(st.lists(weight, min_size=len(domains), max_size=len(domains)))
    free = [d for d, domain in enumerate(domains) if domain.cap is None]
    weights[data.draw(st.sampled_from(free))] = 1
    return weights
