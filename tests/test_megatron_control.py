"""How a controller goes on from a checkpoint under Megatron, without Megatron."""

import json
from argparse import Namespace

import numpy as np
import pytest

import megatron_patch
from megatron_patch import control, refusals, state, training
from megatron_patch.loader import MixSampler
from megatron_patch.request import Corpus, Request
from megatron_patch.state import Run
from mixcore import Controller, Domain, Ledger, LedgerError, method
from mixcore.errors import ArgumentError
from mixcore.trainers.settings import KnownDomain, load_settings

BATCH = 8
NAMES = ["a", "b", "c"]


def run_of(names=NAMES, present=None, resumed=None, lag=None):
    """A run whose ledger has some domains and whose command line has others."""
    present = names if present is None else present
    ledger = Ledger([Domain(n, 100) for n in names], [1.0] * len(names), batch_size=BATCH)
    corpora = tuple(Corpus(f"data/{n}", n, 1_601, 100) for n in present)
    request = Request(corpora, (1.0,) * len(present), (0.0, 1.0), 16, 0, 400, ((0, BATCH),))
    flags = Namespace(mix_method="loss_proportional", mix_update_every=1, mix_lag=lag)
    known = [KnownDomain(n, 100, 1.0) for n in present]
    settings = load_settings(flags, given={"batch_size": BATCH}, domains=known)
    return Run(request, settings, ledger, resumed)


def controller_of(run, lag, name="loss_proportional", **options):
    made = method(name, domains=run.ledger.domains)
    return Controller(run.ledger, made, update_every=1, lag_steps=lag, **options)


def observe(controller, ledger, position):
    n = len(ledger.domains)
    controller.observe(np.arange(n), np.arange(1.0, n + 1) * 10, [10] * n)
    return controller.step(position)


def checkpoint(lag=2):
    """A run's state after one update whose decision is not in force yet."""
    run = run_of()
    controller = controller_of(run, lag)
    assert observe(controller, run.ledger, BATCH) == (1 + lag) * BATCH
    saved = {"controller": controller.state_dict()}
    return json.loads(json.dumps(saved)), run.ledger


def resumed(ledger, saved, lag=None):
    run = run_of(resumed=saved, lag=lag)
    run.ledger = Ledger.from_bytes(ledger.to_bytes())
    return run


def test_the_lag_stays_or_grows_with_the_loader():
    saved, ledger = checkpoint(lag=2)
    assert control.lag(run_of(), 4, 1) == {}  # a new run: the controller's own default
    run = resumed(ledger, saved)
    assert control.lag(run, 0, 4) == {"lag_steps": 2}
    assert control.lag(run, 4, 1) == {"lag_steps": 9}
    assert control.lag(resumed(ledger, saved, lag=3), 4, 1) == {}  # given: it is up to the user


@pytest.mark.parametrize("lag", [2, 9])
def test_a_longer_lag_goes_on(lag):
    saved, ledger = checkpoint(lag=2)
    run = resumed(ledger, saved)
    controller = controller_of(run, lag)
    control.go_on(run, controller)
    assert controller.state_dict()["step"] == 1
    run.ledger.mark_fetched((2 + lag) * BATCH)  # as far ahead as this lag allows
    assert observe(controller, run.ledger, 2 * BATCH) in (None, (2 + lag) * BATCH)


@pytest.mark.parametrize("name", ["loss_proportional", "odm"])
def test_a_shorter_lag_is_refused_at_once(name):
    """Not at its first update, where a decision would be dated before one already made."""
    saved, ledger = checkpoint(lag=3)
    run = resumed(ledger, saved)
    with pytest.raises(ArgumentError, match="was 3 and is 1 now: it can grow, but not shrink"):
        control.go_on(run, controller_of(run, 1, name))


def test_new_domains_begin_the_method_anew():
    saved, _ = checkpoint()
    run = run_of([*NAMES, "d"], resumed=saved)
    controller = controller_of(run, 2)
    control.go_on(run, controller)
    assert controller.state_dict()["position"] is None
    assert observe(controller, run.ledger, 3 * BATCH) == 5 * BATCH


def test_a_domain_that_left_the_command_line_gets_no_weight():
    run = run_of(present=["a", "c"])
    controller = controller_of(run, 1, guards=control.only_present(run))
    at = observe(controller, run.ledger, BATCH)
    weights = run.ledger.weights_at(at)
    assert weights[1] == 0
    assert weights[0] > 0
    assert weights[2] > 0
    assert control.only_present(run_of()) == []


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"dataloader_type": "cyclic"}, "trained with --dataloader-type cyclic"),
        ({"phase_transition_iterations": [20]}, r"trained with --phase-transition-iterations \[20"),
    ],
)
def test_stock_runs_of_another_order_are_not_adopted(flags, reason):
    refusals.adoption(Namespace(dataloader_type="single"))
    with pytest.raises(ArgumentError, match=reason):
        refusals.adoption(Namespace(**flags))


def test_a_blend_in_a_file_is_pointed_out(caplog):
    refusals.adoption(Namespace(data_args_path="blend.txt"))
    assert "by the file blend.txt (--data-args-path)" in caplog.text


@pytest.mark.parametrize("order", ["balanced", "megatron"])
def test_going_back_to_stock(order):
    """Possible where stock reads the same samples: order megatron, weights that never changed."""
    ledger = Ledger([Domain("a", 9), Domain("b", 9)], [1, 1], batch_size=BATCH, order=order)

    def saved():
        return json.dumps({"ledger": ledger.to_bytes().decode()})

    refusals.without_flags(None, 80)  # a checkpoint of stock Megatron
    if order == "megatron":
        refusals.without_flags(saved(), 80)
        ledger.append(40, weights=[1, 2])
    with pytest.raises(LedgerError, match=f"order '{order}'.*give the flags again"):
        refusals.without_flags(saved(), 80)
    refusals.without_flags(saved(), 0)


def test_a_train_loader_that_is_not_ours():
    ours = MixSampler(run_of(), 400, 0, 2, 0, 1)
    assert refusals.foreign(None) is None
    assert refusals.foreign(Namespace(batch_sampler=ours, dataset=[])) is None
    wrong = refusals.foreign(Namespace(batch_sampler=[[0]], dataset=[1, 2]))
    assert "returned a list instead" in str(wrong)


def test_a_method_option_alone_is_a_flag():
    assert training.mixes(Namespace(mix_method_option=["gamma=1"]))
    assert not training.mixes(Namespace(mix_method_option=None))


def test_undo_forgets_the_run():
    state.plan_with(lambda builder: run_of())
    state.begin(run_of())
    megatron_patch.undo()
    assert state.current() is None
    assert state._planner is None
