"""The controller: what it measures, what it decides, when it takes effect, what it refuses."""

import itertools
import json

import numpy as np
import pytest
from controlled import BATCH, NUM, Hedge, domains_of, losses_of, make, train

import mixcore
from mixcore.controller import default_lag
from mixcore.guards import Floor, MaxChange, RepeatCap

# One rank ----------------------------------------------------------------------------------------


def test_decides_at_every_multiple_and_takes_effect_after_the_lag():
    controller = make(update_every=5, lag_steps=3)
    made = train(controller, 0, 20)
    wanted = [(s + 3) * BATCH if s % 5 == 0 else None for s in range(1, 21)]
    assert made == wanted
    assert [p.start for p in controller.ledger.pieces] == [0] + [w for w in wanted if w]
    # d3 has the highest loss: its weight grows with every decision
    weights = [(p.shares / 2.0**62)[3] for p in controller.ledger.pieces]
    assert weights[1:] == sorted(weights[1:])


def test_update_every_is_the_methods_own_by_default():
    assert make().update_every == 5
    assert make().lag_steps == 1
    assert make(num_workers=3, prefetch_factor=4, micro_batches=5).lag_steps == 4
    assert default_lag(4, 2, 4) == 3
    assert default_lag(0) == 1


def test_signals_are_those_of_the_window():
    controller = make(update_every=4, lag_steps=2)
    sampler = mixcore.Sampler(controller.ledger)
    train(controller, 0, 12)
    for i, s in enumerate(controller.method.seen):
        positions = np.arange(i * 4 * BATCH, (i + 1) * 4 * BATCH)
        domains = sampler.at(positions).domain
        losses, tokens = losses_of(positions, domains)
        assert s.step == 4 * (i + 1)
        assert s.draws.tolist() == np.bincount(domains, minlength=NUM).tolist()
        assert s.total_draws.tolist() == sampler.counts((i + 1) * 4 * BATCH).tolist()
        assert s.tokens.tolist() == np.bincount(domains, tokens, NUM).tolist()
        assert s.loss_sum == pytest.approx(np.bincount(domains, losses, NUM), abs=1e-4)
        last = controller.ledger.weights_at((i + 1) * 4 * BATCH - 1)
        assert s.weights.tolist() == last.tolist()


def test_what_is_recorded(tmp_path):
    path = tmp_path / "log" / "decisions.jsonl"
    controller = make(update_every=5, lag_steps=1, log=path)
    train(controller, 0, 10)
    decision = controller.ledger.decisions[1]
    assert decision.author == "mixcore.hedge"
    assert decision.reason.startswith(
        "hedge at step 5: d3 0.1>0.2862 (loss 3.895), d0 0.4>0.2142 ("
    )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in lines] == [5, 10]
    first = lines[0]
    assert first["position"] == 5 * BATCH
    assert first["effective"] == 6 * BATCH
    assert first["before"] == [0.4, 0.3, 0.2, 0.1]
    assert first["weights"] == first["proposed"]
    assert first["weights"] == pytest.approx(controller.ledger.weights_at(6 * BATCH))
    assert first["loss"] == controller.method.seen[0].loss.tolist()
    assert lines[1]["digest"] == controller.ledger.digest
    assert lines[1]["decided"] is True


def test_the_reason_stays_short_and_survives_the_file(tmp_path):
    domains = [mixcore.Domain(f"d{i}", 10) for i in range(300)]
    ledger = mixcore.Ledger(domains, np.ones(300), batch_size=BATCH)
    controller = mixcore.Controller(ledger, Hedge(domains), 1)
    controller.observe([7], [9.0], [1])
    controller.step(BATCH)
    reason = ledger.decisions[-1].reason
    assert "d7 0.003333>" in reason
    assert reason.endswith("and 292 more")
    assert len(reason) < 400
    ledger.save(tmp_path / "ledger.json")
    assert mixcore.Ledger.load(tmp_path / "ledger.json").decisions[-1].reason == reason


