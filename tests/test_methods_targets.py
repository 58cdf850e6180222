"""Methods that compare losses with a reference or a target: doremi, sheared, velocitune."""

import math

import numpy as np
import pytest

import mixcore

DOMAINS = [mixcore.Domain("a", 900), mixcore.Domain("b", 90), mixcore.Domain("c", 10)]


def make(name, num=2, **options):
    return mixcore.method(name, domains=DOMAINS[:num], **options)


def val(step, values, **more):
    return mixcore.Signals(step=step, val_loss=values, **more)


# DoReMi -------------------------------------------------------------------------------------------


def test_doremi_by_hand():
    """a = [1/2, 1/2], lambda = [1, 0], eta = 1, c = 0.1: a' = [e, 1] / (e + 1), then mixed."""
    method = make("doremi", c=0.1)
    got = method.update(mixcore.Signals(step=1, excess_loss=[1.0, 0.0]))
    p = 0.9 * math.e / (math.e + 1) + 0.05
    assert got == pytest.approx([p, 1 - p], rel=1e-12)
    got = method.update(mixcore.Signals(step=2, excess_loss=[0.0, 0.0]))
    assert got == pytest.approx([0.9 * p + 0.05, 0.9 * (1 - p) + 0.05], rel=1e-12)


def test_doremi_clip_per_token_is_not_clip_of_the_mean():
    """Tokens of a: excess +3 and -3; of b: +1 and +1. Per token: 1.5 > 1; of the mean: 0 < 1."""
    excess = np.array([[3.0, -3.0], [1.0, 1.0]])
    per_token = np.maximum(excess, 0).mean(axis=1)
    assert per_token.tolist() == [1.5, 1.0]
    token = make("doremi", c=0)
    by_token = token.update(mixcore.Signals(step=1, excess_loss=per_token))
    losses = mixcore.Signals(step=1, loss_sum=(2 + excess).sum(axis=1), tokens=[2, 2])
    mean = make("doremi", c=0, clip="mean", reference_loss=[2.0, 2.0])
    by_mean = mean.update(losses)
    assert by_token[0] / by_token[1] == pytest.approx(math.exp(0.5))
    assert by_mean[0] / by_mean[1] == pytest.approx(math.exp(-1.0))
    # Without a clip a mean below the reference is cut actively.
    below = mixcore.Signals(step=1, loss_sum=[2.0, 6.0], tokens=[2, 2])
    clipped = make("doremi", c=0, clip="mean", reference_loss=[2.0, 2.0]).update(below)
    plain = make("doremi", c=0, clip="none", reference_loss=[2.0, 2.0]).update(below)
    assert clipped[1] / clipped[0] == pytest.approx(math.e)
    assert plain[1] / plain[0] == pytest.approx(math.e**2)


def test_doremi_average():
    """Paper: the mean over updates; code: the initial weights are one more."""
    rows = [[1.0, 0.0], [0.0, 0.5], [0.2, 0.2]]
    paper = make("doremi", initial=[0.9, 0.1])
    code = make("doremi", initial=[0.9, 0.1], variant="code", output="average")
    assert paper.average().tolist() == [0.9, 0.1]
    seen = []
    for step, row in enumerate(rows):
        signals = mixcore.Signals(step=step, excess_loss=row)
        seen.append(paper.update(signals))
        assert paper.average() == pytest.approx(np.mean(seen, axis=0))
        assert code.update(signals) == pytest.approx(np.mean([[0.9, 0.1], *seen], axis=0))


def test_doremi_scores_of_absent_domains():
    method = make("doremi", 3, c=0)
    first = method.update(mixcore.Signals(step=1, excess_loss=[1.0, 3.0, np.nan]))
    assert first[2] == pytest.approx(1 / (math.exp(-1) + math.exp(1) + 1))  # the mean of 1 and 3
    code = make("doremi", 3, c=0, initial_score=10.0)
    first = code.update(mixcore.Signals(step=1, excess_loss=[1.0, 3.0, np.nan]))
    assert first[2] / first[1] == pytest.approx(math.exp(7))
    second = code.update(mixcore.Signals(step=2, excess_loss=[np.nan, 0.0, 0.0]))
    assert second[0] / second[1] == pytest.approx(first[0] / first[1] * math.e)  # 1 once more


def test_doremi_zero_scores_may_count_as_absent():
    options = {"clip": "mean", "reference_loss": [1.0, 1.0], "source": "val", "c": 0}
    for reuse, gain in ((True, 2.0), (False, 1.0)):
        method = make("doremi", reuse_zero=reuse, **options)
        method.update(val(1, [2.0, 1.5]))
        got = method.update(val(2, [1.0, 1.5]))
        assert got[0] / got[1] == pytest.approx(math.exp(gain - 1.0))


def test_doremi_keeps_every_domain_above_the_smoothing():
    method = make("doremi", 3)
    for step in range(200):
        got = method.update(mixcore.Signals(step=step, excess_loss=[5.0, 0.0, 0.0]))
    assert 1e-3 / 3 <= got.min() < 4e-4


# Sheared-LLaMA ------------------------------------------------------------------------------------


