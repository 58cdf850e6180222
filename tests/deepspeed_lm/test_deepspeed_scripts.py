"""A script that cannot be edited, through the launch module; the example, as its README runs it."""

import json
import re

import pytest
from deepspeed_runs import HERE, ROOT, launch

from mixcore import Domain, Ledger, Sampler
from mixcore.errors import ArgumentError
from mixcore.trainers._deepspeed_launch import main

SECTION = {
    "domains": [{"name": n, "weight": w} for n, w in zip("abc", (0.5, 0.3, 0.2), strict=True)],
    "seed": 11,
    "schedule": [{"at": 16, "weights": [0.1, 0.1, 0.8]}],
}


def through(*words, folder, steps):
    """Launch words with `quiet.py` before them, so that nothing is compiled."""
    return launch(
        folder,
        *("--steps", steps),
        script=HERE / "quiet.py",
        before=words,
        data_mixing=SECTION,
    )


def test_a_script_that_cannot_be_edited(tmp_path):
    """Its loader reads the mixture, its checkpoints carry it; two starts, nothing twice."""
    module = ("-m", "mixcore.trainers.deepspeed", str(HERE / "untouched.py"))
    for steps in (6, 10):
        through(*module, folder=tmp_path / "run", steps=steps)
    domains = [Domain(name, 60) for name in "abc"]
    ledger = Ledger(domains, [0.5, 0.3, 0.2], batch_size=4, seed=11, schedule=SECTION["schedule"])
    picks = Sampler(ledger).picks(0, 40)
    truth = sorted(zip(picks.domain.tolist(), picks.sample.tolist(), strict=True))
    seen = [
        tuple(pair)
        for path in (tmp_path / "run").glob("seen*.json")
        for pair in json.loads(path.read_text())
    ]
    assert sorted(seen) == truth


def test_bad_launches(tmp_path):
    with pytest.raises(ArgumentError, match="no script given"):
        main(["--local_rank=0"])
    with pytest.raises(ArgumentError, match=r"there is no script 'nowhere\.py'"):
        main(["--local_rank=0", "nowhere.py"])


def test_the_example(tmp_path):
    script = str(ROOT / "examples" / "deepspeed" / "train.py")
    flags = ("--mix-method", "odm", "--mix-update-every", 2)
    for steps, decisions in ((20, 10), (24, 12)):
        job = launch(
            tmp_path / "run",
            *("--steps", steps, *flags),
            script=HERE / "quiet.py",
            before=(script,),
            config_file=ROOT / "examples" / "deepspeed" / "ds.json",
        )
        (line,) = re.findall(r"position (\d+), (\d+) decisions", job.text)
        assert int(line[0]) == steps * 32
        assert int(line[1]) >= decisions - 2
