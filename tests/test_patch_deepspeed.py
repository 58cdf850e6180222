"""The rows for Megatron-DeepSpeed, on stubs of its modules; one rank, real torch."""

import functools
import sys
from argparse import Namespace
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.distributed as dist
from stub_deepspeed import MODULES
from stub_packages import Stubs

import megatron_patch
from megatron_patch import PatchError, engine, state, table
from megatron_patch.deepspeed_data import _sequences, blend_of, request_from
from megatron_patch.deepspeed_table import MEGATRON_DEEPSPEED
from megatron_patch.deepspeed_training import batch_sizes, refuse
from megatron_patch.request import built_by_megatron
from mixcore.errors import ArgumentError, LedgerError
from mixcore.indexed_writer import IndexedWriter

SEQ, BATCH, STEPS = 8, 4, 25


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    found = Stubs(tmp_path / "stubs", monkeypatch, MODULES)
    yield found
    found.forget()
    state.end()


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory):
    """Three corpora; every token of all of them is different."""
    folder, at = tmp_path_factory.mktemp("data"), 0
    random = np.random.default_rng(0)
    names = []
    for d, tokens in enumerate((1200, 900, 500)):
        names.append(str(folder / f"domain{d}"))
        end = at + tokens
        with IndexedWriter(names[-1], np.int32) as writer:
            while at < end:
                length = min(int(random.integers(5, 30)), end - at)
                writer.add_document(np.arange(at, at + length))
                at += length
    return names


def blend(prefixes, weights):
    return [word for w, p in zip(weights, prefixes, strict=True) for word in (str(w), p)]


def arguments(data_path, **more):
    """Parsed and validated by the stub, as its script would; `more` without a flag of its own."""
    flags = [w for k, v in more.pop("flags", {}).items() for w in (f"--{k}", str(v))]
    sys.argv = ["pretrain_gpt.py", "--deepspeed", *flags]
    initialize = import_module("megatron.initialize")
    args = initialize.validate_args(initialize.parse_args())
    vars(args).update(
        data_path=data_path, train_data_path=None, split="95,5,0", seq_length=SEQ, seed=7,
        train_samples=None, train_iters=STEPS, global_batch_size=BATCH, micro_batch_size=2,
        data_parallel_size=1, rampup_batch_size=None, iteration=0, consumed_train_samples=0,
        skip_train=False, save=None, num_workers=0, log_interval=1, ds_pipeline_enabled=True,
    )  # fmt: skip
    vars(args).update(more)
    import_module("megatron").set_args(args)
    return args


def loaders(args):
    def provider(sizes):
        build = import_module("megatron.data.gpt_dataset").build_train_valid_test_datasets
        return build(args.data_path, "mmap", args.split, sizes, SEQ, args.seed, True)

    return import_module("megatron.training").build_train_valid_test_data_loaders(provider)


def trained(args, stop=STEPS, skip=0):
    """Batches of the steps up to `stop`, through the stub's train_step."""
    training, batches = import_module("megatron.training"), []
    train, valid, _ = loaders(args)

    def recorded():
        for batch in train:
            batches.append({k: v.numpy() for k, v in batch.items()})
            yield batch

    iterator = recorded()
    step = args.consumed_train_samples // BATCH
    for args.curr_iteration in range(step, stop):
        training.train_step(forward_step, iterator, model, None, None, None)
        args.consumed_train_samples += BATCH
    return batches, valid


def model(batch):
    """The loss of a token is its value, masked where it is odd."""
    tokens = batch["text"][:, :-1]
    return tokens.float(), tokens, (tokens % 2 == 0).float()


def forward_step(iterator, model):
    output, _, mask = model(next(iterator))
    return output, functools.partial(lambda mask, x: (x * mask).sum() / mask.sum(), mask)


def config(tmp_path, text="order: megatron\n"):
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    return {"mix-config": path}


# Whose rows ---------------------------------------------------------------------------------------


def test_chooses_by_what_is_there(stubs):
    assert table.choose() is MEGATRON_DEEPSPEED
    assert not stubs.imported()
    stubs.write({"megatron/core/datasets/__init__.py": ""})
    assert table.choose() is table.MEGATRON


