"""ToReMi and loss_proportional: known answers."""

import numpy as np
import pytest

import mixcore

DOMAINS = [mixcore.Domain(n, 100) for n in ("a", "b", "c")]


def window(step, losses, **more):
    losses = np.array(losses, dtype=float)
    tokens = np.where(np.isnan(losses), 0, 5)
    return mixcore.Signals(step=step, loss_sum=np.nan_to_num(losses) * 5, tokens=tokens, **more)


def test_toremi_by_hand():
    """Losses 1, 2, 6: mean 3, d = -2/3, -1/3, 1."""
    method = mixcore.method("toremi", domains=DOMAINS, variant="code", stage_step=200)
    got = method.update(window(100, [1.0, 2.0, 6.0]))
    assert method.multipliers().tolist() == [1, 1, 2]  # stage 0: only the high one moves
    assert got.tolist() == [0.25, 0.25, 0.5]
    method.update(window(200, [1.0, 2.0, 6.0]))
    assert method.multipliers().tolist() == [1, 1, 4]
    method.update(window(201, [2.0, 2.0, 5.0]))  # stage 1: mean 3, d = -1/3, -1/3, 2/3
    assert method.multipliers() == pytest.approx([4 / 3, 4 / 3, 4 / 3])


def test_toremi_bounds():
    method = mixcore.method("toremi", domains=DOMAINS, variant="code", stage_step=500)
    for step in range(100, 501, 100):
        method.update(window(step, [0.1, 0.1, 6.0]))
    assert method.multipliers().tolist() == [1, 1, 5]
    for step in range(600, 1001, 100):
        method.update(window(step, [0.1, 0.1, 6.0]))
    assert method.multipliers() == pytest.approx([5, 5, 0.1])


def test_toremi_absent_topics_keep_their_weight_and_do_not_count_in_the_mean():
    method = mixcore.method("toremi", domains=DOMAINS, variant="code", stage_step=0)
    method.update(window(100, [np.nan, 1.0, 3.0]))
    assert method.multipliers() == pytest.approx([1, 1.5, 0.5])


def test_toremi_switches_when_validation_stalls():
    method = mixcore.method("toremi", domains=DOMAINS)
    method.update(window(100, [1.0, 2.0, 6.0], val_loss=[4.0, 4.0, 4.0]))
    method.update(window(200, [1.0, 2.0, 6.0], val_loss=[3.0, 3.0, 3.0]))
    assert method.multipliers()[2] == 4
    method.update(window(300, [1.0, 2.0, 6.0], val_loss=[3.0, 2.98, 2.95]))  # fell by 0.8 %
    assert method.multipliers()[2] == pytest.approx(0.1)
    method.update(window(400, [1.0, 2.0, 6.0], val_loss=[1.0, 1.0, 1.0]))  # and stays there
    assert method.multipliers()[2] == pytest.approx(0.1)


def test_toremi_multiplies_the_initial_mix():
    method = mixcore.method("toremi", domains=DOMAINS, initial=[0.6, 0.3, 0.1], variant="code")
    got = method.update(window(100, [1.0, 2.0, 6.0]))
    assert got == pytest.approx(np.array([0.6, 0.3, 0.2]) / 1.1)


def test_loss_proportional_by_hand():
    method = mixcore.method("loss_proportional", domains=DOMAINS)
    assert method.update(window(1, [1.0, 2.0, 5.0])) == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert method.update(window(2, [np.nan, 4.0, 5.0])) == pytest.approx([0.1, 0.4, 0.5])
    method = mixcore.method("loss_proportional", domains=DOMAINS, smoothing=0.75, power=2)
    method.update(window(1, [1.0, 2.0, np.nan]))  # c counts as their mean
    assert method.weights() == pytest.approx(np.array([1, 4, 2.25]) / 7.25)
    method.update(window(2, [5.0, 2.0, 3.0]))  # a: 0.75 + 1.25 = 2; c: its first
    assert method.weights() == pytest.approx(np.array([4, 4, 9]) / 17)
    val = mixcore.method("loss_proportional", domains=DOMAINS, source="val")
    assert val.update(mixcore.Signals(step=1, val_loss=[1, 1, 2])).tolist() == [0.25, 0.25, 0.5]


def test_loss_proportional_stays_while_all_losses_are_zero():
    method = mixcore.method("loss_proportional", domains=DOMAINS, initial=[0.5, 0.25, 0.25])
    assert method.update(window(1, [0.0, 0.0, 0.0])).tolist() == [0.5, 0.25, 0.25]
