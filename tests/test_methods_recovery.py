"""Each loss-based method on a run whose law is known: which way it moves, and what that brings.

The run: L_j = e_j + b_j (n0 + sum_i A_ij n_i)^-a_j, with n_i the samples drawn from domain i, so
the mix drives the losses. A method is judged by what its paper says it is good for.
"""

import numpy as np
import pytest

import mixcore

STEPS, BATCH, START = 300, 100, 1000.0


class Run:
    """A run that follows its law; `method` None: uniform."""

    def __init__(self, e, b, a, transfer=None):
        self.e, self.b, self.a = (np.array(x, dtype=float) for x in (e, b, a))
        self.transfer = np.eye(len(self.e)) if transfer is None else np.array(transfer, dtype=float)
        self.domains = [mixcore.Domain(f"d{i}", 10**6) for i in range(len(self.e))]

    def loss(self, n):
        return self.e + self.b * (START + n @ self.transfer) ** -self.a

    def go(self, name=None, *, steps=STEPS, every=1, noise=0.0, reference=None, **options):
        """Final losses and the mean mix of the second half."""
        method = name and mixcore.method(name, domains=self.domains, **options)
        rng = np.random.default_rng(0)
        num = len(self.e)
        n = np.zeros(num)
        mixes = []
        since = np.zeros(num)
        for step in range(1, steps + 1):
            weights = method.weights() if method else np.full(num, 1 / num)
            n += BATCH * weights
            since += BATCH * weights
            mixes.append(weights)
            if method and step % every == 0:
                loss = self.loss(n)
                seen = loss + rng.normal(0, noise, num)
                tokens = np.full(num, 100)
                draws = np.round(since * 100).astype(int)
                since[:] = 0
                more = {} if reference is None else {"excess_loss": np.maximum(loss - reference, 0)}
                method.update(
                    mixcore.Signals(
                        step=step,
                        loss_sum=seen * tokens,
                        tokens=tokens,
                        draws=draws,
                        val_loss=loss,
                        weights=weights,
                        **more,
                    )
                )
        return self.loss(n), np.mean(mixes[steps // 2 :], axis=0)


@pytest.fixture
def slow_and_fast():
    """Equal floors; d0 has far more to learn than d1 and d2."""
    return Run(e=[2.0, 2.0, 2.0], b=[60.0, 6.0, 6.0], a=[0.4, 0.4, 0.4])


def test_the_run_follows_its_law(slow_and_fast):
    loss, mix = slow_and_fast.go()
    n = START + STEPS * BATCH / 3
    assert loss == pytest.approx(2 + np.array([60, 6, 6]) * n**-0.4)
    assert mix == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("odm", {"variant": "paper"}),
        ("odm", {"variant": "code"}),
        ("odm", {"variant": "code_softmax"}),
        ("odm", {"variant": "exp3"}),
        ("odm", {"variant": "naive_validation"}),
        ("odm", {"variant": "ema"}),
        ("odm", {"variant": "ema_softmax"}),
        ("loss_proportional", {}),
        ("skillit", {"eta": 0.5, "graph": None}),
        ("toremi", {"variant": "code", "stage_step": STEPS}),
        ("ado", {"start_step": 50, "ignore_steps": 20, "update_interval": 50, "subsample": 1}),
    ],
)
def test_where_the_loss_can_fall_most_more_is_drawn(slow_and_fast, name, options):
    """High loss here means much to learn: the mean loss ends lower than with uniform weights."""
    if name == "ado":
        options = options | {"smooth_window": 5, "starts": 2}
    uniform, _ = slow_and_fast.go()
    loss, mix = slow_and_fast.go(name, every=10 if name == "skillit" else 1, **options)
    assert mix[0] > 1 / 3
    assert mix[1] == pytest.approx(mix[2], abs=0.02)
    assert loss.mean() < uniform.mean()
    assert loss.max() < uniform.max()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("doremi", {}),
        ("doremi", {"clip": "mean", "source": "val"}),
        ("sheared", {}),
        ("sheared", {"variant": "code"}),
        ("sheared", {"update_type": "bandit", "eta": 3.0}),
    ],
)
def test_the_worst_excess_over_the_reference_gets_smaller(name, options):
    """Group DRO: d0 is far above its reference, d1 and d2 are nearly there."""
    run = Run(e=[1.0, 2.0, 3.0], b=[60.0, 6.0, 6.0], a=[0.4, 0.4, 0.4])
    reference = run.e + 0.05
    uniform, _ = run.go()
    if name == "doremi" and not options:
        loss, mix = run.go(name, reference=reference, eta=0.1)
    elif name == "doremi":
        loss, mix = run.go(name, reference_loss=reference, eta=0.1, **options)
    else:
        loss, mix = run.go(name, reference_loss=reference, every=10, **options)
    assert (loss - reference).max() < (uniform - reference).max()
    # d2 has the highest loss but as little excess as d1: it is not what draws.
    assert mix[0] > 1 / 3 > mix[2]


