"""Runs of the real Megatron on the CPU, and what their ranks recorded.

    corpus = write_corpus(tmp_path / "data", [4_000, 3_000, 2_000])
    run = train(tmp_path / "stock", corpus, ranks=2, flags=["--tensor-model-parallel-size", "2"])
    run.ranks[0].fetches[0].tensors["tokens"]

A run is a set of processes, one a rank, that find each other through a port which was free just
now. Whatever hangs is killed with everything it started.
"""

import contextlib
import os
import pickle
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mixcore.indexed_writer import IndexedWriter

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLE = ROOT / "examples" / "megatron" / "pretrain_gpt.py"
SEQUENCE = 16
TIMEOUT = 180  # seconds; a run of 50 iterations takes about 6

# What the CPU shim and the local implementation need, and the smallest of models.
MODEL = shlex.split("""
    --transformer-impl local --distributed-backend gloo --use-cpu-initialization --clip-grad 0
    --ckpt-format torch --no-masked-softmax-fusion --no-bias-gelu-fusion --no-bias-dropout-fusion
    --no-rope-fusion --no-gradient-accumulation-fusion --no-persist-layer-norm
    --attention-dropout 0 --hidden-dropout 0 --no-create-attention-mask-in-dataloader
    --num-layers 2 --hidden-size 16 --num-attention-heads 2 --lr 1e-3 --lr-decay-style constant
    --tokenizer-type NullTokenizer --eval-iters 0 --eval-interval 1000 --log-interval 1
    --split 100,0,0
""")
ENVIRONMENT = {
    "NO_VCS_VERSION": "1",  # else Megatron adds the commit of whatever repository it lies in
    "TORCHDYNAMO_DISABLE": "1",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "OMP_NUM_THREADS": "1",
    "MASTER_ADDR": "127.0.0.1",
}


def core(version: str = "0.19.2") -> Path:
    """The folder of an installed megatron-core."""
    path = ROOT / "build" / f"megatron-core-{version}"
    if not (path / ".installed").exists():
        raise AssertionError(f"there is no {path}: `make test` prepares it (`make megatron` alone)")
    return path


@dataclass(frozen=True)
class Corpus:
    """Domains whose tokens are all different, over all of them: a token says where it is from."""

    prefixes: tuple[str, ...]
    starts: tuple[int, ...]  # first token of each domain; then the end of the last one

    def blend(self, weights: Sequence[float]) -> list[str]:
        """The values of --data-path."""
        pairs = zip(weights, self.prefixes, strict=True)
        return [word for w, prefix in pairs for word in (str(w), prefix)]

    def domain(self, tokens: np.ndarray) -> np.ndarray:
        """The domain of each token."""
        return np.searchsorted(self.starts, tokens, side="right") - 1

    @property
    def vocab_size(self) -> int:
        """One more than the tokens in use: NullTokenizer takes the last one for itself."""
        return self.starts[-1] + 1


def write_corpus(folder: Path, tokens: Sequence[int], seed: int = 0) -> Corpus:
    """Write one domain of so many tokens each, in documents of 10 to 60."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    starts = [0]
    prefixes = []
    for d, size in enumerate(tokens):
        prefixes.append(str(folder / f"domain{d}"))
        at, end = starts[-1], starts[-1] + size
        with IndexedWriter(prefixes[-1], np.int32) as writer:
            while at < end:
                length = min(int(random.integers(10, 61)), end - at)
                writer.add_document(np.arange(at, at + length))
                at += length
        starts.append(end)
    return Corpus(tuple(prefixes), tuple(starts))


@dataclass
class Fetch:
    """One micro-batch, as one rank got it from its loader."""

    iteration: int
    training: bool
    tensors: dict[str, np.ndarray]


@dataclass
class Loss:
    """Sum of the losses of one micro-batch's tokens, on the last pipeline stage."""

    iteration: int
    training: bool
    sum: float
    tokens: int


@dataclass
class Rank:
    """What one rank recorded."""

    rank: int
    tp: int = 0
    pp: int = 0
    dp: int = 0
    cp: int = 0
    fetches: list[Fetch] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)

    def samples(self, key: str = "tokens") -> np.ndarray:
        """All that was fetched for training, one row a sample, in the order of fetching."""
        return np.concatenate([f.tensors[key] for f in self.fetches if f.training])


@dataclass
class Result:
    """A run that has ended."""

    folder: Path
    ranks: list[Rank]
    logs: list[str]
    codes: list[int]
    seconds: float

    @property
    def logged(self) -> dict[int, float]:
        """The losses of the log, by iteration.

        Megatron logs no loss of the first iteration after a start, and with the second the mean of
        both: compare from the third on.
        """
        lines = re.findall(r"iteration +(\d+)/.* lm loss: ([0-9.E+-]+)", self.logs[-1])
        return {int(iteration): float(loss) for iteration, loss in lines}

    def at(self, iteration: int, key: str = "tokens") -> np.ndarray:
        """One global batch in order of position: what the ranks that read data fetched for it.

        The readers are the ranks of tensor-parallel and context-parallel rank 0 on the first stage;
        a micro-batch of every data-parallel rank comes before the next one of any.
        """
        readers = [r for r in self.ranks if r.tp == r.pp == r.cp == 0]
        readers.sort(key=lambda r: r.dp)
        columns = [
            [f.tensors[key] for f in r.fetches if f.training and f.iteration == iteration]
            for r in readers
        ]
        return np.concatenate([part for row in zip(*columns, strict=True) for part in row])

    def positions(self, key: str = "tokens") -> np.ndarray:
        """All global batches one after the other: row i is the sample at position i."""
        last = max(f.iteration for r in self.ranks for f in r.fetches)
        first = min(f.iteration for r in self.ranks for f in r.fetches)
        return np.concatenate([self.at(i, key) for i in range(first, last + 1)])


