"""megatron_patch where batch sizes change, stages are virtual, iterations are skipped, files come
and go; and what it logs."""

import json

import numpy as np
import pytest
from megatron_expected import check_nothing_lost, expected_balanced, ledger_of
from megatron_runs import SEQUENCE, train, write_corpus
from test_megatron_patch import AFTER, BEFORE, by_name, check_both_ends, saved, write_yaml

from mixcore import Sampler


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "data", [5_000, 3_000, 2_000])


def swings(every, lag):
    """A method that goes to and fro, decided every so many steps."""
    points = [[every * k, by_name(BEFORE if k % 2 else AFTER)] for k in range(1, 30)]
    return {"name": "schedule", "points": points, "update_every": every, "lag_steps": lag}


def test_step_batch_sizes_and_a_method(corpus, tmp_path):
    """Batches of 4, 8 and 12 samples; decisions fall before, on and after the changes."""
    config = write_yaml(tmp_path / "mix.yaml", method=swings(2, 3))
    folder = tmp_path / "checkpoint"
    sizes = f"0:4 {40 * SEQUENCE}:8 {122 * SEQUENCE}:12"
    run = train(
        tmp_path / "run",
        corpus,
        ranks=2,
        iterations=None,
        global_batch=None,
        flags=[
            *["--train-samples", "300", "--lr-decay-samples", "300"],
            *["--step-batch-size-schedule", sizes],
            *[*config, *saved(folder), "--num-workers", "1"],
        ],
        patched=True,
    )
    ledger = ledger_of(folder)
    samples = len(run.positions())
    assert [ledger.batch_at(p)[1] for p in (0, 36, 40, 120, 128, 200)] == [4, 4, 8, 8, 12, 12]
    assert len({tuple(p.shares.tolist()) for p in ledger.pieces}) > 1
    assert (run.positions() == expected_balanced(ledger, corpus, samples, SEQUENCE)).all()
    assert samples >= 300 - 12
    check_nothing_lost(ledger, ledger.batch_at(samples)[0])


def test_virtual_pipeline(corpus, tmp_path):
    """Two chunks on each of two stages: every chunk that reads has its own loader."""
    config = write_yaml(tmp_path / "mix.yaml", method=swings(3, 5))
    folder = tmp_path / "checkpoint"
    flags = (
        "--pipeline-model-parallel-size 2 --num-layers 4 --num-virtual-stages-per-pipeline-rank 2"
    )
    run = train(
        tmp_path / "run",
        corpus,
        ranks=2,
        iterations=20,
        flags=[*flags.split(), *config, *saved(folder), "--num-workers", "2"],
        patched=True,
    )
    ledger = ledger_of(folder)
    assert len(ledger.pieces) > 3
    assert (run.positions() == expected_balanced(ledger, corpus, 160, SEQUENCE)).all()
    check_both_ends(run)


def test_skipped_iterations_are_consumed(corpus, tmp_path):
    config = write_yaml(tmp_path / "mix.yaml", method=swings(3, 5))
    folder = tmp_path / "checkpoint"
    skip = ["--iterations-to-skip", "6", "7", "12"]
    run = train(
        tmp_path / "run",
        corpus,
        iterations=20,
        flags=[*skip, *config, *saved(folder)],
        patched=True,
    )
    ledger = ledger_of(folder)
    kept = [i for i in range(20) if i + 1 not in (6, 7, 12)]
    rows = expected_balanced(ledger, corpus, 160, SEQUENCE).reshape(20, 8, SEQUENCE)[kept]
    assert (np.concatenate([run.at(i + 1) for i in kept]) == rows.reshape(-1, SEQUENCE)).all()
    assert len(ledger.pieces) > 3


def test_files_that_come_and_go(corpus, tmp_path):
    """A new domain at one resume; at the next, one that is no longer on the command line."""
    folder = tmp_path / "checkpoint"
    flags = [*saved(folder), "--mix-order", "balanced"]
    first = corpus.prefixes[:2]
    data = ["--data-path", "0.6", first[0], "0.4", first[1]]
    train(tmp_path / "a", corpus, flags=[*flags, *data, "--exit-interval", "10"], patched=True)
    stop = ["--exit-interval", "20"]
    train(tmp_path / "b", corpus, flags=[*flags, *stop], patched=True)
    data = ["--data-path", "0.5", corpus.prefixes[0], "0.5", corpus.prefixes[2]]
    run = train(tmp_path / "c", corpus, flags=[*flags, *data], patched=True)
    ledger = ledger_of(folder)
    assert [d.name for d in ledger.domains] == ["domain0", "domain1", "domain2"]
    assert [p.start for p in ledger.pieces] == [0, 80, 160]
    assert ledger.weights_at(300) == pytest.approx([0.5, 0.0, 0.5])
    rows = expected_balanced(ledger, corpus, 400, SEQUENCE)
    assert (run.positions() == rows[160:]).all()
    check_nothing_lost(ledger, 400)


