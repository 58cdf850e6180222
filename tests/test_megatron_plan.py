"""What the Megatron patch plans from a command line, a stock checkpoint, or a resume."""

import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from megatron_patch import plan
from megatron_patch.request import (
    ABSENT,
    Built,
    Corpus,
    Request,
    built_by_megatron,
    domain_names,
    read_corpora,
)
from mixcore import Ledger, LedgerError, Sampler
from mixcore.errors import ArgumentError
from mixcore.indexed_writer import IndexedWriter

BATCH = 8


def request(weights=(0.5, 0.3, 0.2), tokens=(5_000, 3_000, 2_000), **changes):
    corpora = tuple(Corpus(f"data/d{i}", f"d{i}", t, (t - 1) // 16) for i, t in enumerate(tokens))
    made = Request(corpora, weights, (0.0, 1.0), 16, 1234, 400, ((0, BATCH),))
    return replace(made, **changes)


def settings(wanted, tmp_path=None, **body):
    flags = Namespace(mix_order=body.pop("order", None), mix_config=None)
    if body:
        flags.mix_config = str(tmp_path / "mix.yaml")
        (tmp_path / "mix.yaml").write_text(json.dumps(body))
    return plan.settings_for(flags, wanted)


def pieces(ledger):
    return [(p.start, p.batch_size, ledger.weights_at(p.start).tolist()) for p in ledger.pieces]


# The request ----------------------------------------------------------------------------------


def test_domain_names_are_unique_and_short():
    assert domain_names(["data/web_text_document", "a/code", "b/code", "b/code"]) == [
        "web_text_document",
        "a/code",
        "b/code",
        "b/code#2",
    ]
    assert domain_names(["web"]) == ["web"]


def test_a_domain_keeps_its_name_whatever_stands_beside_it():
    first = ["a/web", "a/code"]
    known = dict(zip(domain_names(first), first, strict=True))
    assert domain_names(["b/web", "a/web", "c/code"], known) == ["b/web", "web", "code"]
    both = ["a/web", "b/web", "b/web"]
    known = dict(zip(domain_names(both), both, strict=True))
    assert list(known) == ["a/web", "b/web", "b/web#2"]
    assert domain_names(["b/web", "b/web"], known) == ["b/web", "b/web#2"]
    assert domain_names(["a/web", "c/web"], known) == ["a/web", "c/web"]
    assert domain_names(["web", "web#2", "x/web"], {"web": "x/web"}) == [
        "web#2",
        "web#2#2",
        "web",
    ]


@pytest.mark.parametrize("split", [(0.0, 1.0), (0.0, 0.9), (0.25, 0.6)])
def test_corpora_are_counted_as_megatron_counts(tmp_path, split):
    lengths = np.random.default_rng(3).integers(1, 40, size=57)
    with IndexedWriter(tmp_path / "web", np.uint16) as writer:
        for length in lengths:
            writer.add_document([1] * int(length))
    begin, end = (round(edge * 57.0) for edge in split)
    tokens = int(lengths[begin:end].sum())
    (corpus,) = read_corpora([str(tmp_path / "web")], split, 16)
    assert (corpus.tokens, corpus.samples) == (tokens, (tokens - 1) // 16)
    assert corpus.name == "web"
    with pytest.raises(ArgumentError, match=f"has {tokens} tokens .* not one sample"):
        read_corpora([str(tmp_path / "web")], split, tokens)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="--data-path: nowhere"):
        read_corpora(["nowhere"], (0.0, 1.0), 16)


def by_counting(requested, tokens, sequence):
    """GPTDataset._get_num_epochs, one epoch at a time."""
    epochs = 1
    while requested is not None and epochs * tokens < requested * sequence + 1:
        epochs += 1
    return Built(requested, epochs, (epochs * tokens - 1) // sequence)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (7.0, 1.0, 1e-9), (0.0, 1.0, 1.0), None])
@pytest.mark.parametrize("samples", [1, 400, 12_345])
def test_sizes_are_those_that_megatron_builds(weights, samples):
    wanted = request(weights, tokens=(500, 333, 4_000), train_samples=samples)
    built = built_by_megatron(wanted)
    for corpus, one in zip(wanted.corpora, built, strict=True):
        assert one == by_counting(one.requested, corpus.tokens, 16)
    if weights is None:
        assert [b.requested for b in built] == [None] * 3
    else:
        share = np.array(weights) / np.sum(weights)
        least = np.ceil(samples * share)
        assert (np.array([b.requested for b in built]) >= least).all()
        assert (np.array([b.requested for b in built]) <= least * 1.005 + 1).all()


def test_a_single_corpus_is_built_to_size():
    assert built_by_megatron(request(None, tokens=(500,)))[0].requested == 400


# A new run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["balanced", "megatron"])
def test_a_new_run(order):
    wanted = request()
    ledger = plan.new_ledger(wanted, settings(wanted, order=order))
    assert pieces(ledger) == [(0, BATCH, pytest.approx([0.5, 0.3, 0.2]))]
    assert (ledger.seed, ledger.order, ledger.tokens_per_sample) == (1234, order, 16)
    assert [d.size for d in ledger.domains] == [c.samples for c in wanted.corpora]
    assert ledger.notes["megatron"]["prefixes"]["d1"] == "data/d1"
    assert ("built" in ledger.notes["megatron"]) == (order == "megatron")
    again = Ledger.from_bytes(ledger.to_bytes())
    assert again.notes == ledger.notes


def test_sizes_as_weights_are_normalised_once():
    """Where twice would be another last bit, stock Megatron decides by the once divided sizes."""
    for tokens in ((4_801, 3_217, 1_601), (5_009, 4_003, 7), (999, 333, 111)):
        wanted = request(None, tokens=tuple(t * 16 for t in tokens))
        ledger = plan.new_ledger(wanted, settings(wanted, order="megatron"))
        sizes = np.array([c.samples for c in wanted.corpora], dtype=np.float64)
        assert (ledger.piece_at(0).floats == sizes / np.sum(sizes)).all()


@pytest.mark.parametrize("order", ["balanced", "megatron"])
def test_step_batch_sizes_among_scheduled_weights(tmp_path, order):
    wanted = request(batch_sizes=((0, 4), (40, 8), (122, 12)))
    schedule = [{"at": 40, "weights": [1, 1, 2]}, {"at": 100, "weights": [1, 2, 1]}]
    ledger = plan.new_ledger(wanted, settings(wanted, tmp_path, schedule=schedule, order=order))
    assert [p[:2] for p in pieces(ledger)] == [(0, 4), (40, 8), (104, 8), (128, 12)]
    assert [p[2] for p in pieces(ledger)[1:]] == [
        pytest.approx([0.25, 0.25, 0.5]),
        pytest.approx([0.25, 0.5, 0.25]),
        pytest.approx([0.25, 0.5, 0.25]),
    ]
    assert Ledger.from_bytes(ledger.to_bytes()).digest == ledger.digest


def test_a_linear_schedule_and_step_batch_sizes_are_refused(tmp_path):
    wanted = request(batch_sizes=((0, 4), (40, 8)))
    points = [{"at": 0, "weights": [1, 1, 2]}, {"at": 80, "weights": [1, 2, 1]}]
    linear = {"kind": "linear", "every": 2, "points": points}
    with pytest.raises(ArgumentError, match="linear schedule cannot be combined"):
        plan.new_ledger(wanted, settings(wanted, tmp_path, schedule=linear))


def test_contradictions_with_megatrons_own_flags(tmp_path):
    wanted = request()
    with pytest.raises(ArgumentError, match="seed is 7, but --seed is 1234"):
        settings(wanted, tmp_path, seed=7)
    with pytest.raises(ArgumentError, match="use --step-batch-size-schedule"):
        settings(wanted, tmp_path, schedule=[{"at": 8, "batch_size": 16}])
    with pytest.raises(ArgumentError, match="batch_size is 9, but the trainer has 8"):
        settings(wanted, tmp_path, batch_size=9)


# A resumed one ----------------------------------------------------------------------------------


def resumed(ledger, before, now, consumed, order="balanced", tmp_path=None, **body):
    """The ledger after a resume with another command line."""
    asked = json.loads(json.dumps(plan.asked(before, settings(before, order=order))))
    after = Ledger.from_bytes(ledger.to_bytes())
    plan.continue_with(after, now, settings(now, tmp_path, order=order, **body), consumed, asked)
    return Ledger.from_bytes(after.to_bytes())


@pytest.mark.parametrize("order", ["balanced", "megatron"])
def test_the_same_command_line_decides_nothing(order, tmp_path):
    wanted = request(batch_sizes=((0, 4), (40, 8)))
    ledger = plan.new_ledger(wanted, settings(wanted, order=order))
    ledger.append(48, [1, 1, 1])  # a method's
    after = resumed(ledger, wanted, wanted, 80, order)
    assert after.to_bytes() == ledger.to_bytes()


@pytest.mark.parametrize("order", ["balanced", "megatron"])
def test_other_weights_are_in_force_from_there_on(order):
    before, now = request(), request((0.0, 1.0, 3.0))
    ledger = plan.new_ledger(before, settings(before, order=order))
    after = resumed(ledger, before, now, 80, order)
    assert pieces(after)[1:] == [(80, BATCH, pytest.approx([0, 0.25, 0.75]))]
    assert after.decisions[-1].author == "megatron command line"
    assert after.digest_at(80) == ledger.digest_at(80)
    if order == "megatron":
        assert after.notes["megatron"]["built"] == ledger.notes["megatron"]["built"]


@pytest.mark.parametrize("order", ["balanced", "megatron"])
def test_domains_that_come_and_go(order):
    before = request()
    ledger = plan.new_ledger(before, settings(before, order=order))
    new = Corpus("data/new", "new", 900, 56)
    now = replace(request((0.5, 0.5)), corpora=(before.corpora[2], new))
    after = resumed(ledger, before, now, 80, order)
    assert [d.name for d in after.domains] == ["d0", "d1", "d2", "new"]
    assert after.weights_at(80).tolist() == pytest.approx([0, 0, 0.5, 0.5])
    picks = Sampler(after).picks(0, 400)
    for domain in range(4):
        draws = picks.draw[picks.domain == domain]
        assert sorted(draws) == list(range(len(draws)))
    assert after.notes["megatron"]["prefixes"]["new"] == "data/new"
    if order == "megatron":
        assert Built(*after.notes["megatron"]["built"]["new"]) == ABSENT


def test_another_schedule_replaces_what_was_to_come(tmp_path):
    first = [{"at": 160, "weights": [1, 1, 2]}, {"at": 240, "weights": [3, 1, 0]}]
    wanted = request()
    ledger = plan.new_ledger(wanted, settings(wanted, tmp_path, schedule=first))
    second = [{"at": 40, "weights": [0, 1, 1]}, {"at": 200, "weights": [1, 1, 1]}]
    after = resumed(ledger, wanted, wanted, 80, tmp_path=tmp_path, schedule=second)
    third = 1 / 3
    assert pieces(after) == [
        (0, BATCH, pytest.approx([0.5, 0.3, 0.2])),
        (80, BATCH, pytest.approx([0, 0.5, 0.5])),
        (200, BATCH, pytest.approx([third, third, third])),
    ]


def test_another_batch_size(tmp_path):
    before, now = request(), request(batch_sizes=((0, 16),))
    ledger = plan.new_ledger(before, settings(before))
    after = resumed(ledger, before, now, 80)
    assert [p[:2] for p in pieces(after)] == [(0, 8), (80, 16)]
    now = request(batch_sizes=((0, 4), (96, 12)))
    after = resumed(ledger, before, now, 80)
    assert [p[:2] for p in pieces(after)] == [(0, 8), (80, 4), (96, 12)]
    now = request((1.0, 1.0, 2.0), batch_sizes=((0, 4), (96, 12)))
    after = resumed(ledger, before, now, 80)
    assert [p[:2] for p in pieces(after)] == [(0, 8), (80, 4), (96, 12)]
    assert after.weights_at(200).tolist() == pytest.approx([0.25, 0.25, 0.5])


def test_another_batch_size_leaves_weights_that_are_scheduled_for_later(tmp_path):
    first = [{"at": 160, "weights": [1, 1, 2]}, {"at": 248, "weights": [3, 1, 0]}]
    before, now = request(), request(batch_sizes=((0, 16), (200, 32)))
    for number in (1, 2):
        schedule = first[:number]
        ledger = plan.new_ledger(before, settings(before, tmp_path, schedule=schedule))
        after = resumed(ledger, before, now, 80, tmp_path=tmp_path, schedule=schedule)
        half, last = pytest.approx([0.25, 0.25, 0.5]), pytest.approx([0.75, 0.25, 0.0])
        expected = [
            (0, 8, pytest.approx([0.5, 0.3, 0.2])),
            (80, 16, pytest.approx([0.5, 0.3, 0.2])),
            (160, 16, half),
            (208, 32, half),
            (272, 32, last),  # the next batch after 248
        ]
        assert pieces(after) == expected[: 3 + number]


def test_batch_size_and_weights_and_schedule_change_at_once(tmp_path):
    before = request()
    ledger = plan.new_ledger(before, settings(before))
    now = request((1.0, 1.0, 2.0), batch_sizes=((0, 24),))
    later = [{"at": 216, "weights": [0, 1, 1]}, {"at": 336, "weights": [1, 0, 1]}]
    after = resumed(ledger, before, now, 80, tmp_path=tmp_path, schedule=later)
    assert pieces(after) == [
        (0, 8, pytest.approx([0.5, 0.3, 0.2])),
        (80, 24, pytest.approx([0.25, 0.25, 0.5])),
        (224, 24, pytest.approx([0.0, 0.5, 0.5])),
        (344, 24, pytest.approx([0.5, 0.0, 0.5])),
    ]


def test_what_cannot_change(tmp_path):
    wanted = request()
    ledger = plan.new_ledger(wanted, settings(wanted))
    with pytest.raises(ArgumentError, match="order 'balanced', which cannot change"):
        resumed(ledger, wanted, wanted, 80, "megatron")
    with pytest.raises(ArgumentError, match="--seed 1234, got 5"):
        resumed(ledger, wanted, replace(wanted, seed=5), 80)
    with pytest.raises(ArgumentError, match="--seq-length 16, got 32"):
        resumed(ledger, wanted, replace(wanted, seq_length=32), 80)
    with pytest.raises(LedgerError, match=r"domain 'd0' was .*size=312.* is .*size=316"):
        resumed(ledger, wanted, request(tokens=(5_060, 3_000, 2_000)), 80)


# A run of stock Megatron --------------------------------------------------------------------------


def adopted(saved, now, consumed, order="megatron"):
    return plan.adopted_ledger(saved, now, settings(now, order=order), consumed)


def test_a_stock_run_is_adopted():
    saved, now = request(), request((0.2, 0.3, 0.5), batch_sizes=((0, 24),), train_samples=900)
    ledger = adopted(saved, now, 80)
    stock = plan.new_ledger(saved, settings(saved, order="megatron"))
    assert ledger.notes["megatron"]["built"] == stock.notes["megatron"]["built"]
    ours, theirs = Sampler(ledger).picks(0, 80), Sampler(stock).picks(0, 80)
    assert (ours.domain == theirs.domain).all()
    assert (ours.draw == theirs.draw).all()
    assert ledger.weights_at(80).tolist() == pytest.approx([0.2, 0.3, 0.5])
    assert ledger.batch_at(80) == (80, 24)


def test_a_stock_run_goes_on_unchanged():
    saved = request()
    ledger = adopted(saved, saved, 84)  # 84 is no multiple of 8: its batch size has changed before
    assert [p.start for p in ledger.pieces] == [0, 84]
    assert ledger.batch_at(84) == (84, 8)
    stock = plan.new_ledger(saved, settings(saved, order="megatron"))
    ours, theirs = Sampler(ledger).picks(0, 400), Sampler(stock).picks(0, 400)
    assert (ours.domain == theirs.domain).all()
    assert (ours.draw == theirs.draw).all()


def test_what_a_stock_run_cannot_become():
    saved = request()
    with pytest.raises(ArgumentError, match="use --mix-order megatron, got 'balanced'"):
        adopted(saved, saved, 80, "balanced")
    for change, message in (
        ({"seed": 5}, "--seed was 1234 in the checkpoint and is 5 now"),
        ({"seq_length": 32}, "--seq-length was 16"),
        ({"split": (0.0, 0.5)}, "--split was"),
    ):
        with pytest.raises(ArgumentError, match=message):
            adopted(saved, replace(saved, **change), 80)