class Running:
    """The processes of a run under way."""

    def __init__(self, folder: Path, commands: Sequence[list[str]], environment: dict[str, str]):
        self.folder, self.began = folder, time.monotonic()
        self.logs = [folder / f"log{i}" for i in range(len(commands))]
        self.processes = []
        for i, command in enumerate(commands):
            ranks = {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(len(commands))}
            with open(self.logs[i], "wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**environment, **ranks},
                    cwd=folder,
                    start_new_session=True,  # its loader's workers are killed with it
                )
            self.processes.append(process)

    def wait_for(self, text: str, timeout: float = TIMEOUT) -> None:
        """Return once the last rank's log has the text."""
        end = time.monotonic() + timeout
        while text not in self.logs[-1].read_text(errors="replace"):
            if time.monotonic() > end or any(p.poll() is not None for p in self.processes):
                self.kill()
                raise AssertionError(f"no {text!r} in the log:\n{self.tails()}")
            time.sleep(0.02)

    def kill(self) -> Result:
        """SIGKILL to every rank and its workers."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # workers may outlive their rank
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return self.result()

    def wait(self, timeout: float = TIMEOUT, code: int = 0) -> Result:
        """Return when all ranks have ended; if one ends with another code, the rest is killed."""
        end = time.monotonic() + timeout
        while any(p.poll() is None for p in self.processes):
            codes = [p.poll() for p in self.processes]
            failed = [c for c in codes if c not in (None, 0)]
            if failed:
                end = min(end, time.monotonic() + 10)  # for the others to say why, too
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"killed (codes so far: {codes}):\n{self.tails()}")
            time.sleep(0.02)
        result = self.result()
        if result.codes != [code] * len(result.codes):
            raise AssertionError(f"codes {result.codes}:\n{self.tails()}")
        return result

    def tails(self) -> str:
        """The end of every log."""
        return "\n".join(
            f"--- {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            for log in self.logs
        )

    def result(self) -> Result:
        """What there is now."""
        return Result(
            self.folder,
            [read_rank(self.folder, i) for i in range(len(self.processes))],
            [log.read_text(errors="replace") for log in self.logs],
            [p.returncode for p in self.processes],
            time.monotonic() - self.began,
        )


def read_rank(folder: Path, rank: int) -> Rank:
    """Read what one rank wrote; an incomplete last entry is that of a kill."""
    found = Rank(rank)
    path = folder / f"rank{rank}"
    if not path.exists():
        return found
    with open(path, "rb") as file:
        while True:
            try:
                kind, entry = pickle.load(file)
            except (EOFError, pickle.UnpicklingError):
                return found
            if kind == "rank":
                found = Rank(rank, **entry, fetches=found.fetches, losses=found.losses)
            elif kind == "fetch":
                found.fetches.append(Fetch(**entry))
            else:
                found.losses.append(Loss(**entry))


def environment(megatron: Path, record: Path, script: Path) -> dict[str, str]:
    """What a rank's process needs; its own number is added for each."""
    path = [str(HERE / "site"), str(megatron), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        **os.environ,
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "MASTER_PORT": str(port),
        "RECORD": str(record),
        "SCRIPT": str(script),
    }


def start(
    folder: Path,
    corpus: Corpus,
    *,
    ranks: int = 1,
    iterations: int | None = 50,
    weights: Sequence[float] = (0.5, 0.3, 0.2),
    flags: Sequence[str] = (),
    micro_batch: int = 2,
    global_batch: int | None = 8,
    patched: bool = False,
    megatron: Path | None = None,
    script: Path = EXAMPLE,
    launcher: Sequence[str] = (sys.executable,),
) -> Running:
    """Start a run in a folder of its own.

    Args:
        folder: Where it writes logs and records.
        corpus: Its data.
        ranks: How many processes.
        iterations: --train-iters; None: the flags say --train-samples.
        weights: One a domain.
        flags: Further flags of Megatron.
        micro_batch: --micro-batch-size.
        global_batch: --global-batch-size; None: not given.
        patched: Run the script through `-m megatron_patch`.
        megatron: The folder that holds the package `megatron`; megatron-core 0.19.2 if not given.
        script: What to run: a script that calls `megatron.training.pretrain`.
        launcher: The command before the script, or before `-m megatron_patch`.
    """
    folder.mkdir(parents=True)
    command = [
        *launcher,
        *(["-m", "megatron_patch"] if patched else []),
        *[str(HERE / "record.py"), *MODEL, "--vocab-size", str(corpus.vocab_size)],
        *["--seq-length", str(SEQUENCE), "--max-position-embeddings", str(SEQUENCE)],
        *["--micro-batch-size", str(micro_batch)],
        *([] if global_batch is None else ["--global-batch-size", str(global_batch)]),
        *([] if iterations is None else ["--train-iters", str(iterations)]),
        *["--data-path", *corpus.blend(weights)],
        *["--data-cache-path", str(folder / "cache"), *flags],
    ]
    return Running(folder, [command] * ranks, environment(megatron or core(), folder, script))


def train(folder: Path, corpus: Corpus, *, timeout: float = TIMEOUT, **options) -> Result:
    """Start a run and wait for its end; options are those of `start`."""
    return start(folder, corpus, **options).wait(timeout)
