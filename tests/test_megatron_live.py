"""What the Megatron patch does beside a training step, without Megatron."""

import json
import logging
from functools import partial

import numpy as np
import pytest
import torch

from megatron_patch.live import Live
from mixcore import Controller, Domain, Ledger, LedgerError, Sampler, method
from mixcore.errors import ArgumentError
from mixcore.ranks import Ranks

DOMAINS = [Domain("a", 100), Domain("b", 50), Domain("c", 30)]
MICRO, WORLD, TOKENS, BATCH = 2, 2, 5, 12  # three micro-batches a rank


def new_ledger():
    return Ledger(DOMAINS, [0.5, 0.3, 0.2], batch_size=BATCH, seed=3)


def live_of(ledger, rank=0, controller=None, **changes):
    options = {
        "observes": True,
        "micro_batch_size": MICRO,
        "data_parallel": (rank, WORLD),
        "log_interval": 2,
        "log": None,
    }
    return Live(ledger, Ranks(0, 1, None, None), controller, **{**options, **changes})


def loss_func(loss_mask, output):
    return (output.view(-1) * loss_mask.view(-1)).sum()


def step(live, consumed, losses, mask, passes=1, wrap=partial):
    """A training step as Megatron makes it: `passes` runs of the schedule, the last one counts."""
    micro_batches = iter(())

    def forward_step(data_iterator, model):
        number = next(micro_batches)
        return losses[number], wrap(loss_func, mask[number])

    live.before(consumed, len(losses))
    wrapped = live.forward_step(forward_step)

    def schedule():
        for _ in range(len(losses)):
            output, loss = wrapped(None, None)
            loss(output)

    for _ in range(passes):
        micro_batches = iter(range(len(losses)))
        live.forward_backward(schedule)()


def numbers(seed=0):
    random = np.random.default_rng(seed)
    losses = torch.from_numpy(random.random((3, MICRO, TOKENS)).astype(np.float32))
    mask = torch.from_numpy((random.random((3, MICRO, TOKENS)) < 0.7).astype(np.float32))
    return losses, mask


def expected(ledger, rank, losses, mask):
    """Sums by domain, one sample after the other."""
    domains = Sampler(ledger).picks(0, BATCH).domain.reshape(3, WORLD, MICRO)[:, rank]
    sums, tokens = np.zeros(3), np.zeros(3, np.int64)
    for m in range(3):
        for i in range(MICRO):
            d = domains[m, i]
            sums[d] += float((losses[m, i].double() * mask[m, i]).sum())
            tokens[d] += int(mask[m, i].sum())
    return sums, tokens


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("passes", [1, 3])
def test_losses_go_to_the_domains_of_their_samples(rank, passes):
    ledger = new_ledger()
    seen = []
    live = live_of(ledger, rank, log_interval=1, log=lambda scalars, it: seen.append((it, scalars)))
    losses, mask = numbers()
    step(live, 0, losses, mask, passes)
    live.after(1)
    sums, tokens = expected(ledger, rank, losses, mask)
    ((iteration, scalars),) = seen
    assert iteration == 1
    for number, domain in enumerate(DOMAINS):
        if tokens[number]:
            mean = sums[number] / tokens[number]
            assert scalars[f"mix/loss/{domain.name}"] == pytest.approx(mean, abs=1e-6)
        else:
            assert f"mix/loss/{domain.name}" not in scalars
    assert scalars["mix/weight/a"] == 0.5
    assert sum(scalars[f"mix/share/{d.name}"] for d in DOMAINS) == pytest.approx(1)
    counts = Sampler(ledger).counts(BATCH)
    assert scalars["mix/epoch/c"] == counts[2] / 30


def test_a_mask_inside_partials_of_partials():
    ledger = new_ledger()
    logged = []
    live = live_of(ledger, log_interval=1, log=lambda scalars, it: logged.append(scalars))

    def around(inner, training, output):
        return inner(output)

    def nested(function, mask):
        return partial(around, partial(function, mask), True)

    losses, mask = numbers()
    step(live, 0, losses, mask, wrap=nested)
    live.after(1)
    sums, tokens = expected(ledger, 0, losses, mask)
    largest = int(tokens.argmax())
    name = DOMAINS[largest].name
    assert logged[0][f"mix/loss/{name}"] == pytest.approx(sums[largest] / tokens[largest], abs=1e-6)