def test_a_method_where_files_come_and_go(corpus, tmp_path):
    """A new domain: the method begins anew. A missing one: it could be given weight; refused."""
    folder = tmp_path / "checkpoint"
    flags = ["--mix-method", "odm", "--mix-method-option", "warmup_steps=2"]
    flags = [*flags, "--mix-update-every", "2", *saved(folder)]
    first = ["--data-path", "0.6", corpus.prefixes[0], "0.4", corpus.prefixes[1]]
    train(tmp_path / "a", corpus, flags=[*flags, *first, "--exit-interval", "10"], patched=True)
    run = train(tmp_path / "b", corpus, flags=[*flags, "--exit-interval", "30"], patched=True)
    assert "domains are new: the method 'odm' begins anew" in run.logs[0]
    ledger = ledger_of(folder)
    assert [p.start for p in ledger.pieces if p.start <= 80][-1] == 80
    assert ledger.pieces[-1].start > 100
    assert (run.positions() == expected_balanced(ledger, corpus, 240, SEQUENCE)[80:]).all()
    with pytest.raises(AssertionError, match="files of domain2 are not on the command line"):
        train(tmp_path / "c", corpus, flags=[*flags, *first], patched=True)


def test_other_training_formats_keep_the_ledger(corpus, tmp_path):
    """`torch_dist`, Megatron's default, instead of the legacy format."""
    folder = tmp_path / "checkpoint"
    config = write_yaml(tmp_path / "mix.yaml", method=swings(3, 5))
    flags = [*saved(folder), *config, "--ckpt-format", "torch_dist"]
    train(tmp_path / "a", corpus, flags=[*flags, "--exit-interval", "13"], patched=True)
    run = train(tmp_path / "b", corpus, flags=flags, patched=True)
    ledger = ledger_of(folder)
    assert (run.positions() == expected_balanced(ledger, corpus, 400, SEQUENCE)[104:]).all()


