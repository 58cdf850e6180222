"""dga, doge, grape, pike, rb, tikmix: known answers, computed by hand."""

import math

import numpy as np
import pytest

from mixcore import Domain, Signals, method
from mixcore.methods.pike import estimate

DOMAINS = [Domain(name, 100) for name in ("web", "code", "math")]
NAN = math.nan


def domains(n):
    return [Domain(f"d{i}", 100) for i in range(n)]


def soft(x):
    e = np.exp(np.array(x) - np.max(x))
    return e / e.sum()


# DoGE -----------------------------------------------------------------------------------------

DOT = np.array([[4.0, 1.0, -3.0], [1.0, 9.0, 2.0], [-3.0, 2.0, 16.0]])


def test_doge_sums_over_the_others():
    m = method("doge", domains=DOMAINS, mu=0.5, lr=0.25)
    # W = (1 - 3, 1 + 2, -3 + 2); exponent 0.25 W / 0.5
    np.testing.assert_allclose(
        m.update(Signals(step=0, grad_dot=DOT)), soft([-1.0, 1.5, -0.5]), rtol=1e-14
    )
    # and it multiplies on
    np.testing.assert_allclose(
        m.update(Signals(step=1, grad_dot=DOT)), soft([-2.0, 3.0, -1.0]), rtol=1e-14
    )


def test_doge_of_the_program_keeps_its_own_and_clips_at_zero():
    m = method("doge", domains=DOMAINS, variant="code", mu=0.5, lr=0.25, dw_max=1.2)
    # row sums (2, 12, 15), mean norm (2 + 3 + 4) / 3 = 3; 15 / 3 is clipped to 1.2 and so is 12 / 3
    scores = np.clip(0.25 * np.array([2.0, 12.0, 15.0]) / (3.0 + 1e-6), 0.0, 0.25 * 1.2)
    np.testing.assert_allclose(
        m.update(Signals(step=0, grad_dot=DOT)), soft(scores / 0.5), rtol=1e-14
    )


def test_doge_self_term_and_clip_make_a_difference_each():
    def out(**options):
        m = method("doge", domains=DOMAINS, mu=0.5, lr=0.25, **options)
        return m.update(Signals(step=0, grad_dot=DOT))

    np.testing.assert_allclose(out(self_term=True), soft([1.0, 6.0, 7.5]), rtol=1e-14)
    # negative alignment is erased: the first and the last are told apart no more
    clipped = out(clip=True)
    np.testing.assert_allclose(clipped, soft([0.0, 1.5, 0.0]), rtol=1e-14)
    assert clipped[0] == clipped[2]
    assert out()[0] < out()[2]


def test_doge_out_of_domain_and_average_and_smoothing_and_the_signalled_rate():
    m = method(
        "doge", domains=DOMAINS, target="out-of-domain", mu=1.0, lr=9.0, reweight_eps=0.3,
        output="average",
    )  # fmt: skip
    target = np.array([[1.0, 1.0], [0.5, -0.5], [-1.0, 0.0]])
    first = 0.7 * soft([1.0, 0.0, -0.5]) + 0.1
    signals = Signals(step=0, grad_target=target, extra={"lr": 0.5})
    np.testing.assert_allclose(m.update(signals), first, rtol=1e-14)
    second = 0.7 * soft(np.log(first) + np.array([1.0, 0.0, -0.5])) + 0.1
    np.testing.assert_allclose(m.update(signals), (first + second) / 2, rtol=1e-14)
    np.testing.assert_allclose(m.average(), (first + second) / 2, rtol=1e-14)


def test_doge_absent_domain_keeps_its_last_products():
    m = method("doge", domains=DOMAINS, mu=0.5, lr=0.25)
    m.update(Signals(step=0, grad_dot=DOT))
    partly = DOT.copy()
    partly[2, :] = partly[:, 2] = NAN
    np.testing.assert_allclose(
        m.update(Signals(step=1, grad_dot=partly)), soft([-2.0, 3.0, -1.0]), rtol=1e-14
    )


def test_never_measured_keeps_its_weight_exactly():
    partly = DOT.copy()
    partly[2, :] = partly[:, 2] = NAN
    initial = [0.5, 0.25, 0.25]
    m = method("doge", domains=DOMAINS, mu=0.5, lr=0.25, initial=initial)
    weights = m.update(Signals(step=0, grad_dot=partly))
    assert weights[2] == pytest.approx(0.25, rel=1e-14)
    g = method("dga", domains=DOMAINS, initial=initial, beta=0.0)
    weights = g.update(Signals(step=0, grad_target=[1.0, 2.0, NAN]))
    assert weights[2] == pytest.approx(0.25, rel=1e-14)
    np.testing.assert_allclose(
        weights[:2], 0.75 * soft(np.log([0.5, 0.25]) + np.array([1.0, 2.0])), rtol=1e-13
    )


