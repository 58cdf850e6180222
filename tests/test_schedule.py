import numpy as np
import pytest
from conftest import make_ledger

import mixcore
from mixcore import linear, piecewise


def test_piecewise():
    ledger = make_ledger(
        2, batch_size=100, schedule=piecewise([(1_000, [1, 0]), (1_950, [0, 1], 50)])
    )
    assert [p.start for p in ledger.pieces] == [0, 1_000, 2_000]  # 1,950 is rounded up
    assert [p.batch_size for p in ledger.pieces] == [100, 100, 50]
    assert ledger.weights_at(1_999).tolist() == [1, 0]
    assert ledger.weights_at(2_000).tolist() == [0, 1]


def test_batch_sizes_alone():
    ramp = piecewise([(0, [1, 3], 8), (80, None, 16), (240, None, 32)])
    ledger = mixcore.Ledger(
        [mixcore.Domain("a", 9), mixcore.Domain("b", 9)], batch_size=4, schedule=ramp
    )
    assert [(p.start, p.batch_size) for p in ledger.pieces] == [(0, 8), (80, 16), (240, 32)]
    assert all(ledger.weights_at(p).tolist() == [0.25, 0.75] for p in (0, 100, 1_000))


def test_linear_is_exact_at_its_points_and_straight_between():
    ledger = make_ledger(
        2, batch_size=10, schedule=linear([(1_000, [1, 0]), (3_000, [0, 1])], every=20)
    )
    starts = [p.start for p in ledger.pieces]
    assert starts == [0, *range(1_000, 3_000, 200), 3_000]
    for piece in ledger.pieces[1:]:
        want = 1 - (piece.start - 1_000) / 2_000
        assert ledger.weights_at(piece.start) == pytest.approx([want, 1 - want], abs=1e-15)
        assert sum(piece.shares.tolist()) == 1 << 62
    assert ledger.weights_at(10**9).tolist() == [0, 1]


def test_linear_in_order_megatron():
    ledger = make_ledger(
        2, order="megatron", batch_size=10, schedule=linear([(0, [1, 0]), (100, [0, 1])], every=1)
    )
    assert ledger.pieces[5].floats == pytest.approx([0.5, 0.5])
    assert mixcore.Sampler(ledger).counts(100).sum() == 100
    assert mixcore.Ledger.from_bytes(ledger.to_bytes()).digest == ledger.digest


def test_tokens():
    points = [(2_048_000, [1, 1])]
    in_tokens = make_ledger(2, tokens_per_sample=2_048, schedule=piecewise(points, unit="tokens"))
    in_samples = make_ledger(2, schedule=piecewise([(1_000, [1, 1])]))
    assert [p.start for p in in_tokens.pieces] == [p.start for p in in_samples.pieces] == [0, 1_024]
    with pytest.raises(ValueError, match="unit 'tokens' needs the ledger's tokens_per_sample"):
        make_ledger(2, schedule=piecewise(points, unit="tokens"))


def test_json_forms():
    by_name = {"d0": 0.2, "d1": 0.8}
    forms = [
        piecewise([(640, by_name)]),
        {"points": [{"at": 640, "weights": by_name}]},
        {"kind": "piecewise", "unit": "positions", "points": [[640, [0.2, 0.8]]]},
        [{"at": 640, "weights": [0.2, 0.8]}],
    ]
    assert len({make_ledger(2, schedule=form).digest for form in forms}) == 1


def test_survives_saving_and_appending(tmp_path):
    schedule = linear([(1_000, [1, 0, 0]), (9_000, [0, 1, 1])], every=5)
    ledger = make_ledger(3, schedule=schedule)
    ledger.save(tmp_path / "l")
    again = mixcore.Ledger.load(tmp_path / "l")
    assert again.digest == ledger.digest
    with pytest.raises(mixcore.LedgerError, match="dated before the one already decided"):
        again.append(2_000, [1, 1, 1])
    at = again.append(2_000, [1, 1, 1], replace_future=True)
    assert again.digest_at(at) == ledger.digest_at(at)
    assert again.pieces[-1].start == at
    again.append(at + 640, schedule=piecewise([(at + 6_400, [0, 0, 1])]))
    assert again.weights_at(at + 700) == pytest.approx([1 / 3] * 3)
    assert again.weights_at(at + 6_400).tolist() == [0, 0, 1]
    again.save(tmp_path / "l")
    third = mixcore.Ledger.load(tmp_path / "l")
    assert third.digest == again.digest
    assert np.array_equal(
        mixcore.Sampler(third).picks(0, 20_000).sample,
        mixcore.Sampler(again).picks(0, 20_000).sample,
    )


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        ({"kind": "cosine", "points": [[0, [1, 1]]]}, ValueError, "schedule.kind must be one of"),
        ({"points": []}, ValueError, "schedule.points must not be empty"),
        ({"points": "x"}, TypeError, "schedule.points must be a list, got 'x'"),
        ({"pts": []}, ValueError, r"schedule has unknown keys \['pts'\]"),
        ([(5, [1, 1]), (5, [1, 2])], ValueError, r"points\[1\].at must be greater than 5, got 5"),
        ([(5.5, [1, 1])], TypeError, r"points\[0\].at must be an integer, got 5.5"),
        ([(5, None)], ValueError, r"points\[0\] needs weights"),
        ([(5, [1, 1], 0)], ValueError, r"points\[0\].batch_size must be in .*, got 0"),
        ([(5, [1, 1, 1])], ValueError, r"points\[0\].weights must have one entry a domain"),
        ([{"at": 5, "weigths": [1, 1]}], ValueError, r"points\[0\] must have the keys at, weights"),
        ([7], TypeError, r"points\[0\] must be \(at, weights\), got 7"),
        ({"points": [[0, [1, 1]]], "unit": "steps"}, ValueError, "schedule.unit must be one of"),
        (
            {"kind": "linear", "points": [[0, [1, 1]]], "every": 0},
            ValueError,
            "schedule.every must",
        ),
        ({"kind": "linear", "points": [[0, [1, 1], 8]]}, ValueError, "piecewise schedules only"),
    ],
)
def test_bad_input(schedule, error, message):
    with pytest.raises(error, match=message) as caught:
        make_ledger(2, schedule=schedule)
    assert isinstance(caught.value, mixcore.MixcoreError)


def test_weights_may_be_left_out_only_if_the_schedule_begins_at_0():
    domains = [mixcore.Domain("a", 9), mixcore.Domain("b", 9)]
    mixcore.Ledger(domains, batch_size=4, schedule=[(0, [1, 1])])
    for schedule in ([(4, [1, 1])], None, [(0, None, 8)]):
        with pytest.raises(
            ValueError, match="weights must be given unless the schedule begins at 0"
        ):
            mixcore.Ledger(domains, batch_size=4, schedule=schedule)


def test_a_schedule_too_long_for_a_ledger_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr("mixcore.ledger.MAX_SHARES", 1_000)
    with pytest.raises(mixcore.LedgerError, match="at most 1000 shares in all, got 1002"):
        make_ledger(2, schedule=linear([(0, [1, 0]), (10**12, [0, 1])], every=1))


def test_a_schedule_whose_points_share_a_large_batch_goes_on_forwards():
    ledger = make_ledger(2, batch_size=512)
    ledger.append(0, schedule=[(10, [1, 0], 8), (20, [0, 1]), (521, [1, 1])])
    assert [p.start for p in ledger.pieces] == [0, 512, 528]
    assert ledger.weights_at(512).tolist() == [0, 1]