def test_no_change_is_no_decision(tmp_path):
    domains = [mixcore.Domain("a", 10), mixcore.Domain("b", 10)]
    plan = mixcore.method("schedule", domains=domains, points=[(0, [1, 1]), (3, [2, 1])])
    ledger = mixcore.Ledger(domains, [1, 1], batch_size=8)
    controller = mixcore.Controller(ledger, plan, 1, lag_steps=2, log=tmp_path / "log")
    assert [controller.step(8 * i) for i in range(1, 6)] == [None, None, 40, None, None]
    lines = [json.loads(x) for x in (tmp_path / "log").read_text().splitlines()]
    assert [r["decided"] for r in lines] == [False, False, True, False, False]


def test_an_absent_domain_and_a_loss_that_is_not_finite(tmp_path):
    controller = make(update_every=1, log=tmp_path / "log")
    controller.observe([0, 1, 1], [3.0, np.nan, 2.0], [2, 2, 2])
    controller.step(BATCH)
    loss = controller.method.seen[0].loss
    assert loss[:2].tolist() == [1.5, 1.0]
    assert np.isnan(loss[2:]).all()
    record = json.loads((tmp_path / "log").read_text())
    assert record["loss"] == [1.5, 1.0, None, None]
    assert record["dropped"] == [0, 1, 0, 0]


@pytest.mark.parametrize("order", ["balanced", "megatron", "random"])
def test_every_order(order, tmp_path):
    controller = make(order, update_every=1, lag_steps=1, log=tmp_path / "log")
    train(controller, 0, 20)
    assert len(controller.ledger.decisions) == 21
    by_hand = make(order).ledger  # the same weights, appended by a person
    for line in (tmp_path / "log").read_text().splitlines():
        record = json.loads(line)
        by_hand.append(record["effective"], record["weights"])
        assert by_hand.digest == record["digest"]
    again = mixcore.Ledger.from_bytes(controller.ledger.to_bytes())
    assert again.digest == controller.ledger.digest


def test_a_batch_size_that_grows():
    controller = make(update_every=2, lag_steps=3)
    controller.ledger.append(4 * BATCH, batch_size=2 * BATCH)
    positions = [BATCH, 2 * BATCH]
    for p in positions:
        controller.observe([0], [1.0], [1])
        made = controller.step(p)
    # steps 3 and 4 are of 64, step 5 of 128 samples
    assert made == 4 * BATCH + 2 * BATCH
    with pytest.raises(ValueError, match=f"position must be {3 * BATCH}"):
        controller.step(4 * BATCH)


def test_nothing_is_decided_past_the_end():
    controller = make(update_every=1, lag_steps=3, train_samples=5 * BATCH)
    assert train(controller, 0, 5) == [4 * BATCH, None, None, None, None]
    domains = [mixcore.Domain("a", 300, max_epochs=1), mixcore.Domain("b", 10_000)]
    ledger = mixcore.Ledger(domains, [1, 0], batch_size=BATCH, on_cap="stop")
    controller = mixcore.Controller(ledger, Hedge(domains), 1, lag_steps=3)
    controller.observe([0], [1.0], [1])
    assert ledger.end()[0] == 256
    assert controller.step(BATCH) is None


@pytest.mark.parametrize("on_cap", ["redistribute", "stop"])
def test_used_up_domains_are_not_asked_for(on_cap, tmp_path):
    """256 samples of a, 4 batches: then b alone, whatever the method says."""
    domains = [mixcore.Domain("a", 4 * BATCH, max_epochs=1), mixcore.Domain("b", 10_000)]
    ledger = mixcore.Ledger(domains, [1, 0], batch_size=BATCH, on_cap=on_cap)
    ledger.append(4 * BATCH, [0, 1])
    points = [(0, [1, 0]), (7, [1, 1])]
    plan = mixcore.method("schedule", domains=domains, points=points)
    path = tmp_path / "log"
    controller = mixcore.Controller(ledger, plan, 1, lag_steps=3, log=path)
    controller.load_state_dict(controller.state_dict() | {"position": 4 * BATCH, "step": 4})
    for i in range(5, 10):
        controller.step(i * BATCH)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[0]["why"] == "all domains that it asks for are used up"
    assert records[2]["guards"] == {"used up": [0, 1]}
    assert not any(r["decided"] for r in records)
    assert ledger.weights_at(50 * BATCH).tolist() == [0, 1]


