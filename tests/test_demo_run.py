"""The demo from end to end in its fast form, killed by the user as well as by itself, steered."""

import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mixcore

for needed in ("torch", "tokenizers", "matplotlib", "rich"):
    pytest.importorskip(needed)

RUN = Path(__file__).parents[1] / "examples" / "demo" / "run.py"
LIMIT = 400  # seconds, far more than the demo takes on a loaded machine


def command(out, *options):
    return [sys.executable, str(RUN), "--out", str(out), "--fast", *options]


def run(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=LIMIT)
    return done.returncode, done.stdout + done.stderr


def test_killed_by_the_user_then_run_again(tmp_path):
    out = tmp_path / "out"
    log = out / "log" / "attempt-1-rank-0.jsonl"
    with subprocess.Popen(command(out), stdout=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + LIMIT
        while not log.exists() or log.read_bytes().count(b"\n") < 14:  # past the first checkpoint
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    code, text = run(out)
    assert code == 0, text
    assert "Going on with the interrupted run" in text
    assert "attempt 2: steps 10 ..." in text
    assert "attempt 3: steps 20 ... 59 in 1 rank" in text
    assert text.count("PASS") == 7
    picture = (out / "mixture.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1400, 1400)


def test_steered_by_a_method(tmp_path):
    """2 ranks, 2 workers each, a change every 3 steps, SIGKILL between checkpoints, 1 rank."""
    out = tmp_path / "out"
    code, text = run(out, "--method", "odm")
    assert code == 0, text
    assert "2 ranks then 1 rank" in text
    assert text.count("PASS") == 11
    lost = re.search(r"(\d+) lost with a kill, undone on the record", text)
    assert lost is not None
    assert int(lost[1]) >= 2  # steps 20 ... 28 were trained again
    ledger = mixcore.Ledger.load(out / "ledger.json")
    assert {d.author for d in ledger.decisions} == {"", "mixcore.odm", "mixcore.controller"}
    assert len({p.shares.tobytes() for p in ledger.pieces}) == len(ledger.pieces) >= 10
    assert "unicode" in ledger.decisions[-1].reason
    picture = (out / "mixture.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1400, 1400)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("aioli", "needs the signal val_loss, which the demo does not measure"),
        ("uniform", "is static"),
        ("omd", "did you mean 'odm'"),
    ],
)
def test_method_that_cannot_steer(tmp_path, method, words):
    code, text = run(tmp_path / "out", "--method", method)
    assert code == 2
    assert text.count("\n") == 1
    assert words in text
    assert not (tmp_path / "out").exists()


def test_folder_of_somebody_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, text = run(tmp_path)
    assert code == 2
    assert text.count("\n") == 1
    assert "holds files that no demo wrote" in text
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_too_few_steps(tmp_path):
    code, text = run(tmp_path / "out", "--steps", "5")
    assert code == 2
    assert "--steps must be at least 40, got 5" in text
