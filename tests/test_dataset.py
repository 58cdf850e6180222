"""MixDataset: what a sample looks like, which dataset is asked for it, bad input."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from mixcore import Domain, Ledger, MixBatchSampler, MixDataset
from mixcore.batches import Key

torch = pytest.importorskip("torch")
DataLoader = torch.utils.data.DataLoader

KEY = Key(position=100, domain=1, draw=7, epoch=2, sample=1)


def make(*domains, **options):
    domains = domains or (Domain("web", 4), Domain("code", 3))
    return Ledger(domains, [1] * len(domains), batch_size=8, **options)


def both(code=(10, 11, 12)):
    return MixDataset(make(), {"code": code, "web": [0, 1, 2, 3]})


class ByEpoch:
    """A dataset that shuffles its epochs by itself."""

    takes_epoch = True

    def __len__(self):
        return 3

    def __getitem__(self, key):
        epoch, sample = key
        return {"text": f"epoch {epoch}, sample {sample}"}


# Samples


def test_a_sample_carries_its_key():
    want = {"tokens": 11, "position": 100, "domain": 1, "draw": 7, "epoch": 2, "sample": 1}
    assert both()[KEY] == want
    assert both()[tuple(KEY)] == want
    assert MixDataset(make(), [[0] * 4, [10, 11, 12]])[KEY] == want


def test_entries_of_a_mapping_are_kept():
    stored = {"tokens": 5, "mask": 6}
    sample = both([{}, stored, {}])[KEY]
    assert sample == {**stored, **KEY._asdict()}
    assert stored == {"tokens": 5, "mask": 6}


def test_a_dataset_may_take_the_epoch():
    assert both(ByEpoch())[KEY]["text"] == "epoch 2, sample 1"


def test_batches_carry_their_domains():
    ledger = make()
    datasets = {"web": np.arange(8).reshape(4, 2), "code": np.arange(100, 106).reshape(3, 2)}
    loader = DataLoader(
        MixDataset(ledger, datasets), batch_sampler=MixBatchSampler(ledger, 4, end=32)
    )
    seen = 0
    for batch in loader:
        assert batch["tokens"].shape == (4, 2)
        assert batch["position"].tolist() == list(range(seen, seen + 4))
        assert torch.equal(batch["domain"] == 1, batch["tokens"][:, 0] >= 100)
        assert torch.equal(batch["sample"], batch["tokens"][:, 0] % 100 // 2)
        assert batch["domain"].dtype == batch["epoch"].dtype == torch.int64
        seen += 4
    assert seen == 32


# Domains that come later


def test_a_domain_is_added():
    ledger = make()
    dataset = MixDataset(ledger, [[0] * 4, [0] * 3])
    ledger.append(8, [1, 1, 1, 1], add=[Domain("math", 2), Domain("prose", None)])
    dataset.add("prose", [70, 71, 72])
    dataset.add("math", [50, 51])
    assert dataset[Key(8, 2, 0, 0, 1)]["tokens"] == 51
    assert dataset[Key(8, 3, 0, 0, 2)]["tokens"] == 72


def test_a_missing_domain_says_what_is_needed():
    with pytest.raises(ValueError, match=r"domain 2, .*'web', 1: 'code'.*MixDataset.add, then"):
        both()[Key(8, 2, 0, 0, 0)]


def test_running_workers_do_not_get_an_added_domain():
    ledger = make()
    dataset = MixDataset(ledger, [[0] * 4, [0] * 3])
    batches = MixBatchSampler(ledger, 8, end=160)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=1)
    iterator = iter(loader)
    next(iterator)
    position = ledger.append(ledger.fetched, [0, 0, 1], add=[Domain("math", 2)])
    dataset.add("math", [50, 51])
    consumed = 8
    with pytest.raises(ValueError, match="workers that run already"):  # noqa: PT012
        for batch in iterator:
            assert batch["domain"].max() < 2
            consumed += 8
    assert consumed == position
    batches.seek(consumed)
    seen = [batch["domain"].tolist() for batch in loader]
    assert seen == [[2] * 8] * ((160 - consumed) // 8)


# Pickles and workers


def test_a_copy_has_the_datasets_and_not_the_ledger():
    dataset = both()
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[KEY] == dataset[KEY]
    assert b"mixcore.ledger" not in pickle.dumps(dataset)
    with pytest.raises(ValueError, match="where the ledger is, got 'math'"):
        copy.add("math", [1])


def test_an_error_of_a_dataset_names_the_domain():
    ledger = make(Domain("short", None))
    dataset = MixDataset(ledger, {"short": [1, 2]})
    with pytest.raises(IndexError) as e:
        dataset[Key(0, 0, 9, 0, 9)]
    assert e.value.__notes__ == ["while reading sample 9 of domain 'short' in epoch 0"]
    loader = DataLoader(dataset, batch_sampler=MixBatchSampler(ledger, 8), num_workers=1)
    with pytest.raises(IndexError, match="of domain 'short' in epoch 0"):
        next(iter(loader))


def test_neither_module_imports_torch():
    code = (
        "import sys, mixcore; mixcore.MixDataset, mixcore.MixBatchSampler; "
        "assert 'torch' not in sys.modules and 'torchdata' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Bad input


@pytest.mark.parametrize(
    ("datasets", "error", "match"),
    [
        ({"web": [0] * 4}, ValueError, r"every domain; missing: \['code'\]"),
        ({"web": [0] * 4, "code": [0] * 3, "x": []}, ValueError, r"unknown domains \['x'\]"),
        ([[0] * 4], ValueError, r"one entry a domain \(2\), got 1"),
        ([[0] * 4, [0] * 2], ValueError, r"datasets\['code'\] must have the 3 samples .* got 2"),
        ([[0] * 4, 7], TypeError, r"datasets\['code'\] cannot be indexed, got 7"),
        ([type("X", (), {"__getitem__": id})(), []], TypeError, r"datasets\['web'\] has no length"),
        ("ab", TypeError, "datasets must be a mapping or a sequence, got 'ab'"),
        (None, TypeError, "datasets must be a mapping or a sequence, got None"),
    ],
)
def test_bad_datasets(datasets, error, match):
    with pytest.raises(error, match=match):
        MixDataset(make(), datasets)


def test_bad_ledger():
    with pytest.raises(TypeError, match=r"ledger must be a mixcore\.Ledger"):
        MixDataset({"web": [0]}, make())


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("web", [0] * 4, "name must be new, got 'web'"),
        ("nope", [0] * 4, r"name must be a domain of the ledger, got 'nope'; known: \['web'"),
        ("math", [0], r"datasets\['math'\] must have the 2 samples .* got 1"),
    ],
)
def test_bad_additions(name, data, match):
    ledger = make()
    dataset = MixDataset(ledger, [[0] * 4, [0] * 3])
    ledger.append(8, [1, 1, 1], add=[Domain("math", 2)])
    with pytest.raises(ValueError, match=match):
        dataset.add(name, data)
    dataset.add("math", [0, 0])


@pytest.mark.parametrize("key", [5, (1, 2), "abcde", None])
def test_bad_keys(key):
    with pytest.raises(TypeError, match=r"key must be a mixcore\.batches\.Key"):
        both()[key]


def test_a_sample_must_not_have_our_entries():
    with pytest.raises(ValueError, match="samples of domain 'code' must not have an entry 'epoch'"):
        both([{}, {"epoch": 3}, {}])[KEY]
