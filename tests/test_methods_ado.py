"""ADO: the fit of power laws, the policy by hand, when it fits and when it does not."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcore
from mixcore.methods import _power_law
from mixcore.methods._power_law import PowerLawFit, predicted_loss

DOMAINS = [mixcore.Domain("a", 600), mixcore.Domain("b", 300), mixcore.Domain("c", 100)]
PRIOR = np.array([0.6, 0.3, 0.1])
LAWS = np.array([[1.0, 0.5, 0.3], [2.0, 0.2, 0.02], [1.5, 0.8, 0.5]])
SHORT = {
    "start_step": 10,
    "ignore_steps": 0,
    "update_interval": 10,
    "subsample": 1,
    "smooth_window": 1,
    "min_points": 5,
    "starts": 1,
}


def make(**options):
    return mixcore.method("ado", domains=DOMAINS, **options)


def window(step, loss=(3.0, 2.5, 2.0), draws=(6, 3, 1)):
    draws = np.array(draws)
    return mixcore.Signals(step=step, loss_sum=np.array(loss) * draws, tokens=draws, draws=draws)


def with_laws(**options):
    """A method whose fit gives LAWS."""
    method = make(**(SHORT | options))
    method._fit = lambda rows: LAWS.copy()
    return method


def falling(method, steps, laws=((2.0, 8.0, 0.3), (1.8, 5.0, 0.4), (2.5, 3.0, 0.2)), noise=0.0):
    """Feed losses that follow known laws of all samples so far."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        n = (step + 1) * 1000
        loss = [e + b * n**-a + rng.normal(0, noise) for e, b, a in laws]
        weights = method.update(window(step, loss, (600, 300, 100)))
    return weights


# The fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [(2.0, 8.0, 0.3), (1.7, 20.0, 0.5), (2.5, 5.0, 0.2)])
def test_fit_recovers_a_known_law(law):
    """Exactly without noise; with 0.2 % noise within a few per cent."""
    eps, beta, alpha = law
    n = np.arange(1, 201) * 2000.0
    loss = eps + beta * n**-alpha
    fit = PowerLawFit(tol=1e-10, starts=4)
    a, e, found = fit.fit(n, loss)
    assert [np.exp(e), np.exp(a), found] == pytest.approx(law, rel=1e-3)
    noisy = loss * np.exp(np.random.default_rng(1).normal(0, 0.002, len(n)))
    a, e, found = fit.fit(n, noisy)
    assert np.exp(e) == pytest.approx(eps, rel=0.05)
    assert found == pytest.approx(alpha, rel=0.15)
    assert predicted_loss(np.array([[a, e, found]]), np.array([1e6])) == pytest.approx(
        eps + beta * 1e6**-alpha, rel=0.01
    )


@given(
    st.floats(-1, 5),
    st.floats(-1, 1.5).filter(lambda e: abs(e - 0.5) > 1e-3),  # a kink
    st.floats(0.01, 0.7),
    st.floats(0.5, 4),
)
def test_gradient_against_differences(a, e, alpha, level):
    fit = PowerLawFit()
    x = np.log(np.arange(1, 30) * 100.0)
    y = np.log(level + 0.2 * np.cos(np.arange(29)))
    law = np.array([a, e, alpha])
    value, gradient = fit.objective(law, x, y)
    for k in range(3):
        step = np.eye(3)[k] * 1e-7
        slope = (fit.objective(law + step, x, y)[0] - fit.objective(law - step, x, y)[0]) / 2e-7
        assert gradient[k] == pytest.approx(slope, abs=1e-4)
    assert np.isfinite(value)


def test_objective_by_hand():
    """One point, n = 1: ln(e^a + e^e) against ln L; Huber beyond delta is linear."""
    law = np.array([0.0, 0.0, 0.1])
    value, _ = PowerLawFit(penalties=False, huber_delta=0.5).objective(
        law, np.zeros(1), np.array([np.log(2.0) - 0.1])
    )
    assert value == pytest.approx(0.1**2 / 2)
    value, _ = PowerLawFit(penalties=False, huber_delta=0.5).objective(
        law, np.zeros(1), np.array([np.log(2.0) + 2.0])
    )
    assert value == pytest.approx(0.5 * (2.0 - 0.25))
    # alpha = 1 is 0.2 beyond its bound, a = 7 0.5, e = 0.1 is 0.4 short; and -min(alpha, 0.001).
    law = np.array([7.0, 0.1, 1.0])
    plain, _ = PowerLawFit(penalties=False).objective(law, np.zeros(1), np.zeros(1))
    value, _ = PowerLawFit().objective(law, np.zeros(1), np.zeros(1))
    assert value - plain == pytest.approx(0.2 + 0.5 + 0.4 - 0.001)


