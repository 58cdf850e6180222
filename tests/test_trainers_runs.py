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


@pytest.mark.parametrize("framework", [*FRAMEWORKS, "torchdata"])
@pytest.mark.parametrize(
    ("before", "after"),  # ranks, workers, micro-batches
    [
        ((2, 2, 2), (1, 0, 4)),
        ((1, 2, 1), (2, 2, 4)),  # reads as far ahead as the lag of 5 allows, see below
        ((2, 0, 4), (2, 2, 1)),
        ((1, 0, 1), (2, 0, 2)),
    ],
)
def test_killed_and_resumed_in_another_shape(framework, before, after, tmp_path):
    names = ("world_size", "workers", "micro_batches")
    shapes = [dict(zip(names, shape, strict=True)) for shape in (before, after)]
    first = Run(framework, str(tmp_path), kill_after=8, **shapes[0])
    assert launch(first) == [-signal.SIGKILL] * first.world_size
    second = replace(first, kill_after=None, resume=True, **shapes[1])
    assert launch(second) == [0] * second.world_size
    ledger = check(second, replayed=3)  # from step 5 on
    assert ledger.digest == truth(second).digest
    assert ledger.num_decisions == 7


@frameworks
def test_a_lag_shorter_than_what_is_read_ahead_is_refused(framework, tmp_path):
    """2 workers x 2 micro-batches, and the one that each of these frameworks reads besides."""
    run = Run(framework, str(tmp_path), workers=2, lag=4)
    assert launch(run) == [1]
    said = (tmp_path / "error.0").read_text()
    assert said.startswith("lag_steps=4 is too short")
    assert "this needs lag_steps >= 5" in said


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
            workers=2,
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
