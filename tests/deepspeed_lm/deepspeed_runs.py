"""Jobs of the real DeepSpeed launcher on the CPU, and the truth about what they must have done."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mixcore import Ledger, Sampler

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMEOUT = 150
MICRO = 2
DOMAINS = [{"name": n, "weight": w} for n, w in zip("abcd", (0.4, 0.3, 0.2, 0.1), strict=True)]
METHOD = {"name": "odm", "warmup_steps": 2, "update_every": 2, "lag_steps": 5}


@dataclass
class Rank:
    """What one rank wrote down, over all its starts."""

    data: tuple[int, int]
    observes: bool
    version: str
    steps: list[dict] = field(default_factory=list)


@dataclass
class Job:
    """A finished (or killed) job."""

    folder: Path
    code: int
    text: str

    def ranks(self) -> list[Rank]:
        """What each rank wrote down at its last start."""
        found = []
        for path in sorted(self.folder.glob("rank*.jsonl")):
            rank = None
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                if "start" in entry:
                    rank = Rank(tuple(entry["data"]), entry["observes"], entry["version"])
                else:
                    rank.steps.append(entry)
            found.append(rank)
        return found

    def ledger(self) -> Ledger:
        """Rank 0's at the end."""
        return Ledger.from_bytes((self.folder / "ledger0.bytes").read_bytes())


def config_of(folder: Path, *, stage=0, accumulate=1, ranks=2, bf16=False, section=None, **more):
    """Write a ds_config.json with a section of ours."""
    body = {
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_accumulation_steps": accumulate,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
        "steps_per_print": 1000,
        "data_mixing": {"domains": DOMAINS, "seed": 7, "method": METHOD, **(section or {})},
        **({"bf16": {"enabled": True}} if bf16 else {}),
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ds.json"
    path.write_text(json.dumps(body))
    return path


def launch(
    folder: Path,
    *flags,
    ranks=2,
    script=HERE / "job.py",
    deepspeed=None,
    code=0,
    before=(),
    config_file=None,
    **config,
) -> Job:
    """Run a job through the launcher, to its end."""
    path = config_file or config_of(folder, ranks=ranks, **config)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [str(ROOT), *([str(deepspeed)] if deepspeed else [])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(reversed(places)),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PDSH_RCMD_TYPE": "none",
    }
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    command += ["--master_port", str(port)]
    command += [str(script), *before, "--out", str(folder)]
    command += ["--deepspeed", "--deepspeed_config", str(path)]
    process = subprocess.Popen(
        [*command, *map(str, flags)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        raise AssertionError(f"killed after {TIMEOUT} s:\n{text[-3000:]}") from None
    finally:
        kill_all_of(folder)
    if code is not None and process.returncode != code:
        raise AssertionError(f"code {process.returncode}:\n{text[-4000:]}")
    return Job(folder, process.returncode, text)


def kill_all_of(folder: Path) -> None:
    """Whatever still runs with the folder on its command line: a rank's own session outlives it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(folder).encode() in words:
                try:
                    os.kill(int(entry.name), signal.SIGKILL)
                except ProcessLookupError:
                    continue


def check(job: Job, *, first=0, accumulate=1) -> None:
    """Nothing lost or repeated from position `first` on; the same weights on all ranks."""
    ranks = job.ranks()
    world = ranks[0].data[1]
    for step in zip(*(r.steps for r in ranks), strict=True):
        same = [(s["step"], s["position"], s["weights"], s["digest"]) for s in step]
        assert all(s == same[0] for s in same)
        assert step[0]["global_samples"] == step[0]["position"]
    positions, readers = [], {}
    for rank in ranks:
        if any(s["fetched"] for s in rank.steps):
            fetched = [p for s in rank.steps for micro in s["fetched"] for p in micro]
            readers.setdefault(rank.data[0], []).append(fetched)
    assert sorted(readers) == list(range(world))
    for copies in readers.values():
        assert all(c == copies[0] for c in copies)  # both ends of a pipeline
        positions += copies[0]
    last = ranks[0].steps[-1]["position"]
    assert sorted(positions) == list(range(first, last))
    ledger = job.ledger()
    picks = Sampler(ledger).picks(0, last)
    for number in range(len(ledger.domains)):
        draws = picks.draw[picks.domain == number]
        assert sorted(draws.tolist()) == list(range(len(draws)))