def test_a_controller_decides_from_what_was_observed():
    ledger = new_ledger()
    build = method("loss_proportional", domains=DOMAINS)
    controller = Controller(ledger, build, update_every=2, lag_steps=1)
    live = live_of(ledger, controller=controller)
    for number in range(2):
        step(live, number * BATCH, *numbers(number))
        live.after(number + 1)
    assert [p.start for p in ledger.pieces] == [0, 3 * BATCH]
    assert live.state_dict()["position"] == 2 * BATCH
    assert live_of(ledger).state_dict() is None


def test_a_step_without_a_finite_loss_decides_nothing(tmp_path):
    ledger = new_ledger()
    build = method("loss_proportional", domains=DOMAINS)
    log = tmp_path / "log.jsonl"
    controller = Controller(ledger, build, update_every=1, lag_steps=1, log=log)
    live = live_of(ledger, controller=controller)
    losses, mask = numbers()
    for number, wrong in enumerate((float("nan"), 1.0, float("inf"))):
        step(live, number * BATCH, losses * wrong, mask)
        live.after(number + 1)
    assert [p.start for p in ledger.pieces] == [0, 3 * BATCH]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r["decided"] for r in records] == [False, True, False]
    assert records[0]["why"] == "no loss was finite"
    assert sum(records[0]["dropped"]) == 6


def test_skipped_iterations_without_a_loss_leave_an_update_out():
    ledger = new_ledger()
    build = method("loss_proportional", domains=DOMAINS)
    controller = Controller(ledger, build, update_every=2, lag_steps=1)
    live = live_of(ledger, controller=controller)
    for number in range(6):
        skipped = number in (0, 1, 3)  # nothing before the first update, half before the second
        if skipped:
            live.before(number * BATCH, 3)
        else:
            step(live, number * BATCH, *numbers(number))
        live.after(number + 1, skipped=skipped)
    assert [p.start for p in ledger.pieces] == [0, 5 * BATCH, 7 * BATCH]
    assert live.state_dict()["step"] == 6


def test_ranks_that_do_not_observe_step_all_the_same():
    ledger = new_ledger()
    live = live_of(ledger, observes=False)
    step(live, 0, *numbers())
    live.after(1)
    assert live._pending == []


def test_a_step_that_is_not_the_ledgers():
    live = live_of(new_ledger())
    with pytest.raises(LedgerError, match=r"train on 8 samples from position 0, .*\[0, 12"):
        live.before(0, 2)
    with pytest.raises(LedgerError, match=r"12 samples from position 4, .*\[0, 12\)"):
        live.before(4, 3)


def test_losses_that_cannot_be_told_apart(caplog):
    """No mask of the output's size: said once; an error if the method needs losses."""
    losses, mask = numbers()
    whole = [m.sum() for m in mask]
    live = live_of(new_ledger())
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            step(live, number * BATCH, losses, whole)
            live.after(number + 1)
    assert len([r for r in caplog.records if "mix/loss is not logged" in r.message]) == 1
    ledger = new_ledger()
    build = method("loss_proportional", domains=DOMAINS)
    controller = Controller(ledger, build, update_every=1)
    with pytest.raises(ArgumentError, match="'loss_proportional' needs them"):
        step(live_of(ledger, controller=controller), 0, losses, whole)


def test_packed_sequences_are_not_taken_for_samples(caplog):
    losses, mask = numbers()
    packed, flat = losses.reshape(3, 1, -1), mask.reshape(3, 1, -1)
    live = live_of(new_ledger())
    with caplog.at_level(logging.WARNING):
        step(live, 0, packed, flat)
    assert live._pending == []
    assert "mix/loss is not logged" in caplog.text