def test_declines_what_is_neither(stubs):
    (stubs.root / "megatron/data/gpt_dataset.py").unlink()
    with pytest.raises(PatchError, match=r"neither Megatron-LM.*nor Megatron-DeepSpeed") as e:
        megatron_patch.apply()
    assert str(stubs.root / "megatron") in str(e.value)
    assert not stubs.imported()


def test_applies_undoes_and_tells(stubs, caplog):
    caplog.set_level("INFO", "megatron_patch")
    training = import_module("megatron.training")
    before = dict(vars(training))
    assert megatron_patch.apply() == ["training"] == megatron_patch.apply()
    assert "patched as Megatron-DeepSpeed" in caplog.text
    assert len(engine.patches()) == len(MEGATRON_DEEPSPEED.rows)
    assert training.build_pretraining_data_loader is not before["build_pretraining_data_loader"]
    assert megatron_patch.status().startswith("Megatron-DeepSpeed: megatron.core")
    megatron_patch.undo()
    assert dict(vars(training)) == before


@pytest.mark.parametrize("row", MEGATRON_DEEPSPEED.rows, ids=lambda row: row.symbol)
def test_any_row_that_does_not_fit_leaves_all_as_it_was(stubs, monkeypatch, row):
    place = import_module(row.module)
    for name in row.path[:-1]:
        place = getattr(place, name)
    monkeypatch.setattr(place, row.path[-1], lambda other: None)
    with pytest.raises(PatchError) as e:
        megatron_patch.apply()
    assert row.symbol in str(e.value)
    assert "Megatron-DeepSpeed is left as it was" in str(e.value)
    assert engine.patches() == []


def test_a_deepspeed_that_is_too_new(stubs):
    stubs.write({"megatron/training.py": "import deepspeed.compression.compress\n"})
    with pytest.raises(PatchError, match=r"deepspeed\.compression"):
        megatron_patch.apply()


# The train split ----------------------------------------------------------------------------------

UNEVEN = [0.1, 0.7, 0.3]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dp", [(0, 1), (1, 2)])
def test_constant_weights_read_what_stock_reads(stubs, group, prefixes, tmp_path, workers, dp):
    parallel = import_module("megatron.core").mpu
    parallel.place.update(dp=dp[0], dp_size=dp[1])
    given = {"num_workers": workers, "data_parallel_size": dp[1]}
    stock, _ = trained(arguments(blend(prefixes, UNEVEN), **given))
    megatron_patch.apply()
    plain, _ = trained(arguments(blend(prefixes, UNEVEN), **given))  # patched, without a flag
    assert state.current() is None
    mixed, _ = trained(arguments(blend(prefixes, UNEVEN), flags=config(tmp_path), **given))
    assert len(stock) == STEPS * BATCH // 2 // dp[1]
    for one in (plain, mixed):
        for a, b in zip(stock, one, strict=True):
            assert list(a) == list(b)
            for key in a:
                assert a[key].dtype == b[key].dtype
                np.testing.assert_array_equal(a[key], b[key])


def test_weights_are_normalised_as_there(prefixes):
    """Nine weights, whose sum from left to right is not the sum that numpy takes."""
    random = np.random.default_rng(3)
    weights = random.random(9)
    args = Namespace(
        data_path=blend(prefixes * 3, weights), train_data_path=None, split="95,5,0",
        seq_length=SEQ, seed=7, train_samples=100, train_iters=None, global_batch_size=BATCH,
    )  # fmt: skip
    request = request_from(args)
    total = 0.0
    for w in weights:
        total += float(w)
    once = np.array([float(w) / total for w in weights])
    np.testing.assert_array_equal(request.blended(), once / np.sum(once))
    sizes = [int(np.ceil(100 * w * 1.005)) for w in once]
    assert [b.requested for b in built_by_megatron(request)] == sizes


def test_valid_is_stock_and_train_is_built_once(stubs, group, prefixes, tmp_path):
    stock = loaders(arguments(blend(prefixes, UNEVEN)))[1]
    megatron_patch.apply()
    built = import_module("megatron.data.gpt_dataset").built
    built.clear()
    mixed = loaders(arguments(blend(prefixes, UNEVEN), flags=config(tmp_path)))[1]
    assert [name for name, *_ in built].count("train") == 3
    for a, b in zip(stock, mixed, strict=True):
        assert torch.equal(a["text"], b["text"])


