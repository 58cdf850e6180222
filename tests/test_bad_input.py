"""Mistakes that are not about one value: wrong kinds of argument, refused by name."""

import numpy as np
import pytest
from conftest import make_ledger

import mixcore


def refused(error, message, call):
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, mixcore.MixcoreError)


@pytest.mark.parametrize("ask", ["end", "cap_events"])
@pytest.mark.parametrize(
    ("horizon", "error", "message"),
    [
        ("x", TypeError, "horizon must be an integer, got 'x'"),
        (True, TypeError, "horizon must be an integer, got True"),
        (1.5, TypeError, "horizon must be an integer, got 1.5"),
        (-1, ValueError, "horizon must be in .*, got -1"),
        (2**48 + 1, ValueError, "horizon must be in .*, got 281474976710657"),
        (2**70, ValueError, "horizon must be in"),
    ],
)
def test_horizons(ask, horizon, error, message):
    refused(error, message, lambda: getattr(make_ledger(2), ask)(horizon))


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (None, "add must be a sequence of Domain, got None"),
        (mixcore.Domain("x", 1), "add must be a sequence of Domain, got Domain"),
        ("x", "add must be a sequence of Domain, got 'x'"),
        ([None], "add must be a sequence of Domain, found None"),
        (5, "add must be a sequence of Domain, got 5"),
    ],
)
def test_added_domains(add, message):
    refused(TypeError, message, lambda: make_ledger(2).append(64, [1, 1], add=add))


@pytest.mark.parametrize("data", ["x", None, 5, ["x"]])
def test_from_bytes(data):
    refused(TypeError, "data must be bytes, got", lambda: mixcore.Ledger.from_bytes(data))


@pytest.mark.parametrize("make", [mixcore.linear, mixcore.piecewise])
@pytest.mark.parametrize("points", [None, 5, "x", {"at": 0}])
def test_points(make, points):
    refused(TypeError, "schedule.points must be a list, got", lambda: make(points))


def test_keys_of_several_types():
    schedule = {"points": [(0, [1, 1])], 5: 1, "x": 2, None: 3}
    message = r"schedule has unknown keys \['x', 5, None\]"
    refused(ValueError, message, lambda: make_ledger(2, schedule=schedule))
    refused(
        ValueError,
        r"schedule.points\[0\] must have the keys",
        lambda: mixcore.linear([{"at": 0, 5: 1, "x": 2}]),
    )


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_a_deeply_nested_file_is_no_ledger(tmp_path, depth):
    path = tmp_path / "x"
    path.write_bytes(b"[" * depth + b"\n")
    refused(mixcore.LedgerError, "is no ledger", lambda: mixcore.Ledger.load(path))


@pytest.mark.parametrize("weights", [{1, 2}, frozenset([1, 2]), {"a": 1, "b": 2}.keys()])
def test_weights_without_an_order(weights):
    refused(
        TypeError, "weights must be a sequence or a mapping, got", lambda: make_ledger(2, weights)
    )


def test_all_domains_used_up_is_said_in_words():
    ledger = mixcore.Ledger([mixcore.Domain("a", 64, max_epochs=1)], [1], batch_size=64)
    assert ledger.end() == (64, "")
    message = "end of the run at 64: every domain with a positive weight is used up"
    refused(mixcore.LedgerError, message, lambda: ledger.append(128, [1]))


def test_more_cores_than_threads_are_allowed(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2_000)))
    assert len(mixcore.Sampler(make_ledger(2)).picks(0, 10).domain) == 10


def test_what_holds_arrays_is_compared_by_identity():
    one, two = make_ledger(2), make_ledger(2)
    assert one.pieces[0] != two.pieces[0]
    assert one.decisions[0] != two.decisions[0]
    assert len({*one.pieces, *one.decisions}) == 2
    schedule = mixcore.piecewise([(640, np.ones(2))])
    one.append(64, schedule=schedule)
    two.append(64, schedule=schedule)
    assert one.decisions[1].schedule != two.decisions[1].schedule