# Guards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag_steps", [1, 12])  # with 12, two decisions are pending
def test_guards(tmp_path, lag_steps):
    guards = (Floor(0.05), MaxChange(0.01))
    controller = make(update_every=5, lag_steps=lag_steps, guards=guards, log=tmp_path / "log")
    train(controller, 0, 20)
    assert len(controller.ledger.pieces) == 5
    pieces = [p.shares / 2.0**62 for p in controller.ledger.pieces]
    for before, after in itertools.pairwise(pieces):
        assert np.abs(np.log(after / before)).max() <= 0.01 + 1e-9
    record = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert set(record["guards"]) == {"Floor", "MaxChange"}
    assert record["weights"] == record["guards"]["MaxChange"]
    assert record["proposed"] != record["weights"]


def test_repeat_cap_over_a_run():
    """A method that wants the small domain only gets all of its epochs, and no more."""
    domains = [mixcore.Domain("small", 500), mixcore.Domain("large", 10**6)]
    ledger = mixcore.Ledger(domains, [0.1, 0.9], batch_size=BATCH)
    plan = mixcore.method("schedule", domains=domains, points=[(0, [1, 0])])
    steps = 500
    controller = mixcore.Controller(
        ledger, plan, 10, guards=[RepeatCap(2)], train_samples=steps * BATCH
    )
    for i in range(1, steps + 1):
        controller.step(i * BATCH)
    drawn = mixcore.Sampler(ledger).counts(steps * BATCH)
    assert 990 <= drawn[0] <= 1_001


# External ----------------------------------------------------------------------------------------


def test_external_decisions_carry_author_and_reason(tmp_path):
    path = tmp_path / "ask.json"
    domains = [mixcore.Domain("a", 10), mixcore.Domain("b", 10)]
    ledger = mixcore.Ledger(domains, [3, 1], batch_size=8)
    method = mixcore.method("external", domains=domains, path=path)
    controller = mixcore.Controller(ledger, method, lag_steps=2)
    made = []
    for i in range(1, 7):
        if i == 3:
            request = {"weights": {"a": 1, "b": 4}, "author": "ana", "reason": "more b"}
            path.write_text(json.dumps(request))
        made.append(controller.step(8 * i))
    assert made == [None, None, 40, None, None, None]
    decision = ledger.decisions[-1]
    assert decision.author == "ana"
    assert decision.reason.startswith("more b; external at step 3: a 0.75>0.2")
    assert ledger.weights_at(40) == pytest.approx([0.2, 0.8])


# The lag -----------------------------------------------------------------------------------------


def test_a_lag_too_short_is_refused():
    controller = make(update_every=1, lag_steps=1)
    controller.observe([0], [1.0], [1])
    controller.ledger.mark_fetched(4 * BATCH)
    message = (
        f"lag_steps=1 is too short: what is decided after step 1 would take effect at position "
        f"{2 * BATCH}, but rank 0 has already fetched the positions below {4 * BATCH}; this needs "
        f"lag_steps >= 3"
    )
    with pytest.raises(mixcore.LedgerError, match=message):
        controller.step(BATCH)
    assert len(controller.ledger.decisions) == 1
    right = make(update_every=1, lag_steps=3)
    right.observe([0], [1.0], [1])
    right.ledger.mark_fetched(4 * BATCH)
    assert right.step(BATCH) == 4 * BATCH


# Bad input ---------------------------------------------------------------------------------------


def test_positions():
    controller = make(update_every=5)
    with pytest.raises(
        ValueError, match=r"position must be at the end of a batch, got 65.*\[64, 128"
    ):
        controller.step(65)
    with pytest.raises(TypeError, match="position must be an integer"):
        controller.step(64.0)
    controller.step(64)
    for wrong in (64, 192, 100):
        with pytest.raises(ValueError, match=rf"position must be 128, .* \(64\), got {wrong}"):
            controller.step(wrong)
    late = make(update_every=5)  # a controller that joins a running job
    assert late.step(7 * BATCH) is None
    late.observe([0], [1.0], [1])
    assert [late.step(i * BATCH) for i in (8, 9, 10)] == [None, None, 11 * BATCH]
    assert late.method.seen[0].draws.sum() == 4 * BATCH


MIX = """
domains: [{name: a, size: 100, weight: 1}, {name: b, size: 100, weight: 1}]
batch_size: 8
train_samples: 800
method: {name: schedule, update_every: 5, lag_steps: 2, points: [[0, [1, 1]], [10, [1, 9]]]}
guards: {floor: 0.2, max_change: 1.0, repeat_cap: 20}
"""


