import pytest

import mixcore
from mixcore.domains import stream_key


def test_caps():
    assert mixcore.Domain("a", 50_000, max_epochs=4).cap == 200_000
    assert mixcore.Domain("a", 10, max_epochs=1.25).cap == 12  # floor
    assert mixcore.Domain("a", 10, max_epochs=0.1).cap == 1  # the double 0.1 is above 1/10
    assert mixcore.Domain("a", 10).cap is None
    assert mixcore.Domain("a", None).cap is None


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
        (("a", None, 2), ValueError, "max_epochs of domain 'a' needs a size"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        mixcore.Domain(*arguments)
    assert isinstance(caught.value, mixcore.MixcoreError)
