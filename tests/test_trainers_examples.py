"""The examples as their READMEs run them: two ranks, then resumed on one with other settings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LINE = re.compile(r"position (\d+), (\d+) decisions, (\w{8}): web (\d+) samples, weight ([\d.]+)")

pytest.importorskip("torch")


def run(name, out, *options, ranks=1):
    """The facts of the line that an example ends with."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    script = str(EXAMPLES / name / "train.py")
    done = subprocess.run(
        [sys.executable, *(torchrun if ranks > 1 else []), script, "--out", str(out), *options],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = LINE.findall(done.stdout)
    assert len(found) == 1, done.stdout
    return found[0]


@pytest.mark.parametrize(
    ("name", "package", "ranks"),
    [
        ("torch", "torch", 2),
        ("torchdata", "torchdata", 1),
        ("huggingface", "transformers", 2),
        ("accelerate", "accelerate", 2),
        ("lightning", "lightning", 2),
    ],
)
def test_an_example_runs_and_goes_on(name, package, ranks, tmp_path):
    pytest.importorskip(package)
    position, decisions, digest, web, weight = run(name, tmp_path, "--steps", "20", ranks=ranks)
    assert (int(position), int(decisions)) == (20 * 32, 11)
    position, decisions, later, more, _ = run(
        name, tmp_path, "--steps", "24", "--workers", "0", "--accumulate", "4"
    )
    assert (int(position), int(decisions)) == (24 * 32, 13)
    assert later != digest
    assert int(web) < int(more) < int(web) + 4 * 32
    assert float(weight) != 0.7
