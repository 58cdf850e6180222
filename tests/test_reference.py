"""Native plans against the slow twin, value for value, over random histories."""

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mixcore import _core, reference

WEIGHTS = st.sampled_from([0.0, 1e-9, 0.1, 0.2, 0.25, 0.5, 1.0, 7.0])


@st.composite
def histories(draw, order):
    """(plan, twin, count): the same random history in both."""
    on_cap = "redistribute"
    if order != "megatron":
        on_cap = draw(st.sampled_from(["redistribute", "redistribute", "stop", "error"]))
    key = draw(st.integers(0, 2**64 - 1))
    plan, specs, pieces = _core.Plan(order, key, on_cap), [], []

    def add():
        size = draw(st.sampled_from([0, 1, 2, 7, 50, 1_000]))
        cap = None
        if order != "megatron":
            cap = draw(st.sampled_from([None, None, None, 1, 5, 60, 400]))
        key = draw(st.integers(0, 2**64 - 1))
        specs.append(reference.DomainSpec(key, size, cap))
        plan.add_domain(f"d{len(specs)}", key, size, -1 if cap is None else cap)

    for _ in range(draw(st.sampled_from([1, 2, 3, 5, 9, 30]))):
        add()
    position = 0
    for i in range(draw(st.integers(1, 8))):
        if i and draw(st.booleans()):
            add()
        num, last = len(specs), pieces[-1] if pieces else None
        if last and draw(st.integers(0, 5)) == 0:  # a change that changes nothing
            pad = [0] * (num - len(last.shares))
            batch, shares, weights = last.batch, last.shares + pad, [*last.weights, *pad]
        else:
            weights = draw(st.lists(WEIGHTS, min_size=num, max_size=num).filter(any))
            shares = reference.shares_of_weights(weights)
            weights = [w / sum(weights) for w in weights]
            batch = draw(st.sampled_from([1, 2, 7, 16, 64, 100]))
        pieces.append(reference.PieceSpec(position, batch, shares, weights))
        floats = np.array(weights, dtype=float) if order == "megatron" else None
        plan.append(position, batch, np.array(shares, np.uint64), floats)
        position += batch * draw(st.integers(1, 5))
    count = position + draw(st.integers(0, 100))
    return plan, reference.Run(order, key, specs, pieces, on_cap), count


def check(plan, twin, count, data):
    """Everything that can be asked of a plan agrees with the twin, in whatever order."""
    end = None
    try:
        want = twin.picks(count)
    except reference.EndOfRun as e:
        event("the run ends")
        end = e.args
        count = end[0]
        want = twin.picks(count) if count else []
    found = plan.find_end(count)
    # It may also end right after the last pick asked for.
    assert found == end if end else found is None or found[0] == count
    if not count:
        return
    kinds = {plan.explain(p)["kind"] for p in range(0, count, 50)}
    event(f"kinds of segments: {sorted(kinds)}")
    first = data.draw(st.integers(0, count))
    got = plan.picks(first, count - first, data.draw(st.sampled_from([1, 2])), 15)
    assert list(zip(*(a.tolist() for a in got), strict=True)) == want[first:]
    some = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=30)))
    got = plan.at(some, 15)
    assert list(zip(*(a.tolist() for a in got), strict=True)) == [want[i] for i in some]
    position = data.draw(st.integers(0, count))
    counts = np.bincount([d for d, *_ in want[:position]], minlength=len(twin.domains))
    assert plan.counts(position).tolist() == counts.tolist()


@given(histories("balanced"), st.data())
@settings(max_examples=250)
def test_balanced(history, data):
    check(*history, data)


@given(histories("megatron"), st.data())
def test_megatron(history, data):
    check(*history, data)


@given(histories("random"), st.data())
@settings(max_examples=100)
def test_random(history, data):
    check(*history, data)


def test_a_settled_batch_is_the_twin_s():
    """Debts of more than one sample (domains paused while behind) are paid in one batch."""
    rng = np.random.default_rng(3)
    num, batch = 90, 16
    plan = _core.Plan("balanced", 5, "redistribute")
    specs = [reference.DomainSpec(i, 100) for i in range(num)]
    for i in range(num):
        plan.add_domain(f"d{i}", i, 100, -1)
    pieces = []
    for i in range(60):
        weights = rng.dirichlet(np.full(num, 0.1)) + 1e-12
        shares = reference.shares_of_weights(weights.tolist())
        pieces.append(reference.PieceSpec(i * 4 * batch, batch, shares))
        plan.append(i * 4 * batch, batch, np.array(shares, np.uint64), None)
    twin = reference.Run("balanced", 5, specs, pieces)
    count = 60 * 4 * batch
    assert list(zip(*(a.tolist() for a in plan.picks(0, count, 1, 15)), strict=True)) == twin.picks(
        count
    )
    assert any(plan.explain(p.start)["kind"] == "settle" for p in pieces)