def test_penalties_hold_the_floor_of_the_loss_unless_turned_off():
    """A loss that falls to 0.8 nats: e >= 0.5 does not allow it, which is the code's choice."""
    n = np.arange(1, 101) * 1000.0
    loss = 0.8 + 10 * n**-0.4
    assert np.exp(PowerLawFit(starts=4).fit(n, loss)[1]) > 1.0
    free = PowerLawFit(starts=4, penalties=False, tol=1e-10).fit(n, loss)
    assert np.exp(free[1]) == pytest.approx(0.8, rel=0.02)
    lower = PowerLawFit(starts=4, e_min=-3, tol=1e-10).fit(n, loss)
    assert np.exp(lower[1]) == pytest.approx(0.8, rel=0.02)


def test_all_starts_find_what_the_best_few_find():
    n = np.arange(1, 41) * 1000.0
    loss = 2 + 8 * n**-0.3
    grid = ((-2.0, 1.0, 4.0), (-1.0, 0.5), (0.1, 0.5))
    few = PowerLawFit(starts=2, tol=1e-10, grid=grid).fit(n, loss)
    every = PowerLawFit(starts=None, tol=1e-10, grid=grid).fit(n, loss)
    assert few == pytest.approx(every, rel=1e-2)


# The policy ---------------------------------------------------------------------------------------


def test_policy_by_hand():
    """The steps of the code, in its order, written out; two updates after the fit."""
    method = with_laws()
    h = mean = PRIOR
    total = 0
    for step in range(13):
        draws = np.array([[6, 3, 1], [2, 2, 6]][step % 2])
        got = method.update(window(step, draws=draws))
        h = 0.9 * h + 0.1 * draws / 10
        total += 10
        if step < 10:
            assert got == pytest.approx(PRIOR)
            continue
        alpha = np.maximum(LAWS[:, 2], 0.05)
        rho = PRIOR * h**0.5 * alpha * np.exp(LAWS[:, 0]) * total ** -LAWS[:, 2] / total
        rho = np.maximum(rho / rho.sum(), 0.01)
        rho = rho / rho.sum()
        expected = 0.1 * rho + 0.9 * mean  # the old mean
        mean = (1 - 1 / (step + 1)) * mean + rho / (step + 1)
        assert got == pytest.approx(expected, rel=1e-12)


def test_n_cancels_with_one_step_size_and_not_with_own_counts():
    """With the total for all rho has no trace of n; with own counts it has 1 / n_k."""
    flat = LAWS.copy()
    flat[:, 2] = 0.0  # curves that do not depend on n: alpha~ = 0.05, L - eps = e^a
    same, own = with_laws(), with_laws(use_same_step_size=False)
    for method in (same, own):
        method._fit = lambda rows: flat.copy()
        for step in range(11):
            method.update(window(step, draws=(90, 9, 1)))
    expected = PRIOR * same._credit**0.5 * np.exp(flat[:, 0])
    few = {"gamma2": 1.0, "delta_min": 0.0}
    exact = with_laws(**few)
    exact._fit = lambda rows: flat.copy()
    by_own = with_laws(use_same_step_size=False, **few)
    by_own._fit = lambda rows: flat.copy()
    for step in range(11):
        p = exact.update(window(step, draws=(90, 9, 1)))
        q = by_own.update(window(step, draws=(90, 9, 1)))
    assert p == pytest.approx(expected / expected.sum())
    divided = expected / np.array([90, 9, 1])
    assert q == pytest.approx(divided / divided.sum())


def test_floors():
    """The code's floor ends a little below delta_min, the exact one does not."""
    laws = LAWS.copy()
    laws[0, 0] = 9.0
    for floor in ("clip", "exact"):
        method = with_laws(floor=floor, gamma2=1.0, delta_min=0.2)
        method._fit = lambda rows: laws.copy()
        for step in range(11):
            p = method.update(window(step))
        assert p.sum() == pytest.approx(1)
        if floor == "exact":
            assert p == pytest.approx([0.6, 0.2, 0.2])
        else:
            assert 0.1 < p[1:].min() < 0.2
    # 0.7 and 0.3 leave the floor behind; the third takes from both alike.
    assert make(floor="exact", delta_min=0.1)._above(np.array([0.7, 0.3, 0.0])) == pytest.approx(
        [0.63, 0.27, 0.1]
    )


def test_the_paper_variant():
    """Floor under p itself, credit and mean follow p."""
    method = with_laws(variant="paper", delta_min=0.2)
    for step in range(40):
        p = method.update(window(step))
    assert p.min() >= 0.2 * (1 - 1e-9)
    assert method.min_alpha == 0
    assert with_laws(variant="paper", floor="clip", credit="draws").floor == "clip"