@pytest.mark.parametrize("order", ["megatron", "balanced"])
def test_a_rising_domain_goes_on_in_new_epochs(stubs, group, prefixes, tmp_path, order):
    megatron_patch.apply()
    mix = config(
        tmp_path,
        f"order: {order}\nschedule:\n  kind: piecewise\n  points:\n"
        "    - {at: 20, weights: {domain0: 0, domain1: 0, domain2: 1}}\n",
    )
    batches, _ = trained(arguments(blend(prefixes, [0.5, 0.3, 0.2]), flags=mix, train_iters=60), 60)
    rows = np.concatenate([b["text"] for b in batches])
    domains = np.concatenate([b["dataset_idx"] for b in batches])
    assert np.bincount(domains[:20], minlength=3).tolist() == [10, 6, 4]
    assert set(domains[20:]) == {2}
    assert (np.searchsorted([1200, 2100, 2600], rows[:, 0], side="right") == domains).all()
    epoch = state.current().request.corpora[2].samples
    mine = [tuple(row) for row in rows[domains == 2]]
    assert len(mine) == 224 > 3 * epoch
    if order == "megatron":  # within a batch order balanced is not by draw
        for start in range(0, len(mine) - epoch, epoch):
            assert len(set(mine[start : start + epoch])) == epoch
    # What follows Megatron's own arrays is cut anew, from documents in an order of our own.
    ours = mine if order == "balanced" else mine[epoch:]
    times = Counter(ours)
    assert len(times) == epoch
    assert set(times.values()) == {len(ours) // epoch, len(ours) // epoch + 1}


# Steps, losses, checkpoints -----------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [True, False])
def test_losses_by_domain(stubs, group, prefixes, tmp_path, pipeline):
    megatron_patch.apply()
    written = {at: {} for at in range(1, STEPS + 1)}
    writer = Namespace(add_scalar=lambda name, value, at: written[at].update({name: value}))
    args = arguments(
        blend(prefixes, UNEVEN), flags=config(tmp_path), ds_pipeline_enabled=pipeline, writer=writer
    )
    batches, _ = trained(args)
    for step in range(STEPS):
        pair = batches[2 * step : 2 * step + 2]
        tokens = np.concatenate([b["text"][:, :-1] for b in pair])
        domains = np.concatenate([b["dataset_idx"] for b in pair])
        for d in range(3):
            mine = tokens[domains == d]
            name = f"mix/loss/domain{d}"
            assert (name in written[step + 1]) == (mine.size > 0)
            if mine.size:
                assert written[step + 1][name] == pytest.approx(mine[mine % 2 == 0].mean())


def test_evaluation_is_not_observed(stubs, group, prefixes, tmp_path):
    megatron_patch.apply()
    trained(arguments(blend(prefixes, UNEVEN), flags=config(tmp_path)), stop=2)
    cross_entropy = import_module("megatron.model.gpt_model").CrossEntropy
    ones = torch.ones(2, SEQ)
    assert cross_entropy(ones.transpose(0, 1), (ones, ones)) == 1
    assert state.current().live._pending == []


def test_a_checkpoint_has_one_key_more_and_goes_on(stubs, group, prefixes, tmp_path):
    megatron_patch.apply()
    given = {"flags": config(tmp_path)}
    whole, _ = trained(arguments(blend(prefixes, UNEVEN), **given))
    state.end()
    args = arguments(blend(prefixes, UNEVEN), **given)
    trained(args, stop=10)
    deepspeed = import_module("deepspeed.runtime.engine").DeepSpeedEngine()
    theirs = {"args": args, "iteration": 10}
    deepspeed.save_checkpoint("out", client_state=theirs)
    assert sorted(theirs) == ["args", "iteration"]
    assert sorted(deepspeed.saved) == ["args", "iteration", "mixcore"]
    assert isinstance(deepspeed.saved["mixcore"], str)
    state.end()
    path, client_state = deepspeed.load_checkpoint("out")
    assert (path, sorted(client_state)) == ("out", ["args", "iteration", "mixcore"])
    # Other weights from here on: what was read stays read, what comes is of the new ones.
    args = arguments(blend(prefixes, [1, 0, 0]), consumed_train_samples=40, iteration=10, **given)
    rest, _ = trained(args)
    assert {d for b in rest for d in b["dataset_idx"]} == {0}
    rows = [tuple(row) for b in whole[:20] + rest for row in b["text"][b["dataset_idx"] == 0]]
    assert len(rows) == len(set(rows))
    assert state.current().ledger.num_decisions == 3


@pytest.mark.parametrize("saved", ["stock", "mixed"])
def test_a_checkpoint_of_another_moment(stubs, group, prefixes, tmp_path, saved):
    megatron_patch.apply()
    args = arguments(blend(prefixes, UNEVEN), flags=config(tmp_path) if saved == "mixed" else {})
    trained(args, stop=10)
    deepspeed = import_module("deepspeed.runtime.engine").DeepSpeedEngine()
    deepspeed.save_checkpoint("out", client_state={"args": args})
    state.end()
    deepspeed.load_checkpoint("out")
    args = arguments(
        blend(prefixes, UNEVEN), flags=config(tmp_path), consumed_train_samples=44, iteration=11
    )
    if saved == "stock":  # it is adopted at whatever it has consumed
        loaders(args)
        assert state.current().ledger.order == "megatron"
    else:
        with pytest.raises(LedgerError, match=r"position 40.*consumed 44"):
            loaders(args)


def test_a_checkpoint_without_consumed_samples(stubs, group, prefixes, tmp_path):
    megatron_patch.apply()
    args = arguments(blend(prefixes, UNEVEN), flags=config(tmp_path), iteration=5)
    with pytest.raises(LedgerError, match="iteration 5"):
        loaders(args)


# Known answers and bad input ----------------------------------------------------------------------


def test_blend_of():
    assert blend_of(["web"]) == (["web"], None)
    assert blend_of([".7", "web", ".3", " code"]) == (["web", "code"], (0.7, 0.3))
    for words in (["web", "code"], [".7", "web", ".3"], ["web", "1"]):
        with pytest.raises(ArgumentError, match="--data-path"):
            blend_of(words)


def test_the_rounding_of_a_split_moves_its_end():
    assert _sequences("1,1,1")(10) == (0, 4)
    assert _sequences("969, 30, 1")(1000) == (0, 969)
    assert _sequences("95/5")(101) == (0, 96)
    assert _sequences("1")(7) == _sequences(None)(7) == (0, 7)
    with pytest.raises(ArgumentError, match="--split"):
        _sequences("0,0")


def test_batch_sizes():
    def of(ramp, size):
        return batch_sizes(Namespace(rampup_batch_size=ramp, global_batch_size=size))

    assert of(None, 8) is None
    assert of(["8", "4", "100"], 8) is None
    assert of(["4", "4", "24"], 8) == [(0, 4), (24, 8)]
    assert of(["4", "4", "24"], 12) == [(0, 4), (12, 8), (28, 12)]


def fine(**more):
    return Namespace(**{"deepspeed": True, "dataloader_type": "single", **more})


def test_refuses_what_cannot_work():
    refuse(fine(data_efficiency_curriculum_learning=False, kd=False, train_desc_path=None))
    for flag, value, words in (
        ("deepspeed", False, "--deepspeed"),
        ("dataloader_type", "cyclic", "--dataloader-type cyclic"),
        ("data_efficiency_curriculum_learning", True, "DeepSpeed's own sampler"),
        ("curriculum_learning_legacy", True, "curriculum_learning section"),
        ("train_data_exact_num_epochs", 2, "--train-data-exact-num-epochs"),
        ("train_shuffle_idx_path", "x", "--train-shuffle-idx-path"),
        ("kd", True, "--kd"),
    ):
        with pytest.raises(ArgumentError, match=words):
            refuse(fine(**{flag: value}))


def test_refused_as_soon_as_the_flags_are_known(stubs, tmp_path):
    megatron_patch.apply()
    flags = {**config(tmp_path), "dataloader-type": "cyclic"}
    with pytest.raises(ArgumentError, match="cyclic"):
        arguments(["web"], flags=flags)
