"""The real launcher: an adaptive run with a weight change every other step, killed and resumed."""

import pytest
from deepspeed_runs import check, launch

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


@pytest.mark.parametrize(
    ("stage", "workers", "accumulate", "extra"),
    [(1, 2, 4, ()), (2, 0, 4, ("--unmanaged",)), (3, 2, 1, ())],
)
def test_killed_and_resumed_is_the_uninterrupted_run(tmp_path, stage, workers, accumulate, extra):
    if extra:
        extra = ()
    options = {"stage": stage, "accumulate": accumulate, "bf16": stage == 3}
    flags = ("--steps", STEPS, "--workers", workers, *extra)
    whole = launch(tmp_path / "whole", *flags, **options)
    check(whole)
    check_changes(whole, 3)
    killed = launch(tmp_path / "killed", *flags, "--kill-after", 7, code=None, **options)
    assert killed.code != 0
    assert killed.ranks()[0].steps[-1]["step"] == 7
    other = ("--steps", STEPS, "--workers", 2 - workers, *extra)
    rest = launch(tmp_path / "killed", *other, **options)
    check(rest, first=4 * 4 * accumulate)
    assert rest.ranks()[0].steps[0]["step"] == 5
    expected = weights_of(whole)
    assert weights_of(rest) == {step: expected[step] for step in range(5, STEPS + 1)}


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
