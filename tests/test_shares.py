import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcore
from mixcore import _core, reference

TOTAL = 1 << 62
positive = st.floats(min_value=0, max_value=1e300, allow_nan=False, allow_infinity=False)
some_weights = st.lists(positive, min_size=1, max_size=40).filter(any)


@given(some_weights)
def test_equal_slow_twin(weights):
    assert _core.shares(np.array(weights)).tolist() == reference.shares_of_weights(weights)


@given(some_weights)
def test_sum_and_sign(weights):
    shares = _core.shares(np.array(weights)).tolist()
    assert sum(shares) == TOTAL
    assert all((s > 0) == (w > 0) for s, w in zip(shares, weights, strict=True))


def test_known_answers():
    assert _core.shares(np.array([1.0, 1.0])).tolist() == [TOTAL // 2] * 2
    third = TOTAL // 3
    assert _core.shares(np.ones(3)).tolist() == [third + 1, third, third]  # 2^62 = 3 k + 1
    assert _core.shares(np.array([0.0, 5.0])).tolist() == [0, TOTAL]
    # Below the resolution: 1 part in 2^61, not a pause.
    assert _core.shares(np.array([1.0, 1e-300])).tolist() == [TOTAL - 2, 2]


def test_a_tiny_weight_keeps_its_precision():
    shares = _core.shares(np.array([1.0, 1e-9]))
    assert shares[1] / TOTAL == pytest.approx(1e-9 / (1 + 1e-9), rel=1e-8)


@given(some_weights, st.data(), st.integers(1, 2**48), st.integers(0, 2**48))
def test_between(x, data, denominator, numerator):
    numerator = min(numerator, denominator)
    y = data.draw(st.lists(positive, min_size=len(x), max_size=len(x)).filter(any))
    a, b = _core.shares(np.array(x)), _core.shares(np.array(y))
    got = _core.interpolate_shares(a, b, numerator, denominator).tolist()
    assert got == reference.shares_between(a.tolist(), b.tolist(), numerator, denominator)
    if numerator in (0, denominator):
        assert got == (b if numerator else a).tolist()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, -0.1], r"weights\['d1'\] must be finite and >= 0, got -0.1"),
        ([0.5, float("nan")], r"weights\['d1'\] must be finite and >= 0, got nan"),
        ([float("inf"), 1], r"weights\['d0'\] must be finite and >= 0, got inf"),
        ([0, 0.0], "weights must have a positive sum, got all zeros"),
        ([1, 2, 3], r"weights must have one entry a domain \(2\), got 3"),
        ({"d0": 1, "x": 2}, r"weights names unknown domains \['x'\]"),
        ({"d0": 1}, r"weights must name every domain; missing: \['d1'\]"),
        (["a", 1], r"weights\['d0'\] must be a number, got 'a'"),
        ([None, 1], r"weights\['d0'\] must be a number, got None"),
        ("ab", "weights must be a sequence or a mapping, got 'ab'"),
        (np.ones((2, 2)), "weights must have 1 axis, got 2"),
        (np.array(["a", "b"]), "weights must be numbers, got dtype"),
    ],
)
def test_bad_weights(weights, message):
    domains = [mixcore.Domain("d0", 10), mixcore.Domain("d1", 10)]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        mixcore.Ledger(domains, weights, batch_size=8)
    assert isinstance(caught.value, mixcore.MixcoreError)


def test_binding_refuses_what_is_no_float64_array():
    with pytest.raises(TypeError, match="weights must have dtype float64, got float32"):
        _core.shares(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="weights must be C-contiguous"):
        _core.shares(np.ones(6)[::2])
    with pytest.raises(TypeError, match="weights must be a numpy array, got list"):
        _core.shares([1.0])
