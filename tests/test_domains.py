import numpy as np
import pytest

import mixcore
from mixcore.domains import stream_key


def test_caps():
    assert mixcore.Domain("a", 50_000, max_epochs=4).cap == 200_000
    assert mixcore.Domain("a", 10, max_epochs=1.25).cap == 12  # floor
    assert mixcore.Domain("a", 10, max_epochs=0.1).cap == 1
    assert mixcore.Domain("a", 10, max_epochs=0.7).cap == 7  # the double 0.7 is below 7/10
    assert mixcore.Domain("a", 10**9, max_epochs=1e-9).cap == 1
    assert mixcore.Domain("a", 10, max_epochs=1e300).cap == 2**48
    assert mixcore.Domain("a", 10).cap is None
    assert mixcore.Domain("a", None).cap is None


@pytest.mark.parametrize("number", [np.int64(2), np.float64(2), np.float32(2), 2, 2.0])
def test_numbers_of_numpy_count_as_numbers(number):
    domain = mixcore.Domain("a", np.int64(5), max_epochs=number)
    assert domain == mixcore.Domain("a", 5, 2)
    assert domain.cap == 10
    assert type(domain.size) is int
    assert type(domain.max_epochs) in (int, float)


def test_keys_are_named_not_added():
    keys = {stream_key(seed, "domain", name) for seed in range(50) for name in "abcdefgh"}
    assert len(keys) == 400
    assert stream_key(1, "domain", "x") != stream_key(1, "order", "x")
    assert 0 <= stream_key(-5, "domain", "x") < 2**64


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("", 5), ValueError, "name must not be empty"),
        ((7, 5), TypeError, "name must be a str, got 7"),
        (("\ud800", 5), ValueError, r"name must be encodable as UTF-8, got '\\ud800'"),
        (("a", 0), ValueError, r"size of domain 'a' must be in \[1, .*\], got 0"),
        (("a", -4), ValueError, "size of domain 'a' must be in .*, got -4"),
        (("a", 2**48 + 1), ValueError, "size of domain 'a' must be in .*, got 281474976710657"),
        (("a", 1.5), TypeError, "size of domain 'a' must be an integer, got 1.5"),
        (("a", 5, 0), ValueError, "max_epochs of domain 'a' must be finite and > 0, got 0"),
        (("a", 5, -1), ValueError, "max_epochs of domain 'a' must be finite and > 0, got -1"),
        (("a", 5, float("nan")), ValueError, "max_epochs of domain 'a' must be .*, got nan"),
        (("a", 5, "4"), TypeError, "max_epochs of domain 'a' must be a number or None, got '4'"),
        (("a", 5, 0.1), ValueError, "max_epochs of domain 'a' leaves no sample to draw, got 0.1"),
        (("a", 5, 10**400), ValueError, "max_epochs of domain 'a' must be finite"),
        (("a", 5, True), TypeError, "max_epochs of domain 'a' must be a number or None, got True"),
        (("a", None, 2), ValueError, "max_epochs of domain 'a' needs a size"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        mixcore.Domain(*arguments)
    assert isinstance(caught.value, mixcore.MixcoreError)