# DGA ------------------------------------------------------------------------------------------


def test_dga_moving_average_and_what_it_is_fed():
    a = np.array([1.0, 0.0, -1.0])
    ema = method("dga", domains=DOMAINS, eta=2.0, beta=0.75)
    last = method("dga", domains=DOMAINS, eta=2.0, beta=0.75, feedback="last")
    one = 0.75 / 3 + 0.25 * soft(2 * a)
    for m in (ema, last):
        np.testing.assert_allclose(m.update(Signals(step=0, grad_target=a)), one, rtol=1e-14)
    np.testing.assert_allclose(
        ema.update(Signals(step=1, grad_target=a)),
        0.75 * one + 0.25 * soft(np.log(one) + 2 * a),
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        last.update(Signals(step=1, grad_target=a[:, None])),
        0.75 * one + 0.25 * soft(4 * a),
        rtol=1e-14,
    )


def test_dga_over_a_basis_of_distributions():
    basis = [[2.0, 2.0, 0.0], [0.0, 1.0, 3.0]]
    m = method("dga", domains=DOMAINS, basis=basis, beta=0.0, initial_w=[1.0, 3.0])
    p = np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    np.testing.assert_allclose(m.weights(), [0.25, 0.75] @ p)
    a = np.array([1.0, 2.0, -1.0])
    w = soft(np.log([0.25, 0.75]) + p @ a)
    np.testing.assert_allclose(m.update(Signals(step=0, grad_target=a)), w @ p, rtol=1e-14)
    measured = Signals(step=1, grad_target=a, extra={"grad_basis": [0.0, 5.0]})
    w = soft(np.log(w) + np.array([0.0, 5.0]))
    np.testing.assert_allclose(m.update(measured), w @ p, rtol=1e-14)


# GRAPE ----------------------------------------------------------------------------------------

TARGET = np.array([[1.0, -2.0], [0.5, 3.0], [2.0, 0.0]])
LOSSES = np.array([2.0, 4.0])


def grape_signals(step=0, **extra):
    return Signals(step=step, grad_target=TARGET, extra={"target_losses": LOSSES, **extra})


def test_grape_map_is_simultaneous_as_in_the_paper():
    m = method("grape", domains=DOMAINS, lr=0.1, mu_alpha=0.2, mu_z=0.05)
    per_task = TARGET / LOSSES
    alpha = soft(0.1 / 0.2 * per_task @ [0.5, 0.5])
    z = soft(-0.1 / 0.05 * np.full(3, 1 / 3) @ per_task)
    np.testing.assert_allclose(m.update(grape_signals()), alpha, rtol=1e-14)
    np.testing.assert_allclose(m.task_weights(), z, rtol=1e-14)
    alpha2 = soft(np.log(alpha) + 0.5 * per_task @ z)
    z2 = soft(np.log(z) - 2.0 * alpha @ per_task)
    np.testing.assert_allclose(m.update(grape_signals(1)), alpha2, rtol=1e-14)
    np.testing.assert_allclose(m.task_weights(), z2, rtol=1e-14)


def test_grape_order_periods_and_plain_gradients():
    per_task = TARGET
    m = method(
        "grape", domains=DOMAINS, variant="map_gap", lr=0.1, mu_alpha=0.2, mu_z=0.05,
        order="alpha first", z_every=2, num_batches=4.0, initial_z=[0.25, 0.75],
    )  # fmt: skip
    plain = Signals(step=0, grad_target=TARGET)
    alpha = soft(4 * 0.5 * per_task @ [0.25, 0.75])
    np.testing.assert_allclose(m.update(plain), alpha, rtol=1e-14)
    np.testing.assert_allclose(m.task_weights(), [0.25, 0.75], rtol=1e-14)
    alpha2 = soft(np.log(alpha) + 4 * 0.5 * per_task @ [0.25, 0.75])
    np.testing.assert_allclose(m.update(plain), alpha2, rtol=1e-14)
    np.testing.assert_allclose(
        m.task_weights(), soft(np.log([0.25, 0.75]) - 4 * 2.0 * alpha2 @ per_task), rtol=1e-13
    )