def test_logged_losses_are_the_losses(corpus, tmp_path):
    """mix/loss/<domain> in TensorBoard against what the ranks recorded, with two ranks."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = write_yaml(tmp_path / "mix.yaml", method=swings(5, 2))
    logs = tmp_path / "tensorboard"
    folder = tmp_path / "checkpoint"
    run = train(
        tmp_path / "run",
        corpus,
        ranks=2,
        iterations=20,
        flags=[*config, *saved(folder), "--tensorboard-dir", str(logs)],
        patched=True,
    )
    events = EventAccumulator(str(logs))
    events.Reload()

    def scalars(name):
        return {e.step: e.value for e in events.Scalars(name)}

    ledger = ledger_of(folder)
    picks = Sampler(ledger).picks(0, 160)
    for number in range(3):
        name = f"domain{number}"
        assert set(scalars(f"mix/loss/{name}")) == {5, 10, 15, 20}
        assert scalars(f"mix/weight/{name}")[20] == pytest.approx(ledger.weights_at(159)[number])
        counts = int((picks.domain == number).sum())
        size = ledger.domains[number].size
        assert scalars(f"mix/epoch/{name}")[20] == pytest.approx(counts / size)
        assert 0 <= scalars(f"mix/share/{name}")[20] <= 1
    for last in (5, 10, 15, 20):
        tokens = np.bincount(picks.domain[(last - 5) * 8 : last * 8], minlength=3) * SEQUENCE
        mean = sum(scalars(f"mix/loss/domain{n}")[last] * tokens[n] for n in range(3) if tokens[n])
        recorded = sum(
            x.sum for rank in run.ranks for x in rank.losses if last - 5 < x.iteration <= last
        )
        assert mean == pytest.approx(recorded, rel=1e-5)


def test_a_wrong_mix_yaml_says_all_that_is_wrong(corpus, tmp_path):
    config = write_yaml(
        tmp_path / "mix.yaml",
        method={"name": "odmm"},
        domains=[{"name": "domain9", "weight": 1}],
        batch_size=9,
    )
    with pytest.raises(AssertionError) as e:
        train(tmp_path / "run", corpus, flags=config, patched=True)
    for part in ("odmm", "domain9", "batch_size is 9, but the trainer has 8"):
        assert part in str(e.value)


def test_a_method_that_needs_gradients_is_refused(corpus, tmp_path):
    config = write_yaml(tmp_path / "mix.yaml", method={"name": "dga"})
    with pytest.raises(AssertionError, match=r"'dga' needs .*; under Megatron there are losses"):
        train(tmp_path / "run", corpus, ranks=2, flags=config, patched=True)


def test_a_checkpoint_whose_ledger_is_of_another_moment(corpus, tmp_path):
    """Both numbers are named, and nothing on disk is touched."""
    folder = tmp_path / "checkpoint"
    flags = [*saved(folder), "--mix-order", "balanced"]
    train(tmp_path / "a", corpus, flags=[*flags, "--exit-interval", "10"], patched=True)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    wrong = ["--override-ckpt-iteration", "5"]
    with pytest.raises(AssertionError, match=r"at position 80, but Megatron has consumed 40"):
        train(tmp_path / "b", corpus, flags=[*flags, *wrong], patched=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert json.loads((folder / "mixcore_ledger.json").read_text().splitlines()[0])["seed"] == 1234


def test_order_megatron_is_stock_under_step_batch_sizes(corpus, tmp_path):
    sizes = ["--step-batch-size-schedule", f"0:4 {40 * SEQUENCE}:8 {122 * SEQUENCE}:12"]
    flags = ["--train-samples", "296", "--lr-decay-samples", "296", *sizes]
    options = {"iterations": None, "global_batch": None}
    plain = train(tmp_path / "a", corpus, flags=flags, **options)
    order = ["--mix-order", "megatron"]
    run = train(tmp_path / "b", corpus, flags=[*flags, *order], patched=True, **options)
    assert (run.positions() == plain.positions()).all()


def test_a_cap_that_the_run_just_does_not_reach(corpus, tmp_path):
    """Workers fetch ahead of the last iteration, where on_cap="error" has nothing to give."""
    weights = zip(("domain0", "domain1", "domain2"), (0.77, 0.13, 0.1), strict=True)
    domains = [{"name": n, "weight": w, "max_epochs": 1 if w == 0.77 else 9} for n, w in weights]
    config = write_yaml(tmp_path / "mix.yaml", on_cap="error", domains=domains)
    run = train(tmp_path / "run", corpus, flags=[*config, "--num-workers", "4"], patched=True)
    assert len(run.positions()) == 400


def test_a_resume_with_more_workers_another_batch_size_and_a_new_domain(corpus, tmp_path):
    """Under a method, whose lag has to grow; then once more, on two ranks."""
    folder = tmp_path / "checkpoint"
    method = {"name": "odm", "warmup_steps": 2, "update_every": 2}
    flags = [*write_yaml(tmp_path / "mix.yaml", method=method), *saved(folder)]
    flags += ["--override-opt-param-scheduler"]
    two = ["--data-path", "0.6", corpus.prefixes[0], "0.4", corpus.prefixes[1]]
    stop = ["--exit-interval", "11"]
    first = train(tmp_path / "a", corpus, flags=[*flags, *two, *stop], patched=True)
    options = {"global_batch": 16, "weights": AFTER, "patched": True}
    stop = ["--exit-interval", "19", "--num-workers", "4"]
    second = train(tmp_path / "b", corpus, flags=[*flags, *stop], **options)
    flags += ["--num-workers", "3"]
    third = train(tmp_path / "c", corpus, ranks=2, iterations=30, flags=flags, **options)
    ledger = ledger_of(folder)
    positions = np.concatenate([r.positions() for r in (first, second, third)])
    assert len(positions) == 11 * 8 + 19 * 16
    assert (positions == expected_balanced(ledger, corpus, len(positions), SEQUENCE)).all()
    check_nothing_lost(ledger, len(positions))
    assert {p.batch_size for p in ledger.pieces if p.start >= 88} == {16}
    assert sum(p.start > 88 for p in ledger.pieces) > 5
