"""Signals: validated, read-only, with NaN for what was absent."""

import dataclasses

import numpy as np
import pytest

from mixcore import Signals
from mixcore.signals import ARRAYS, HOW


def test_loss():
    s = Signals(step=3, loss_sum=[20.0, 0.0, 3.0], tokens=[10, 0, 2])
    assert s.loss[[0, 2]].tolist() == [2.0, 1.5]
    assert np.isnan(s.loss[1])
    assert s.num_domains == 3
    assert Signals(step=0).num_domains is None


def test_arrays_are_copied_and_read_only():
    mine = np.array([1.0, 2.0])
    s = Signals(step=0, val_loss=mine, draws=[1, 2])
    mine[0] = 9
    assert s.val_loss.tolist() == [1, 2]
    assert s.val_loss.dtype == np.float64
    assert s.draws.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        s.val_loss[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.step = 4


def test_every_array_has_advice_for_who_lacks_it():
    assert set(HOW) == set(ARRAYS)


def test_shapes():
    s = Signals(step=0, grad_dot=np.eye(3), grad_target=np.ones((3, 5)), grad_norm2=[1, 2, 3])
    assert s.grad_target.shape == (3, 5)
    assert Signals(step=0, grad_target=[1, 2]).grad_target.shape == (2,)
    assert Signals(step=0, tokens=[1.0, 2.0]).tokens.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"step": -1}, ValueError, r"step must be in \[0"),
        ({"step": 1.5}, TypeError, "step must be an integer"),
        ({"tokens": [-1]}, ValueError, r"tokens must be >= 0, got \[-1\]"),
        ({"tokens": [1.5]}, ValueError, "tokens must be whole numbers"),
        ({"tokens": [np.nan]}, ValueError, "tokens must be whole numbers"),
        ({"tokens": 3}, ValueError, "tokens must have 1 axes, got 0"),
        ({"loss_sum": ["x"]}, TypeError, "loss_sum must be numbers"),
        ({"loss_sum": [np.inf]}, ValueError, "loss_sum must not be infinite"),
        ({"grad_norm2": [-1.0]}, ValueError, "grad_norm2 must be >= 0"),
        ({"grad_dot": [1.0]}, ValueError, "grad_dot must have 2 axes, got 1"),
        ({"grad_dot": np.ones((2, 3))}, ValueError, "grad_dot must have one entry a domain"),
        ({"loss_sum": [1, 2], "tokens": [1]}, ValueError, "that of loss_sum is for 2 domains"),
        ({"extra": 3}, TypeError, "extra must be a mapping, got 3"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        Signals(**({"step": 0} | fields))


def test_loss_that_was_not_measured():
    with pytest.raises(ValueError, match=r"loss needs tokens: call controller\.observe"):
        _ = Signals(step=0, loss_sum=[1.0]).loss
    with pytest.raises(ValueError, match="loss needs loss_sum"):
        _ = Signals(step=0).loss