def test_grape_map_ema_normalises_the_two_halves_differently():
    m = method("grape", domains=DOMAINS, variant="map_ema", lr=0.1, mu_alpha=0.2, mu_z=0.05)
    alpha = m.update(grape_signals())
    np.testing.assert_allclose(alpha, soft(0.5 * (TARGET / LOSSES) @ [0.5, 0.5]), rtol=1e-14)
    z = m.task_weights()
    later = Signals(step=1, grad_target=TARGET, extra={"target_losses": [1.0, 1.0]})
    ema = 0.9 * LOSSES + 0.1
    m.update(later)
    np.testing.assert_allclose(
        m.task_weights(), soft(np.log(z) - 2.0 * (alpha @ TARGET) / ema), rtol=1e-13
    )


def test_grape_sampled_takes_the_products_as_they_are():
    m = method("grape", domains=DOMAINS, estimate="sampled", lr=0.1, mu_alpha=0.2, mu_z=0.05)
    signals = Signals(step=0, extra={"mix_target": [1.0, 2.0, 3.0], "mix_train": [0.5, -0.5]})
    np.testing.assert_allclose(m.update(signals), soft([0.5, 1.0, 1.5]), rtol=1e-14)
    np.testing.assert_allclose(m.task_weights(), soft([-1.0, 1.0]), rtol=1e-14)


def test_grape_weighs_up_the_task_that_improves_least():
    m = method("grape", domains=domains(2), lr=1.0, mu_alpha=10.0, mu_z=10.0)
    for step in range(200):  # task 0 is helped by domain 0 only, task 1 by both
        m.update(
            Signals(
                step=step,
                grad_target=[[1.0, 1.0], [0.0, 1.0]],
                extra={"target_losses": [1.0, 1.0]},
            )
        )
    assert m.task_weights()[0] > 0.6
    assert m.weights()[0] > 0.9


# PiKE -----------------------------------------------------------------------------------------


def test_pike_rule():
    m = method("pike", domains=DOMAINS, batch_size=8, zeta1=0.5, zeta2=2.0)
    norm2, var = np.array([4.0, 1.0, 2.0]), np.array([16.0, 0.0, 8.0])
    signals = Signals(step=0, grad_norm2=norm2, grad_var=var)
    scores = 0.5 * norm2 - 2.0 / 16.0 * var
    np.testing.assert_allclose(m.update(signals), soft(scores), rtol=1e-14)
    np.testing.assert_allclose(m.update(signals), soft(2 * scores), rtol=1e-14)


def test_balanced_pike_tilts_by_the_loss():
    norm2, var = np.array([4.0, 1.0, 2.0]), np.array([16.0, 0.0, 8.0])
    loss = np.array([2.0, 3.0, 2.5])
    y = 1.5 * soft(1.5 * loss)
    for power in (1, 2):
        m = method("pike", domains=DOMAINS, batch_size=8, tau=1.5, y_power=power)
        got = m.update(
            Signals(step=0, grad_norm2=norm2, grad_var=var, loss_sum=loss * 10, tokens=[10] * 3)
        )
        np.testing.assert_allclose(got, soft((norm2 - var / 16) * y**power), rtol=1e-13)
    val = method("pike", domains=DOMAINS, batch_size=8, tau=1.5, losses="val")
    got = val.update(Signals(step=0, grad_norm2=norm2, grad_var=var, val_loss=loss))
    np.testing.assert_allclose(got, soft((norm2 - var / 16) * y**2), rtol=1e-13)


def test_pike_estimator_by_hand_and_unbiased():
    # two micro-batches of 3 samples: mean (2, 0), sum of squares 2
    norm2, var = estimate([[1.0, 0.0], [3.0, 0.0]], samples=3)
    assert var == 3 * 2.0 / 1
    assert norm2 == 4.0 - 6.0 / 6
    rng = np.random.default_rng(0)
    mean, sigma, s, runs = np.array([0.3, -0.4, 0.0]), 2.0, 4, 20_000
    batches = mean + rng.normal(0, sigma / math.sqrt(s), (runs, 5, 3))
    both = np.array([estimate(b, s) for b in batches])
    error = both.std(axis=0) / math.sqrt(runs)
    # |mean|^2 = 0.25, the variance of a sample's gradient 3 sigma^2 = 12
    assert (np.abs(both.mean(axis=0) - [0.25, 12.0]) < 4 * error).all()
    # the plain |mean of batches|^2 is far off: 0.25 + 12 / 20
    plain = (batches.mean(axis=1) ** 2).sum(axis=1).mean()
    assert plain == pytest.approx(0.85, abs=0.03)


# R&B ------------------------------------------------------------------------------------------


