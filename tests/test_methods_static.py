"""Static rules: weights from sizes, epochs and counts."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcore

SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=20)


def weights(name, own, **options):
    domains = [mixcore.Domain(f"d{i}", n) for i, n in enumerate(own)]
    return mixcore.method(name, domains=domains, **options).weights()


def test_known_answers():
    assert weights("proportional", [900, 90, 10]).tolist() == [0.9, 0.09, 0.01]
    assert weights("uniform", [900, 90, 10]).tolist() == [1 / 3] * 3
    assert weights("temperature", [100, 1], tau=2) == pytest.approx([10 / 11, 1 / 11])
    assert weights("epochs", [900, 90, 10], epochs=[1, 2, 10]) == pytest.approx(
        [900 / 1180, 180 / 1180, 100 / 1180]
    )
    assert weights("importance", [5, 5], counts=[3, 1]).tolist() == [0.75, 0.25]
    assert weights("importance", [5, 5], counts=[4, 0], epsilon=0.2).tolist() == [0.9, 0.1]


def test_options_by_name_and_in_another_unit():
    table = {"d1": 1, "d0": 3}
    assert weights("epochs", [10, 10], epochs=table).tolist() == [0.75, 0.25]
    assert weights("epochs", [10, 10], epochs=[1, 1], sizes=[1, 3]).tolist() == [0.25, 0.75]
    assert weights("temperature", [10, 10], tau=1, sizes=table).tolist() == [0.75, 0.25]
    assert weights("unimax", [None, None], budget=2, sizes=[1, 5]).tolist() == [0.5, 0.5]


def test_temperature_between_proportional_and_uniform():
    sizes = [900, 90, 10]
    assert weights("temperature", sizes, tau=1) == pytest.approx(weights("proportional", sizes))
    assert weights("temperature", sizes, tau=1e9) == pytest.approx([1 / 3] * 3)
    assert weights("temperature", sizes, tau=1e-9).tolist() == [1, 0, 0]


def test_unimax_by_hand():
    # No cap binds: uniform.
    assert weights("unimax", [100, 100, 1000], budget=90).tolist() == [1 / 3] * 3
    # N = 2: 10 gives 20 of its share of 100; the others share the remaining 280.
    assert weights("unimax", [1000, 10, 1000], budget=300, max_epochs=2) == pytest.approx(
        [140 / 300, 20 / 300, 140 / 300]
    )
    # Two caps: 10 and 50, then 240 for the last.
    assert weights("unimax", [50, 10, 1000], budget=300) == pytest.approx(
        [50 / 300, 10 / 300, 240 / 300]
    )


def test_unimax_over_what_there_is():
    with pytest.raises(ValueError, match=r"budget must be at most .* = 220, got 300: 80 cannot"):
        weights("unimax", [100, 10], budget=300, max_epochs=2)
    assert weights("unimax", [100, 10], budget=220, max_epochs=2) == pytest.approx(
        [10 / 11, 1 / 11]
    )
    assert weights("unimax", [100, 10], budget=300, max_epochs=2, shortfall="cap") == pytest.approx(
        [10 / 11, 1 / 11]
    )


@given(SIZES, st.fractions(Fraction(1, 10), 10), st.integers(1, 5))
def test_unimax_against_exact_water_filling(sizes, fill, epochs):
    """The level that spends the budget, found by trying every number of capped domains."""
    room = sum(sizes) * epochs
    budget = min(fill * room / 10, room)
    caps = sorted(Fraction(n * epochs) for n in sizes)
    for capped in range(len(caps) + 1):
        left = len(caps) - capped
        level = (budget - sum(caps[:capped])) / left if left else caps[-1]
        if not left or level <= caps[capped]:
            break
    expected = [float(min(level, n * epochs) / budget) for n in sizes]
    got = weights("unimax", sizes, budget=float(budget), max_epochs=epochs, shortfall="cap")
    assert got == pytest.approx(expected, rel=1e-9)
    assert (got * float(budget) <= np.array(sizes) * epochs * (1 + 1e-9)).all()


@given(SIZES, st.floats(0.1, 100))
def test_weights_are_weights(sizes, tau):
    for name, options in [
        ("proportional", {}),
        ("uniform", {}),
        ("temperature", {"tau": tau}),
        ("epochs", {"epochs": [1] * len(sizes)}),
        ("importance", {"counts": sizes, "epsilon": 0.1}),
        ("unimax", {"budget": sum(sizes)}),
    ]:
        p = weights(name, sizes, **options)
        assert (p >= 0).all()
        assert p.sum() == pytest.approx(1)


def test_updates_change_nothing():
    domains = [mixcore.Domain("a", 3), mixcore.Domain("b", 1)]
    for name, options in [
        ("proportional", {}),
        ("uniform", {}),
        ("temperature", {}),
        ("unimax", {"budget": 2}),
        ("epochs", {"epochs": [1, 2]}),
        ("importance", {"counts": [1, 2]}),
    ]:
        method = mixcore.method(name, domains=domains, **options)
        assert mixcore.methods()[name].family == "static rule"
        before = method.weights().tolist()
        assert method.update(mixcore.Signals(step=1)).tolist() == before
        again = mixcore.method(name, domains=domains, **options)
        again.load_state_dict(method.state_dict())
        assert again.weights().tolist() == before


@pytest.mark.parametrize(
    ("name", "sizes", "options", "message"),
    [
        ("temperature", [1, 2], {"tau": 0}, r"tau must be in \(0, inf\], got 0"),
        ("temperature", [1, None], {}, "needs a size of every domain, but 'd1' has none"),
        ("unimax", [1, 2], {"budget": -1}, "budget must be in .* got -1"),
        ("unimax", [1, 2], {}, "needs the option budget"),
        ("unimax", [1, 2], {"budget": 1, "max_epochs": 0}, "max_epochs must be in"),
        ("unimax", [1, 2], {"budget": 1, "shortfall": "x"}, "shortfall must be one of"),
        ("epochs", [1, 2], {"epochs": [1]}, r"epochs must have one entry a domain \(2\), got 1"),
        ("epochs", [1, 2], {"epochs": [0, 0]}, "epochs must have a positive sum"),
        ("importance", [1, 2], {"counts": [1, -1]}, r"counts\['d1'\] must be finite and >= 0"),
        ("importance", [1, 2], {"counts": [1, 1], "epsilon": 2}, "epsilon must be in"),
    ],
)
def test_bad_options(name, sizes, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        weights(name, sizes, **options)