def test_velocitune_brings_the_domains_to_their_targets_together():
    """d0 learns slowly: with uniform weights it lags behind the others."""
    run = Run(e=[1.0, 1.0, 1.0], b=[4.0, 4.0, 4.0], a=[0.1, 0.3, 0.3])
    begin = run.loss(np.zeros(3))
    target = run.loss(np.full(3, STEPS * BATCH * 0.8))
    uniform, _ = run.go()
    loss, mix = run.go("velocitune", every=10, target_loss=target, initial_loss=begin)
    left = (loss - target) / (begin - target)
    left_uniform = (uniform - target) / (begin - target)
    assert mix[0] > 1 / 3
    assert left.max() < left_uniform.max()
    assert np.ptp(left) < np.ptp(left_uniform)


def test_ado_is_not_drawn_to_noise_as_a_bandit_on_losses_is():
    """d0 has the highest loss and nothing to learn; d1 falls fast."""
    run = Run(e=[5.0, 2.0, 2.0], b=[0.01, 40.0, 5.0], a=[0.3, 0.35, 0.35])
    uniform, _ = run.go()
    loss, mix = run.go(
        "ado",
        start_step=50,
        ignore_steps=0,
        update_interval=100,
        subsample=2,
        starts=2,
        smooth_window=11,
        gamma2=0.5,
        noise=0.001,
    )
    assert mix[1] > mix[2] > mix[0]
    assert loss.mean() < uniform.mean()
    bandit, mix = run.go("odm", variant="code")
    assert mix[0] > mix[1]
    assert bandit.mean() > loss.mean()


def test_skillit_teaches_what_the_target_rests_on():
    """d0 helps the target d2, d1 helps nobody; the graph says so."""
    transfer = [[1, 0, 0.8], [0, 1, 0], [0, 0, 1]]
    run = Run(e=[2.0, 2.0, 2.0], b=[20.0, 20.0, 20.0], a=[0.3] * 3, transfer=transfer)
    uniform, _ = run.go()
    loss, mix = run.go("skillit", every=30, graph=transfer, targets=["d2"], eta=0.5)
    assert mix[2] > mix[0] > mix[1]
    assert loss[2] < uniform[2]
    _, mix = run.go("skillit", every=30, targets=["d2"], eta=0.5)  # no graph: the target alone
    assert mix[0] == pytest.approx(mix[1])


def test_aioli_learns_which_domain_helps_the_others():
    """d0 lowers every loss, d1 and d2 their own: the mean loss gains from d0."""
    transfer = [[1, 1, 1], [0, 1, 0], [0, 0, 1]]
    run = Run(e=[2.0, 2.0, 2.0], b=[30.0, 30.0, 30.0], a=[0.3] * 3, transfer=transfer)
    uniform, _ = run.go()
    for options in ({"one_hot_factor": 1.0}, {"one_hot_factor": 0.6, "ema": 0.3, "eta": 3.0}):
        loss, mix = run.go(
            "aioli", every=2, update_steps=60, lp_steps=2, **({"eta": 2.0} | options)
        )
        assert mix[0] > 0.4
        assert mix[1] == pytest.approx(mix[2], abs=0.05)
        assert loss.mean() < uniform.mean()


def test_toremi_drops_noise_in_its_second_stage():
    """d0 is noise: high loss, nothing to learn. From stage 1 on it fades."""
    run = Run(e=[6.0, 2.0, 2.0], b=[0.0, 20.0, 20.0], a=[0.3] * 3)
    uniform, _ = run.go()
    options = {"variant": "code", "stage_step": STEPS // 10}
    loss, mix = run.go("toremi", every=10, **options)
    assert mix[0] < 0.1
    assert loss.mean() < uniform.mean()


def test_proportional_temperature_and_unimax_against_what_they_promise():
    """UniMax ends with no domain above its epochs, and nearer to uniform than proportional."""
    domains = [mixcore.Domain("a", 10_000), mixcore.Domain("b", 1_000), mixcore.Domain("c", 100)]
    budget = 5_000
    size = np.array([d.size for d in domains])
    unimax = mixcore.method("unimax", domains=domains, budget=budget, max_epochs=2).weights()
    warm = mixcore.method("temperature", domains=domains, tau=3.33).weights()
    assert (unimax * budget / size).max() <= 2 + 1e-9
    assert (warm * budget / size).max() > 2  # temperature repeats the smallest more than that
    proportional = mixcore.method("proportional", domains=domains).weights()
    assert unimax.max() < proportional.max()
