"""The same mixture under every framework, from what its ranks recorded, weights changing often.

The truth is a loop without loader, trainer or crash: a run is right if its ledger and its samples
are the truth's, whatever its ranks, workers and accumulation, and wherever it was killed.
"""

import os
import signal
from dataclasses import replace

import pytest
from trainer_runs import BATCH, Run, check, launch, truth

import mixcore

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("lightning")

FRAMEWORKS = ("huggingface", "accelerate", "lightning")

frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)
with_torchdata = pytest.mark.parametrize("framework", [*FRAMEWORKS, "torchdata"])


@with_torchdata
def test_killed_on_two_ranks_resumed_on_one(framework, tmp_path):
    """2 ranks x 2 workers x 2 micro-batches, SIGKILL; then 1 rank, 4 micro-batches, no worker."""
    first = Run(framework, str(tmp_path), world_size=2, workers=2, micro_batches=2, kill_after=8)
    assert launch(first) == [-signal.SIGKILL] * 2
    second = replace(first, world_size=1, workers=0, micro_batches=4, resume=True, kill_after=None)
    assert launch(second) == [0]
    ledger = check(second, replayed=3)  # from step 5 on
    assert ledger.digest == truth(second).digest
    assert ledger.num_decisions == 7


@with_torchdata
def test_killed_on_one_rank_resumed_on_two(framework, tmp_path):
    """1 rank, 2 workers, no accumulation, SIGKILL; then 2 ranks x 2 workers x 4 micro-batches.

    The first reads as far ahead as the lag of 5 allows: 2 workers x 2 micro-batches, and one more.
    """
    first = Run(framework, str(tmp_path), workers=2, kill_after=11)
    assert launch(first) == [-signal.SIGKILL]
    second = replace(first, world_size=2, workers=2, micro_batches=4, resume=True, kill_after=None)
    assert launch(second) == [0, 0]
    ledger = check(second, replayed=1)
    assert ledger.digest == truth(second).digest


@frameworks
def test_resumed_equals_uninterrupted_to_the_bit(framework, tmp_path):
    """With the model's own losses on two ranks: the same mixture, the same parameters on both.

    Dropout included, but for Lightning, whose checkpoints hold no random state.
    """
    runs = []
    for name, kill_after in (("whole", None), ("killed", 7)):
        folder = tmp_path / name
        folder.mkdir()
        run = Run(
            framework,
            str(folder),
            world_size=2,
            micro_batches=2,
            lag=None,  # what the settings need, no more
            pure=False,
            kill_after=kill_after,
        )
        launch(run)
        runs.append(run)
    whole, killed = runs
    assert not os.path.exists(os.path.join(killed.folder, "ledger.jsonl"))
    assert launch(replace(killed, kill_after=None, resume=True)) == [0, 0]
    ledgers = [check(whole), check(killed, replayed=2)]
    assert ledgers[0].digest == ledgers[1].digest
    assert ledgers[0].to_bytes() == ledgers[1].to_bytes()
    models = [torch.load(f"{r.folder}/model.{rank}.pt") for r in runs for rank in range(2)]
    for other in models[1:]:
        assert other.keys() == models[0].keys()
        assert all(torch.equal(other[k], models[0][k]) for k in other)


@frameworks
def test_the_run_ends_where_its_caps_end(framework, tmp_path):
    """on_cap="stop": 4 domains x 2 epochs of 40 samples; the frameworks stop by themselves."""
    run = Run(framework, str(tmp_path), steps=60, on_cap="stop")
    assert launch(run) == [0]
    ledger = mixcore.Ledger.load(tmp_path / "ledger.jsonl")
    last, _ = ledger.end()
    steps = (tmp_path / "seen.0").read_text().count('"step"')
    assert steps == last // BATCH
    assert 8 < steps < 20
