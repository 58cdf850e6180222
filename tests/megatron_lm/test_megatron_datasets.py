"""The dataset rows by themselves, on megatron-core 0.16.1 and 0.19.2, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from megatron_runs import HERE, core, write_corpus

ROOT = HERE.parents[1]
VERSIONS = ("0.16.1", "0.19.2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "data", [3_000, 2_000, 600])


def run(version: str, folder: Path, program: str) -> None:
    """Run a program that has `prefixes`, `build(...)` and `cache`."""
    path = [str(HERE / "site"), str(core(version)), str(HERE), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


PRELUDE = """
import sys
from pathlib import Path
import numpy as np
import torch
import megatron_patch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

folder = Path(sys.argv[1])
prefixes = sorted(str(p)[:-4] for p in folder.glob("data/*.bin"))
names = [Path(p).name for p in prefixes]

# 0.16.1 asks for the rank even where there is one.
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

class Tokenizer:
    vocab_size, eod, eos, pad = 2**31 - 2, 2**31 - 3, 2**31 - 3, -1
    unique_identifiers, special_tokens_dict = {"class": "Tokenizer"}, {}

def build(weights, samples, split="100,0,0", rest=(0, 0), prefixes=prefixes):
    config = GPTDatasetConfig(
        random_seed=1234, sequence_length=16, path_to_cache=str(folder / "cache"),
        tokenizer=Tokenizer(), reset_position_ids=False, reset_attention_mask=False,
        eod_mask_loss=False, create_attention_mask=False,
        blend=(list(prefixes), weights), split=split)
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, *rest], lambda: True, config).build()

def rows(dataset, positions):
    return np.stack([dataset[i]["tokens"].numpy() for i in positions])
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_order_megatron_is_the_stock_blend(version, corpus):
    """All splits, with and without weights, over several epochs; valid and test stay Megatron's."""
    run(
        version,
        Path(corpus.prefixes[0]).parents[1],
        """
stock = build([0.5, 0.3, 0.2], 300, split="80,10,10", rest=(20, 20))
plain = build(None, 200)
long = build([1.0, 1.0, 1.0], 600)
megatron_patch.apply(["dataset"])
cases = ((stock, [0.5, 0.3, 0.2], 300), (plain, None, 200), (long, [1.0, 1.0, 1.0], 600))
for theirs, *arguments in cases:
    rest = {"split": "80,10,10", "rest": (20, 20)} if theirs is stock else {}
    megatron_patch.use(batch_size=4, order="megatron")
    ours = build(*arguments, **rest)
    for name in ("tokens", "labels", "loss_mask", "position_ids", "dataset_id"):
        for i in range(len(theirs[0])):
            assert (np.asarray(ours[0][i][name]) == np.asarray(theirs[0][i][name])).all(), (name, i)
    for mine, other in zip(ours[1:], theirs[1:]):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert (mine.dataset_index == other.dataset_index).all()
            assert (rows(mine, range(len(mine))) == rows(other, range(len(other)))).all()
assert long[0].dataset_sample_index.max() > 37  # more than one epoch of the smallest domain
""",
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_changed_at_a_restart(version, corpus, tmp_path):
    """Other weights from a position on, one of them 0: each domain goes on where it was."""
    (tmp_path / "data").symlink_to(Path(corpus.prefixes[0]).parent)
    run(
        version,
        tmp_path,
        """
import mixcore
megatron_patch.apply(["dataset"])
for order in ("balanced", "megatron"):
    megatron_patch.use(batch_size=4, order=order)
    first = build([0.5, 0.3, 0.2], 300)[0]
    before = rows(first, range(120))
    ledger = mixcore.Ledger.from_bytes(megatron_patch.ledger().to_bytes())
    megatron_patch.use(batch_size=4, order=order, ledger=ledger, consumed=120)
    second = build([0.0, 0.2, 0.8], 1000, split="100,0,0")[0]
    assert (rows(second, range(120)) == before).all()
    after = rows(second, range(120, 240))
    ids = [int(second[i]["dataset_id"]) for i in range(240)]
    assert 0 not in ids[120:] and ids.count(2) > 80
    for domain in range(3):
        here = np.array(ids) == domain
        draws = mixcore.Sampler(ledger).picks(0, 240).draw[here]
        assert sorted(draws) == list(range(len(draws)))
        seen = np.concatenate([before, after])[here][np.argsort(draws), 0]
        size = megatron_patch.ledger().domains[domain].size
        built = 0  # samples in Megatron's own arrays, where epochs are shuffled together
        if order == "megatron":
            built = ledger.notes["megatron"]["built"][names[domain]][2]
        for epoch in range(built, len(seen), size):
            part = seen[epoch : epoch + size]
            assert len(set(part.tolist())) == len(part)
    assert bool(list((folder / "cache").glob("*train*"))) == (order == "megatron")
""",
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_more_domains_than_are_kept_open(version, corpus, tmp_path):
    """Beyond a number of domains files are opened when they are read, and closed again."""
    (tmp_path / "data").symlink_to(Path(corpus.prefixes[0]).parent)
    run(
        version,
        tmp_path,
        """
from megatron_patch import blend
megatron_patch.apply(["dataset"])
def all_of(eager, open_):
    blend.EAGER, blend.OPEN = eager, open_
    megatron_patch.use(batch_size=4)
    dataset = build([0.5, 0.3, 0.2], 200)[0]
    opened = sum(d._dataset is not None for d in dataset.domains)
    found = rows(dataset, range(200))
    assert sum(d._dataset is not None for d in dataset.domains) <= max(open_, eager)
    return opened, found
eager, lazy = all_of(4096, 4096), all_of(2, 1)
assert (eager[0], lazy[0]) == (3, 0)
assert (eager[1] == lazy[1]).all()
""",
    )


def test_mistakes_are_named(corpus, tmp_path):
    (tmp_path / "data").symlink_to(Path(corpus.prefixes[0]).parent)
    run(
        "0.19.2",
        tmp_path,
        """
megatron_patch.apply(["dataset"])
def fails(part, *arguments, batch_size=4, **named):
    try:
        megatron_patch.use(batch_size=batch_size, order=named.pop("order", None))
        build(*arguments, **named)
    except ValueError as e:
        assert part in str(e), e
    else:
        raise AssertionError(part)
fails("no such file", [1.0], 10, prefixes=["no such file"])
fails("order", [0.5, 0.3, 0.2], 10, order="greedy")
fails("batch_size", [0.5, 0.3, 0.2], 10, batch_size=0)
fails("not one sample of --seq-length 16", [0.5, 0.3, 0.2], 10, split="0.1,99.9,0", rest=(4, 0))
try:
    megatron_patch.use(batch_size=4, consumed=12)
except ValueError as e:
    assert "got 12" in str(e)
megatron_patch.undo()
assert type(build([0.5, 0.3, 0.2], 30)[0]).__name__ == "BlendedDataset"
""",
    )


def test_off_is_stock(corpus, tmp_path):
    """The rows in place and nothing asked of them: Megatron's own objects."""
    (tmp_path / "data").symlink_to(Path(corpus.prefixes[0]).parent)
    run(
        "0.16.1",
        tmp_path,
        """
before = build([0.5, 0.3, 0.2], 100)[0]
megatron_patch.apply(["dataset"])
after = build([0.5, 0.3, 0.2], 100)[0]
assert type(after) is type(before)
assert (after.dataset_index == before.dataset_index).all()
assert (rows(after, range(100)) == rows(before, range(100))).all()
""",
    )
