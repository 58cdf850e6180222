"""The real launcher: an adaptive run with a weight change every other step, killed and resumed."""

import os
import subprocess
import sys

import numpy as np
import pytest
from deepspeed_runs import ROOT, check, launch

STEPS = 12


def weights_of(job):
    return {s["step"]: (s["weights"], s["digest"]) for s in job.ranks()[0].steps}


def check_changes(job, least):
    """The mixture did change, again and again."""
    assert len({tuple(w) for w, _ in weights_of(job).values()}) >= least


def test_zero_0(tmp_path):
    job = launch(tmp_path / "run", "--steps", STEPS, stage=0)
    check(job)
    check_changes(job, 3)


@pytest.mark.parametrize(("stage", "workers", "accumulate"), [(1, 2, 4), (2, 0, 4), (3, 2, 1)])
def test_killed_and_resumed_is_the_uninterrupted_run(tmp_path, stage, workers, accumulate):
    """Resumed with another number of workers; the changes not yet in force at the kill included."""
    options = {"stage": stage, "accumulate": accumulate, "bf16": stage == 3}
    flags = ("--steps", STEPS, "--workers", workers)
    whole = launch(tmp_path / "whole", *flags, **options)
    check(whole)
    check_changes(whole, 3)
    killed = launch(tmp_path / "killed", *flags, "--kill-after", 7, code=None, **options)
    assert killed.code != 0
    assert killed.ranks()[0].steps[-1]["step"] == 7
    other = ("--steps", STEPS, "--workers", 2 - workers)
    rest = launch(tmp_path / "killed", *other, **options)
    check(rest, first=4 * 4 * accumulate)
    assert rest.ranks()[0].steps[0]["step"] == 5
    expected = weights_of(whole)
    assert weights_of(rest) == {step: expected[step] for step in range(5, STEPS + 1)}


def test_unmanaged_accumulation_and_the_engines_own_loader(tmp_path):
    flags = ("--steps", 8, "--workers", 2, "--unmanaged", "--io")
    job = launch(
        tmp_path / "run", *flags, stage=2, accumulate=4, managed_gradient_accumulation=False
    )
    check(job)
    check_changes(job, 2)


def test_resumed_on_one_rank_through_a_universal_checkpoint(tmp_path):
    """Two ranks, then one: the same samples and the same decisions as without a break."""
    flags = ("--steps", STEPS, "--workers", 0)
    whole = launch(tmp_path / "whole", *flags, stage=1, accumulate=2)
    first = launch(tmp_path / "first", "--steps", 8, stage=1, accumulate=2)
    step = first.folder / "checkpoint" / "global_step8"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", step]
    command += ["--output_folder", f"{step}_universal", "--inject_missing_state"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    (first.folder / "checkpoint" / "latest").write_text("global_step8_universal")
    rest = launch(
        first.folder,
        *flags,
        ranks=1,
        stage=1,
        accumulate=4,
        checkpoint={"load_universal": True},
    )
    (rank, _) = rest.ranks()  # the second is what the other rank left behind
    assert rank.data == (0, 1)
    assert [p for s in rank.steps for micro in s["fetched"] for p in micro] == list(range(64, 96))
    expected = weights_of(whole)
    assert weights_of(rest) == {step: expected[step] for step in range(9, STEPS + 1)}


def test_an_older_deepspeed_and_another_batch_size(tmp_path):
    """0.19.6; the batch grows in the middle, from where no rank has prefetched; CSV monitor."""
    older = ROOT / "build" / "deepspeed-0.19.6"
    assert (older / "deepspeed").is_dir(), "`make test` prepares it (`make deepspeed` alone)"
    csv = {"enabled": True, "output_path": str(tmp_path / "csv"), "job_name": "run"}
    job = launch(
        tmp_path / "run",
        *("--steps", STEPS, "--workers", 2, "--resize", 3, 12),
        deepspeed=older,
        stage=1,
        csv_monitor=csv,
    )
    assert [r.version for r in job.ranks()] == ["0.19.6"] * 2
    check(job)
    sizes = np.diff([0, *(s["position"] for s in job.ranks()[0].steps)]).tolist()
    assert set(sizes) == {4, 12}
    assert sizes == sorted(sizes)
    written = {p.name for p in (tmp_path / "csv").rglob("*.csv")}
    for kind in ("weight", "share", "epoch", "loss"):
        assert any(f"mix_{kind}_a" in name for name in written), written


def test_pipeline_of_two_stages_and_two_replicas(tmp_path):
    options = {"ranks": 4, "stage": 1, "accumulate": 4}
    flags = ("--steps", 8, "--stages", 2, "--workers", 2)
    whole = launch(tmp_path / "whole", *flags, **options)
    check(whole)
    check_changes(whole, 2)
    killed = launch(tmp_path / "killed", *flags, "--kill-after", 6, code=None, **options)
    assert killed.code != 0
    rest = launch(tmp_path / "killed", *flags, **options)
    check(rest, first=4 * 16)
    expected = weights_of(whole)
    assert weights_of(rest) == {step: expected[step] for step in range(5, 9)}


def test_a_stage_in_the_middle_advances_too(tmp_path):
    """It reads nothing and sees no loss, and has the same weights at every step all the same."""
    job = launch(tmp_path / "run", "--steps", 8, "--stages", 3, ranks=3, accumulate=4)
    check(job)
    check_changes(job, 2)
    first, middle, last = job.ranks()
    assert not any(s["fetched"] for s in middle.steps)
    assert [s["fetched"] for s in first.steps] == [s["fetched"] for s in last.steps]
    assert (middle.observes, last.observes) == (False, True)