def test_absent_domains_repeat_their_last_loss():
    method = make(**SHORT)
    method.update(window(0, (4.0, 2.0, 0.0), (3, 1, 0)))  # c unseen: the mean over all tokens
    method.update(window(1, (0.0, 3.0, 0.0), (0, 4, 0)))
    assert method._history.tolist() == [[4.0, 2.0, 3.5], [4.0, 3.0, 3.5]]


# When it fits -------------------------------------------------------------------------------------


def test_too_few_points_keep_the_natural_weights():
    """The released settings: at step 1000 one point is in the fit; it is not fitted."""
    method = make(start_step=500, starts=1)
    asked = []
    method._fit = lambda rows: asked.append(rows) or LAWS
    for step in range(1300):
        weights = method.update(window(step))
    assert not asked
    assert weights == pytest.approx(PRIOR)
    assert method.laws is None
    for step in range(1300, 2001):
        method.update(window(step))
    assert asked == [2001]
    assert method.laws is not None


def test_a_fit_that_fails_keeps_the_last_laws():
    method = with_laws()
    for step in range(11):
        method.update(window(step))
    method._fit = lambda rows: np.full((3, 3), np.nan)
    for step in range(11, 25):
        method.update(window(step))
    assert method.laws.tolist() == LAWS.tolist()


def test_end_to_end_the_fit_finds_the_laws_of_the_run():
    method = make(**(SHORT | {"starts": 4, "tol": 1e-10, "update_interval": 50}))
    falling(method, 101)
    found = np.stack([np.exp(method.laws[:, 1]), np.exp(method.laws[:, 0]), method.laws[:, 2]], 1)
    assert found == pytest.approx(
        np.array([(2.0, 8.0, 0.3), (1.8, 5.0, 0.4), (2.5, 3.0, 0.2)]), rel=0.02
    )


def test_smoothing_and_subsampling_see_through_noise():
    options = {"smooth_window": 31, "subsample": 2, "starts": 4, "update_interval": 150}
    method = make(**(SHORT | options | {"start_step": 150}))
    falling(method, 301, noise=0.05)
    n = np.full(3, 3e5)
    truth = [e + b * n[0] ** -a for e, b, a in ((2.0, 8.0, 0.3), (1.8, 5.0, 0.4), (2.5, 3.0, 0.2))]
    assert predicted_loss(method.laws, n) == pytest.approx(truth, rel=0.01)


def test_a_lagged_fit_is_applied_at_its_step_whenever_it_ends():
    """The thread's laws take effect at begin + lag, and are those of a fit at begin."""
    now = make(**SHORT)
    late = make(**(SHORT | {"fit_lag": 4}))
    for step in range(11):
        loss = (3 - step / 100, 2.5 - step / 50, 2 - step / 200)
        now.update(window(step, loss))
        assert late.update(window(step, loss)).tolist() == pytest.approx(PRIOR.tolist())
    for step in range(11, 14):
        assert late.update(window(step)).tolist() == pytest.approx(PRIOR.tolist())
        assert late.laws is None
    changed = late.update(window(14))
    assert late.laws.tolist() == now.laws.tolist()
    assert np.abs(changed - PRIOR).max() > 1e-4


def test_resume_while_a_fit_is_under_way():
    whole = make(**(SHORT | {"fit_lag": 4}))
    part = make(**(SHORT | {"fit_lag": 4}))
    rows = [window(s, (3 - s / 100, 2.5 - s / 50, 2 - s / 200)) for s in range(30)]
    for w in rows[:12]:
        whole.update(w)
        part.update(w)
    again = make(**(SHORT | {"fit_lag": 4}))
    again.load_state_dict(json.loads(json.dumps(part.state_dict())))
    for w in rows[12:]:
        assert again.update(w).tobytes() == whole.update(w).tobytes()


def test_an_error_in_the_thread_is_raised_where_its_result_is_due():
    method = make(**(SHORT | {"fit_lag": 2}))

    def broken(rows):
        raise ZeroDivisionError("no")

    method._fit = broken
    for step in range(12):
        method.update(window(step))
    with pytest.raises(RuntimeError, match="the fit of method 'ado' failed"):
        method.update(window(12))


def test_scipy_is_asked_for_at_construction(monkeypatch):
    monkeypatch.setattr(_power_law.importlib, "import_module", missing)
    with pytest.raises(mixcore.MixcoreError, match=r"pip install mixcore\[fit\]"):
        make()


def missing(name):
    raise ImportError(f"No module named {name!r}")


def test_open_ended_domains_need_a_prior():
    domains = [mixcore.Domain("a", None), mixcore.Domain("b", 3)]
    with pytest.raises(ValueError, match="needs a size of every domain, but 'a' has none"):
        mixcore.method("ado", domains=domains)
    assert mixcore.method("ado", domains=domains, initial=[1, 3]).weights().tolist() == [0.25, 0.75]