def test_sheared_by_hand_clip_on_and_off():
    """Delta = [1, -0.5]: with the clip b only loses by the normalisation, without it is cut."""
    options = {"initial": [0.4, 0.6], "reference_loss": [2.0, 2.0]}
    paper = make("sheared", **options).update(val(1, [3.0, 1.5]))
    assert paper[0] / paper[1] == pytest.approx(0.4 / 0.6 * math.e)
    bare = make("sheared", clip=False, **options).update(val(1, [3.0, 1.5]))
    assert bare[0] / bare[1] == pytest.approx(0.4 / 0.6 * math.exp(1.5))
    code = make("sheared", variant="code", **options).update(val(1, [3.0, 1.5]))
    assert code == pytest.approx((1 - 1e-4) * bare + 1e-4 / 2, rel=1e-12)
    half = make("sheared", eta=0.5, c=0.2, **options).update(val(1, [3.0, 1.5]))
    odds = 0.4 / 0.6 * math.exp(0.5)
    assert half[0] == pytest.approx(0.8 * odds / (1 + odds) + 0.1)


def test_sheared_other_update_types():
    options = {"initial": [0.4, 0.6], "reference_loss": [2.0, 2.0]}
    bandit = make("sheared", update_type="bandit", **options).update(val(1, [3.0, 1.5]))
    assert bandit[0] / bandit[1] == pytest.approx(math.exp(1.4 - 0.6))
    assert make("sheared", update_type="constant", **options).update(
        val(1, [3.0, 1.5])
    ).tolist() == [0.4, 0.6]


def test_sheared_targets_above_the_current_losses():
    """Every domain has reached its target: with the clip nothing moves any more."""
    method = make("sheared", initial=[0.4, 0.6], reference_loss=[2.0, 2.0])
    for step in range(5):
        assert method.update(val(step, [1.0, 0.5])) == pytest.approx([0.4, 0.6])
    bare = make("sheared", clip=False, initial=[0.4, 0.6], reference_loss=[2.0, 2.0])
    assert bare.update(val(1, [1.0, 0.5]))[0] > 0.4


def test_sheared_with_an_exhausted_domain():
    """A domain whose cap is reached has its share given to the others, not drawn again."""
    domains = [mixcore.Domain("a", 10_000), mixcore.Domain("b", 100, max_epochs=1)]
    ledger = mixcore.Ledger(domains, [0.5, 0.5], batch_size=20, on_cap="redistribute")
    method = mixcore.method("sheared", domains=domains, reference_loss=[1.0, 1.0])
    sampler = mixcore.Sampler(ledger)
    position = 0
    for step in range(1, 20):  # b stays far above its target, so its weight keeps rising
        weights = method.update(val(step, [1.0, 3.0]))
        position = ledger.append(position + 20, weights, reason="sheared")
    assert weights[1] > 0.99
    assert sampler.counts(position + 2_000).tolist() == [position + 2_000 - 100, 100]


def test_sheared_reference_from_the_signals():
    method = make("sheared", initial=[0.4, 0.6])
    assert method.needs == ("val_loss", "reference_loss")
    got = method.update(val(1, [3.0, 1.5], reference_loss=[2.0, 2.0]))
    assert got[0] / got[1] == pytest.approx(0.4 / 0.6 * math.e)
    train = make("sheared", source="train", reference_loss={"a": 2.0, "b": 2.0})
    got = train.update(mixcore.Signals(step=1, loss_sum=[30.0, 15.0], tokens=[10, 10]))
    assert got[0] / got[1] == pytest.approx(math.e)


# Velocitune ---------------------------------------------------------------------------------------


def test_velocitune_by_hand():
    """From 4 to 2: at 3 half the way is left; from 3 to 1: at 1.5 a quarter."""
    method = make("velocitune", target_loss=[2.0, 1.0])
    first = method.update(val(0, [4.0, 3.0]))
    assert first == pytest.approx([0.5, 0.5])  # all the way to go for both
    got = method.update(val(1, [3.0, 1.5]))
    assert got[0] / got[1] == pytest.approx(math.exp(0.5 - 0.25))
    again = method.update(val(2, [1.0, 9.0]))  # below the target: 0; above the start: 1
    assert again[0] / again[1] == pytest.approx(math.exp(0.25 - 1))
    bare = make("velocitune", target_loss=[2.0, 1.0], initial_loss=[4.0, 3.0], clip=False, eta=2)
    got = bare.update(val(2, [1.0, 9.0]))
    assert got[0] / got[1] == pytest.approx(math.exp(2 * (-0.5 - 4)))


def test_velocitune_with_no_way_to_go():
    """It starts at its target: V is 1 above it and 0 at or below it, never 0 / 0."""
    method = make("velocitune", target_loss=[2.0, 2.0], initial_loss=[2.0, 2.0])
    assert method.update(val(1, [2.0, 1.0])) == pytest.approx([0.5, 0.5])
    got = method.update(val(2, [2.5, 2.0]))
    assert got[0] / got[1] == pytest.approx(math.e)


def test_velocitune_smoothing_and_signals():
    method = make("velocitune", c=0.5)
    assert method.needs == ("val_loss", "target_loss")
    for step in range(300):
        got = method.update(val(step, [4.0 - 0.01 * step, 4.0], target_loss=[0.5, 1.0]))
    assert 0.25 <= got[0] < 0.5 < got[1] <= 0.75
