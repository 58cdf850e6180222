"""Guards: limits on what a method may decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcore
from mixcore import guards
from mixcore.config import Guards
from mixcore.guards import Floor, MaxChange, Moment, Quantise, RepeatCap, WarmUp


def moment(weights=(0.5, 0.3, 0.2), **fields):
    weights = np.array(weights)
    sizes = fields.pop("sizes", [1_000] * len(weights))
    fields = {
        "step": 100,
        "position": 6_400,
        "initial": np.full(len(weights), 1 / len(weights)),
        "domains": tuple(mixcore.Domain(f"d{i}", n) for i, n in enumerate(sizes)),
        "drawn": np.zeros(len(weights), np.int64),
        "remaining": 1_000,
    } | fields
    return Moment(weights=weights, **fields)


def simplex(num, low=0.0):
    entries = st.lists(st.floats(low, 1), min_size=num, max_size=num)
    return entries.filter(lambda x: sum(x) > 1e-3).map(lambda x: np.array(x) / sum(x))


def bisected(weights, low, high):
    """Slow twin of `fit` for weights above 0: bisection on k."""
    a, b = 0.0, 1e15
    for _ in range(300):
        k = (a + b) / 2
        a, b = (k, b) if np.clip(k * weights, low, high).sum() < 1 else (a, k)
    return np.clip(b * weights, low, high)


def test_floor_by_uniform_mixing():
    p = Floor(0.1)(np.array([0.0, 0.25, 0.75]), moment())
    assert p == pytest.approx([0.1, 0.275, 0.625], abs=1e-15)


def test_floor_exact_keeps_the_ratios_above_it():
    p = Floor(0.1, "exact")(np.array([0.01, 0.33, 0.66]), moment())
    assert p == pytest.approx([0.1, 0.3, 0.6], abs=1e-15)
    # the trap of floor and renormalise: a value a bit under the floor
    assert np.maximum([0.01, 0.33, 0.66], 0.1)[0] / 1.09 < 0.1


@given(simplex(5), st.floats(0, 0.2), st.sampled_from(["uniform", "exact"]))
def test_floors_hold(weights, floor, kind):
    p = Floor(floor, kind)(weights, moment([0.2] * 5))
    assert p.min() >= floor * (1 - 1e-12)
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_max_change_by_hand():
    # q = (.5, .5), at most a factor of 2 either way: 0.9 / 0.1 is allowed only as .75 / .25
    p = MaxChange(np.log(2))(np.array([0.9, 0.1]), moment([0.5, 0.5]))
    assert p == pytest.approx([0.75, 0.25])
    # inside the bounds nothing changes
    w = np.array([0.6, 0.4])
    assert MaxChange(1.0)(w, moment([0.5, 0.5])) == pytest.approx(w, abs=1e-15)


def test_max_change_leaves_a_paused_domain_free():
    p = MaxChange(0.1)(np.array([0.4, 0.3, 0.3]), moment([0.5, 0.5, 0.0]))
    assert p[2] > 0.05


@given(simplex(4), simplex(4, low=0.01), st.floats(0.001, 3))
def test_max_change_holds_after_normalisation(weights, q, bound):
    p = MaxChange(bound)(weights, moment(q))
    assert guards.change(q, p) <= bound * (1 + 1e-9) + 1e-12
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_repeat_cap_by_hand():
    # 1,000 samples to come, 4 epochs of 50 = 200 of the first domain: at most 0.2
    m = moment(sizes=[50, 10_000, 10_000])
    p = RepeatCap(4)(np.array([0.6, 0.3, 0.1]), m)
    assert p == pytest.approx([0.2, 0.6, 0.2])
    # 150 of them are drawn: 50 left
    m = moment(sizes=[50, 10_000, 10_000], drawn=np.array([150, 0, 0]))
    assert RepeatCap(4)(np.array([0.6, 0.3, 0.1]), m) == pytest.approx([0.05, 0.7125, 0.2375])
    # more than allowed is drawn: nothing is left, and the second fills up as well
    m = moment(sizes=[50, 100, None], drawn=np.array([250, 0, 0]))
    assert RepeatCap(4)(np.array([0.6, 0.3, 0.1]), m) == pytest.approx([0, 0.4, 0.6])
    assert not m.notes


def test_repeat_cap_obeys_max_epochs_too():
    domains = (mixcore.Domain("a", 100, max_epochs=1), mixcore.Domain("b", None))
    m = moment([0.5, 0.5], domains=domains)
    assert RepeatCap(4)(np.array([0.5, 0.5]), m) == pytest.approx([0.1, 0.9])


def test_repeat_cap_says_when_it_cannot_be_kept():
    m = moment(sizes=[10, 20, 20])
    assert RepeatCap(4)(np.array([0.6, 0.3, 0.1]), m) == pytest.approx([0.2, 0.4, 0.4])
    assert m.notes == ["repeat_cap=4 leaves 200 samples for the 1000 still to come"]
    m = moment(sizes=[10, 20, 20], drawn=np.array([40, 80, 80]))
    assert RepeatCap(4)(np.array([0.6, 0.3, 0.1]), m).tolist() == [0.6, 0.3, 0.1]
    assert len(m.notes) == 1
    m = moment(remaining=0)
    assert RepeatCap(4)(np.array([0.6, 0.3, 0.1]), m).tolist() == [0.6, 0.3, 0.1]


def test_repeat_cap_never_overspends_a_run():
    """Asked anew every 20 steps by a method that wants one small domain only."""
    domains = [mixcore.Domain("small", 500), mixcore.Domain("large", 10**6)]
    ledger = mixcore.Ledger(domains, [0.5, 0.5], batch_size=100)
    sampler, guard, total = mixcore.Sampler(ledger), RepeatCap(2), 40_000
    for position in range(2_000, total, 2_000):
        m = moment(
            [0.5, 0.5],
            domains=tuple(domains),
            drawn=sampler.counts(position),
            remaining=total - position,
        )
        ledger.append(position, guard(np.array([1.0, 0.0]), m))
    drawn = sampler.counts(total)[0]
    assert 1_000 <= drawn <= 1_002  # the first 2,000 samples drew 1,000; then 1 at most by rounding


def test_warm_up():
    w, m = np.array([1.0, 0.0, 0.0]), [moment(step=s) for s in (5, 10, 15, 20, 25)]
    assert WarmUp(10)(w, m[0]) == pytest.approx([1 / 3] * 3)
    assert WarmUp(10)(w, m[1]) == pytest.approx(w)
    ramp = [WarmUp(10, 10)(w, x)[0] for x in m]
    assert ramp == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 1])


def test_quantise_by_hand():
    q = Quantise(10)
    assert q(np.array([0.44, 0.33, 0.23]), moment()).tolist() == [0.5, 0.3, 0.2]
    assert q(np.array([0.98, 0.01, 0.01]), moment()).tolist() == [0.8, 0.1, 0.1]
    assert q(np.array([1.0, 0.0, 0.0]), moment()).tolist() == [1, 0, 0]
    assert q(np.array([0.25, 0.25, 0.25, 0.25]), moment([0.25] * 4)).tolist() == [
        0.3,
        0.3,
        0.2,
        0.2,
    ]


@given(simplex(6), st.integers(6, 500))
def test_quantised_weights_are_near_and_positive(weights, levels):
    p = Quantise(levels)(weights, moment([1 / 6] * 6))
    units = p * levels
    assert units == pytest.approx(np.round(units), abs=1e-9)
    assert np.round(units).sum() == levels
    assert ((p > 0) == (weights > 0)).all()
    assert np.abs(p - weights).max() <= 6 / levels


@given(simplex(6, low=1e-4), simplex(6), st.floats(0, 1), st.floats(0, 1))
def test_fit_against_bisection(weights, other, a, b):
    low, high = other * a, other + (1 - other) * b
    p = guards.fit(weights, low, high)
    assert p == pytest.approx(bisected(weights, low, high), abs=1e-8)
    assert (p >= low - 1e-12).all()
    assert (p <= high + 1e-12).all()


def test_fit_of_zeros():
    zeros = np.array([1.0, 0.0, 0.0])
    p = guards.fit(zeros, np.zeros(3), np.array([0.4, 1.0, 0.5]))
    assert p == pytest.approx([0.4, 0.4, 0.2])
    assert guards.fit(zeros, np.zeros(3), np.ones(3)).tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="no weights lie between"):
        guards.fit(zeros, np.zeros(3), np.array([0.4, 0.2, 0.1]))


def test_guards_of_a_configuration():
    assert guards.guards_from(Guards()) == ()
    made = guards.guards_from(Guards(floor=0.01, max_change=0.5, repeat_cap=4))
    assert made == (Floor(0.01), MaxChange(0.5), RepeatCap(4))
    with pytest.raises(ValueError, match=r"max_change must be in \(0"):
        guards.guards_from(Guards(max_change=0.0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Floor(-0.1), ValueError, r"floor must be in \[0, 1\], got -0.1"),
        (lambda: Floor("a"), TypeError, "floor must be a number, got 'a'"),
        (lambda: Floor(0.1, "near"), ValueError, "floor.kind must be one of"),
        (lambda: Floor(0.4)(np.ones(3) / 3, moment()), ValueError, "floor must be at most 1 / 3"),
        (lambda: MaxChange(0), ValueError, r"max_change must be in \(0"),
        (lambda: RepeatCap(float("nan")), ValueError, "repeat_cap must be"),
        (
            lambda: RepeatCap(4)(np.ones(3) / 3, moment(remaining=None)),
            ValueError,
            "needs the controller's train_samples",
        ),
        (lambda: WarmUp(-1), ValueError, "hold must be in"),
        (lambda: WarmUp(1, 0.5), TypeError, "ramp must be an integer"),
        (lambda: Quantise(0), ValueError, "levels must be in"),
        (lambda: Quantise(2)(np.ones(3) / 3, moment()), ValueError, "levels must be at least 3"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
