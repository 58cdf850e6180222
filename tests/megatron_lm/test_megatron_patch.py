"""megatron_patch on real Megatron training: what every rank fetched, against what it must have."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from megatron_expected import (
    StockOrder,
    check_nothing_lost,
    expected_balanced,
    ledger_of,
)
from megatron_runs import SEQUENCE, start, train, write_corpus

from mixcore import Sampler

KEYS = ("tokens", "labels", "loss_mask", "position_ids", "dataset_id")
MEGATRON_ORDER = ["--mix-order", "megatron"]
LAYOUTS = {
    "dp1": (1, []),
    "dp2": (2, []),
    "tp2": (2, ["--tensor-model-parallel-size", "2"]),
    "pp2": (2, ["--pipeline-model-parallel-size", "2"]),
}
BEFORE, AFTER = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "data", [5_000, 3_000, 2_000])


@pytest.fixture(scope="module")
def stock(corpus, tmp_path_factory):
    return train(tmp_path_factory.mktemp("stock") / "run", corpus)


def write_yaml(path, **body):
    path.write_text(json.dumps(body))  # JSON is YAML
    return ["--mix-config", str(path)]


def saved(folder):
    return ["--save", str(folder), "--load", str(folder), "--save-interval", "1000"]


def by_name(weights):
    return {f"domain{i}": w for i, w in enumerate(weights)}


def check_both_ends(run):
    """All ranks that read data fetched the same as the others at their place."""
    for rank in run.ranks:
        first = next(r for r in run.ranks if (r.tp, r.pp, r.dp) == (0, 0, rank.dp))
        if rank.fetches:
            for key in KEYS:
                assert (rank.samples(key) == first.samples(key)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_megatron_with_constant_weights_is_stock(stock, corpus, tmp_path, layout):
    ranks, flags = LAYOUTS[layout]
    run = train(
        tmp_path / "run",
        corpus,
        ranks=ranks,
        flags=[*flags, *MEGATRON_ORDER, "--num-workers", "2"],
        patched=True,
    )
    for key in KEYS:
        assert (run.positions(key) == stock.positions(key)).all()
    check_both_ends(run)
    if layout == "dp1":
        assert run.logged == stock.logged


def test_several_epochs_and_no_weights_are_stock_too(corpus, tmp_path):
    """More than one epoch of every domain, shuffled together; and the sizes as weights."""
    for name, size, iterations in (("epochs", [600, 500, 400], 60), ("sizes", None, 40)):
        small = corpus if size is None else write_corpus(tmp_path / "small", size)
        blend = [str(p) for p in small.prefixes]
        flags = ["--data-path", *blend] if name == "sizes" else []
        plain = train(tmp_path / f"{name}0", small, iterations=iterations, flags=flags)
        run = train(
            tmp_path / f"{name}1",
            small,
            iterations=iterations,
            flags=[*flags, *MEGATRON_ORDER],
            patched=True,
        )
        for key in KEYS:
            assert (run.positions(key) == plain.positions(key)).all(), name


@pytest.mark.parametrize(
    ("workers", "layout"), [(0, "dp1"), (1, "pp2"), (4, "dp2"), (4, "pp2"), (1, "tp2")]
)
def test_a_method_changes_the_weights_live(corpus, tmp_path, workers, layout):
    """Order balanced; a change every third step, at a lag that holds for 4 workers too."""
    ranks, flags = LAYOUTS[layout]
    points = [[3 * k, by_name(BEFORE if k % 2 else AFTER)] for k in range(1, 17)]
    method = {"name": "schedule", "points": points, "update_every": 3, "lag_steps": 5}
    config = write_yaml(tmp_path / "mix.yaml", method=method)
    checkpoint = tmp_path / "checkpoint"
    run = train(
        tmp_path / "run",
        corpus,
        ranks=ranks,
        flags=[*flags, *config, "--num-workers", str(workers), *saved(checkpoint)],
        patched=True,
    )
    ledger = ledger_of(checkpoint)
    assert len(ledger.pieces) > 10
    positions = run.positions()
    assert (positions == expected_balanced(ledger, corpus, len(positions), SEQUENCE)).all()
    check_nothing_lost(ledger, len(positions))
    check_both_ends(run)
    domains = np.stack([run.positions("dataset_id")])
    assert (domains == Sampler(ledger).picks(0, len(positions)).domain).all()


def test_order_megatron_changes_live_and_goes_on_in_its_own_order(corpus, tmp_path):
    """A change at iteration 20: domain 2 grows past what Megatron had built for it."""
    small = write_corpus(tmp_path / "data", [5_000, 3_000, 700])
    points = [[18, by_name([0.1, 0.2, 0.7])]]
    method = {"name": "schedule", "points": [[0, by_name(BEFORE)], *points], "lag_steps": 2}
    config = write_yaml(
        tmp_path / "mix.yaml", order="megatron", method={**method, "update_every": 1}
    )
    checkpoint = tmp_path / "checkpoint"
    run = train(tmp_path / "run", small, flags=[*config, *saved(checkpoint)], patched=True)
    ledger = ledger_of(checkpoint)
    assert [p.start for p in ledger.pieces] == [0, 20 * 8]
    positions = run.positions()
    picks = Sampler(ledger).picks(0, len(positions))
    check_nothing_lost(ledger, len(positions))
    assert (run.positions("dataset_id") == picks.domain).all()
    built = ledger.notes["megatron"]["built"]
    beyond = 0
    for number, prefix in enumerate(small.prefixes):
        requested, _, samples = built[f"domain{number}"]
        order = StockOrder(tmp_path / "run" / "cache", prefix, requested, SEQUENCE)
        assert len(order) == samples
        rows = positions[picks.domain == number]
        draws = picks.draw[picks.domain == number]
        for draw, row in zip(draws.tolist(), rows, strict=True):
            if draw < samples:
                assert (row == order[draw]).all()
        after = rows[draws >= samples]
        beyond += len(after)
        size = ledger.domains[number].size
        for epoch in range(0, len(after), size):  # whole epochs of their own, nothing twice
            part = after[epoch : epoch + size]
            assert len(np.unique(part[:, 0])) == len(part)
    assert beyond > 50


def test_control_file(corpus, tmp_path):
    """A person writes weights while the run goes on; they are in force once, on every rank."""
    control = tmp_path / "control.json"
    checkpoint = tmp_path / "checkpoint"
    flags = ["--mix-control", str(control), "--mix-update-every", "2", "--num-workers", "1"]
    running = start(
        tmp_path / "run",
        corpus,
        ranks=2,
        iterations=120,
        flags=[*flags, *LAYOUTS["pp2"][1], *saved(checkpoint)],
        patched=True,
    )
    running.wait_for("iteration       10/")
    request = {"weights": by_name([0.0, 0.4, 0.6]), "author": "ana", "reason": "more of two"}
    (tmp_path / "new").write_text(json.dumps(request))
    os.replace(tmp_path / "new", control)
    run = running.wait()
    ledger = ledger_of(checkpoint)
    start_0, changed = ledger.pieces
    assert ledger.decisions[1].author == "ana"
    assert "more of two" in ledger.decisions[1].reason
    assert start_0.start == 0
    assert changed.start > 80
    positions = run.positions()
    assert (positions == expected_balanced(ledger, corpus, len(positions), SEQUENCE)).all()
    assert not (corpus.domain(positions[changed.start :]) == 0).any()  # weight 0
    check_both_ends(run)


def test_killed_and_resumed_elsewhere_is_the_uninterrupted_run(corpus, tmp_path):
    """SIGKILL at 2 ranks with 2 workers each, resumed at 1 without; decisions not yet in force."""
    points = [[0, BEFORE], [100, AFTER], [165, [0.3, 0.3, 0.4]], [330, BEFORE]]
    schedule = [{"at": at, "weights": by_name(w)} for at, w in points]
    config = write_yaml(tmp_path / "mix.yaml", schedule=schedule)
    whole = train(tmp_path / "whole", corpus, flags=config, patched=True)
    folder = tmp_path / "checkpoint"
    save = ["--save", str(folder), "--load", str(folder), "--save-interval", "10"]
    running = start(
        tmp_path / "first",
        corpus,
        ranks=2,
        flags=[*config, *save, "--num-workers", "2"],
        patched=True,
    )
    running.wait_for("iteration       24/")
    running.kill()
    tracker = folder / "latest_checkpointed_iteration.txt"
    done = int(tracker.read_text())
    assert done in (10, 20)
    run = train(tmp_path / "second", corpus, flags=[*config, *save], patched=True)
    for key in KEYS:
        assert (run.positions(key) == whole.positions(key)[done * 8 :]).all()
    for iteration in range(done + 3, 51):
        assert run.logged[iteration] == pytest.approx(whole.logged[iteration], rel=1e-4)
    check_nothing_lost(ledger_of(folder), 400)


def test_a_stock_checkpoint_is_adopted(tmp_path):
    """Stock Megatron to iteration 20, then the patch with other weights, DP size and place."""
    folder = tmp_path / "checkpoint"
    stop = ["--exit-interval", "20"]
    corpus = write_corpus(tmp_path / "data", [5_000, 3_000, 2_000])
    train(tmp_path / "first", corpus, ranks=2, flags=[*saved(folder), *stop])
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    prefixes = tuple(p.replace("/data/", "/elsewhere/") for p in corpus.prefixes)
    corpus = replace(corpus, prefixes=prefixes)
    run = train(
        tmp_path / "second",
        corpus,
        weights=AFTER,
        flags=[*saved(folder), *MEGATRON_ORDER],
        patched=True,
    )
    ledger = ledger_of(folder)
    assert [p.start for p in ledger.pieces] == [0, 160]
    assert ledger.weights_at(0) == pytest.approx(BEFORE)
    assert ledger.weights_at(160) == pytest.approx(AFTER)
    check_nothing_lost(ledger, 400)
    picks = Sampler(ledger).picks(0, 400)
    assert (run.positions("dataset_id") == picks.domain[160:]).all()
    for number, prefix in enumerate(corpus.prefixes):
        requested, _, _ = ledger.notes["megatron"]["built"][f"domain{number}"]
        order = StockOrder(tmp_path / "second" / "cache", prefix, requested, SEQUENCE)
        here = (picks.domain[160:] == number) & (picks.draw[160:] < len(order))
        rows, draws = run.positions()[here], picks.draw[160:][here]
        assert (rows == np.stack([order[d] for d in draws.tolist()])).all()
        assert here.sum() > 40
    # And on from there, the same command line: nothing is decided again.
    again = train(
        tmp_path / "third",
        corpus,
        weights=AFTER,
        iterations=60,
        flags=[*saved(folder), *MEGATRON_ORDER, "--override-opt-param-scheduler"],
        patched=True,
    )
    assert len(ledger_of(folder).decisions) == len(ledger.decisions)
    assert len(again.positions()) == 80


def test_a_method_resumes_bit_for_bit(corpus, tmp_path):
    """Driven by losses: the same decisions with and without a stop, on the same layout."""
    method = {"name": "odm", "warmup_steps": 4, "update_every": 4, "lag_steps": 3}
    config = write_yaml(tmp_path / "mix.yaml", method=method)
    whole, parts = tmp_path / "a", tmp_path / "b"
    flags = [*LAYOUTS["pp2"][1], *config]
    run = train(tmp_path / "w", corpus, ranks=2, flags=[*flags, *saved(whole)], patched=True)
    stop = ["--exit-interval", "22"]
    train(tmp_path / "p", corpus, ranks=2, flags=[*flags, *saved(parts), *stop], patched=True)
    rest = train(tmp_path / "q", corpus, ranks=2, flags=[*flags, *saved(parts)], patched=True)
    assert (rest.positions() == run.positions()[22 * 8 :]).all()
    one, other = ledger_of(whole), ledger_of(parts)
    assert len(one.decisions) > 8
    assert one.digest == other.digest


def test_refused_flags_leave_everything_as_it_was(corpus, tmp_path):
    for flags, reason in (
        (["--dataloader-type", "cyclic"], "--dataloader-type cyclic cannot be used"),
        (["--phase-transition-iterations", "20"], "--phase-transition-iterations cannot be used"),
    ):
        with pytest.raises(AssertionError, match=reason):
            train(
                tmp_path / reason[:24].replace(" ", ""),
                corpus,
                flags=[*MEGATRON_ORDER, *flags],
                patched=True,
            )