def test_from_a_configuration(tmp_path):
    from mixcore.config import load_config

    (tmp_path / "mix.yaml").write_text(MIX)
    config = load_config(tmp_path / "mix.yaml")
    ledger = config.ledger()
    controller = mixcore.Controller.from_config(config, ledger, author="me")
    made = [controller.step(8 * i) for i in range(1, 11)]
    assert made == [None] * 9 + [12 * 8]
    # mixed with uniform, (0.1, 0.9) has the floor 0.2; a factor of e would allow 0.18
    assert ledger.weights_at(12 * 8) == pytest.approx([0.26, 0.74])
    assert ledger.decisions[-1].author == "me"
    other = mixcore.Controller.from_config(
        config, ledger, method=Hedge(ledger.domains), lag_steps=9
    )
    assert (other.method.name, other.update_every, other.lag_steps) == ("hedge", 5, 9)
    (tmp_path / "mix.yaml").write_text("\n".join(MIX.split("\n")[:4]))
    with pytest.raises(ValueError, match=r"mix.yaml has no method"):
        mixcore.Controller.from_config(load_config(tmp_path / "mix.yaml"), ledger)


class NeedsGradients(Hedge):
    """Needs what nobody observes."""

    needs = ("loss_sum", "grad_dot")


def test_supplied_signals_arrive():
    method = NeedsGradients(domains_of())
    controller = make(
        method=method,
        update_every=1,
        supply={"grad_dot": lambda: np.eye(NUM), "extra": lambda: {"a": 1}},
    )
    train(controller, 0, 1)
    assert method.seen[0].grad_dot.tolist() == np.eye(NUM).tolist()
    assert method.seen[0].extra == {"a": 1}


def test_new_domains_need_a_new_controller():
    controller = make(update_every=2)
    train(controller, 0, 1)
    controller.ledger.append(50 * BATCH, [1] * 5, add=[mixcore.Domain("new", 10)])
    with pytest.raises(ValueError, match=r"is for the domains .*, the ledger has .*'new'"):
        train(controller, 1, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"update_every": 0}, ValueError, "update_every must be in"),
        ({"lag_steps": -1}, ValueError, "lag_steps must be in"),
        ({"num_workers": -1}, ValueError, "num_workers must be in"),
        ({"prefetch_factor": 0}, ValueError, "prefetch_factor must be in"),
        ({"micro_batches": 0}, ValueError, "micro_batches must be in"),
        ({"train_samples": 0}, ValueError, "train_samples must be in"),
        ({"rank": 1}, ValueError, r"rank must be in \[0, 0\], got 1"),
        ({"world_size": 2}, ValueError, "world_size=2 needs reduce and broadcast"),
        ({"log": 3}, TypeError, "log must be a str or a Path"),
        ({"guards": [3]}, TypeError, r"guards\[0\] must be callable, got 3"),
        ({"guards": [Floor(0.3)]}, ValueError, "floor must be at most 1 / 4"),
        ({"guards": [RepeatCap(4)]}, ValueError, "needs the controller's train_samples"),
        ({"supply": {"grad": lambda: 1}}, ValueError, "supply names 'grad'; known signals"),
        ({"supply": {"weights": lambda: 1}}, ValueError, "supply names 'weights'"),
        ({"supply": {"val_loss": [1]}}, TypeError, r"supply\['val_loss'\] must be callable"),
        ({"method": 3}, TypeError, "method must be one of mixcore.method"),
        (
            {"method": NeedsGradients(domains_of())},
            ValueError,
            r"needs the signal grad_dot, which nobody supplies: .*inner products",
        ),
        (
            {"method": mixcore.method("proportional", domains=domains_of())},
            ValueError,
            "'proportional' is static",
        ),
        (
            {"method": Hedge(domains_of(3))},
            ValueError,
            r"for the domains \['d0', 'd1', 'd2'\], the ledger has",
        ),
        (
            {"method": mixcore.method("schedule", domains=domains_of(), points=[(0, [1] * 4)])},
            ValueError,
            "update_every must be given",
        ),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_a_ledger_is_needed():
    with pytest.raises(TypeError, match=r"ledger must be a mixcore\.Ledger, got 3"):
        mixcore.Controller(3, Hedge(domains_of()))