def test_rb_overwrites_with_a_softmax():
    count = np.array([2, 4, 8])
    sums = DOT * np.outer(count, count)
    p_eval = np.array([0.5, 0.25, 0.25])
    gain = DOT @ p_eval
    want = soft(3.0 * gain / np.linalg.norm(gain))
    m = method("rb", domains=DOMAINS, p_eval=p_eval)
    for step in range(3):  # no memory: three times the same
        got = m.update(Signals(step=step, grad_dot=sums, samples=count))
        np.testing.assert_allclose(got, want, rtol=1e-13)
    # products of means are G already, and signals that say so are believed
    means = Signals(step=3, grad_dot=DOT, samples=count, extra={"gradients": "mean"})
    np.testing.assert_allclose(m.update(means), want, rtol=1e-13)
    appendix = method("rb", domains=DOMAINS, p_eval=p_eval, normalise=False, eta=0.1, lam=2.0)
    np.testing.assert_allclose(appendix.update(means), soft(0.2 * gain), rtol=1e-13)


def test_rb_absent_domains_and_zero_gradients():
    m = method("rb", domains=DOMAINS, initial=[0.2, 0.3, 0.5], gradients="mean")
    partly = DOT.copy()
    partly[2, :] = partly[:, 2] = NAN
    got = m.update(Signals(step=0, grad_dot=partly))
    assert got[2] == pytest.approx(0.5, rel=1e-15)
    gain = partly[:2, :2].sum(axis=1)
    np.testing.assert_allclose(got[:2], 0.5 * soft(3 * gain / np.linalg.norm(gain)), rtol=1e-13)
    before = m.weights()
    np.testing.assert_allclose(
        m.update(Signals(step=1, grad_dot=np.zeros((3, 3)))), before, rtol=1e-15
    )


def test_rb_needs_samples_for_sums():
    m = method("rb", domains=DOMAINS)
    with pytest.raises(ValueError, match="samples"):
        m.update(Signals(step=0, grad_dot=DOT))


# TiKMiX ---------------------------------------------------------------------------------------


def test_tikmix_without_spread_is_a_softmax():
    # alpha = 0, no binding constraint: beta gain.w + gamma H(w) is largest at the softmax of
    # beta gain / gamma
    s = np.array([[1.0, 2.0, 4.0]])
    m = method("tikmix", domains=DOMAINS, influence=s, alpha=0.0, beta=2.0, gamma=1.0)
    np.testing.assert_allclose(m.weights(), soft(2.0 * s[0] / 4.0), atol=1e-6)


def test_tikmix_never_makes_a_task_worse():
    s = np.array([[3.0, 0.0, 0.1], [0.0, 3.0, 0.1], [0.5, 0.2, 0.1]])
    prior = np.array([0.05, 0.9, 0.05])
    m = method("tikmix", domains=DOMAINS, initial=prior, alpha=0.0)
    got = m.update(Signals(step=0, extra={"influence": s}))
    assert (s @ got >= s @ prior - 1e-5).all()
    free = soft((s / s.max(axis=1, keepdims=True)).sum(axis=0))
    assert (s @ free < s @ prior).any()  # the constraint is what holds it
    grid = np.random.default_rng(0).dirichlet(np.ones(3), 200_000)
    ok = (grid @ s.T >= s @ prior).all(axis=1)

    def objective(w):
        return -(w @ (s / s.max(axis=1, keepdims=True)).T).sum(-1) + (w * np.log(w)).sum(-1)

    assert objective(got) <= objective(grid[ok]).min() + 1e-3


def test_tikmix_evens_out_tasks_and_takes_gradient_products():
    s = np.array([[2.0, 0.2, 0.2], [0.1, 1.0, 0.1]])
    gain = s / s.max(axis=1, keepdims=True)
    uneven = method("tikmix", domains=DOMAINS, influence=s, alpha=0.0).weights()
    even = method("tikmix", domains=DOMAINS, influence=s, alpha=5.0).weights()
    assert (gain @ even).std() < (gain @ uneven).std() + 1e-9
    m = method("tikmix", domains=DOMAINS, source="grad_target", alpha=5.0)
    np.testing.assert_allclose(m.update(Signals(step=0, grad_target=s.T)), even, atol=1e-6)


def test_tikmix_refuses_what_would_turn_a_sign():
    s = [[-1.0, -2.0, -3.0]]
    with pytest.raises(ValueError, match="reward harm"):
        method("tikmix", domains=DOMAINS, influence=s)
    harm = method("tikmix", domains=DOMAINS, influence=s, normalise="abs").weights()
    assert harm[0] > harm[1] > harm[2]
