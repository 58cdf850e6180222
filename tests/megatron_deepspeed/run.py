"""The real Megatron-DeepSpeed on the CPU, stock against patched; `docs/megatron_deepspeed.md`.

    python tests/megatron_deepspeed/run.py CHECKOUT FOLDER

Not a part of the test suite: DeepSpeed up to 0.19.6, transformers and the rest must be on the path.
Prints one line a check, and stops at the first that fails.
"""

import json
import os
import pickle
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "megatron_lm")]
from megatron_runs import write_corpus  # noqa: E402

SEQUENCE, BATCH, STEPS = 16, 8, 50
FLAGS = shlex.split(f"""
    --num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length {SEQUENCE}
    --max-position-embeddings {SEQUENCE} --micro-batch-size 2 --global-batch-size {BATCH}
    --lr 1e-3 --min-lr 1e-3 --lr-decay-style constant --tokenizer-type NullTokenizer
    --data-impl mmap --split 95,5,0 --eval-iters 1 --eval-interval 1000 --log-interval 1
    --no-masked-softmax-fusion --no-bias-gelu-fusion --no-bias-dropout-fusion
    --no-gradient-accumulation-fusion --no-async-tensor-model-parallel-allreduce
    --attention-dropout 0 --hidden-dropout 0 --use-cpu-initialization --clip-grad 0
    --distributed-backend gloo --deepspeed --deepspeed-activation-checkpointing --zero-stage 1
""")
LAYOUTS = {
    "DP2": (2, ["--no-pipeline-parallel"]),
    "TP2": (2, ["--no-pipeline-parallel", "--tensor-model-parallel-size", "2"]),
    "PP2": (2, ["--pipeline-model-parallel-size", "2"]),
}
START, LATER = [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]


class Runs:
    """Starts runs of one checkout, in folders below one."""

    def __init__(self, checkout, folder):
        self.checkout, self.folder = checkout.resolve(), folder.resolve()
        self.corpus = write_corpus(self.folder / "data", [6000, 4000, 3000])
        self.config = self.folder / "ds_config.json"
        batch = {"train_batch_size": BATCH, "train_micro_batch_size_per_gpu": 2}
        zero = {"stage": 1}
        self.config.write_text(json.dumps({**batch, "zero_optimization": zero}))
        self.mix = self.folder / "mix.yaml"
        self.mix.write_text("order: megatron\n")

    def __call__(self, name, layout, *flags, patched=True, workers=0, steps=STEPS, weights=START):
        out = self.folder / name
        out.mkdir()
        ranks, layout_flags = LAYOUTS[layout]
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command = [
            *[sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)],
            *["--master_addr", "127.0.0.1", "--master_port", str(port)],
            *(["-m", "megatron_patch"] if patched else []),
            *[str(HERE / "record.py"), *FLAGS, *layout_flags],
            *["--deepspeed_config", str(self.config), "--num-workers", str(workers)],
            *["--vocab-size", str(self.corpus.vocab_size), "--train-iters", str(steps)],
            *["--data-path", *self.corpus.blend(weights), *flags],
        ]
        log = out / "log"
        with open(log, "w") as file:
            code = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=300,
                cwd=self.checkout,
                env=self.environment(out, ranks),
            ).returncode
        return Result(out, log.read_text(), code, ranks)

    def environment(self, out, ranks):
        paths = [str(HERE / "site"), str(self.checkout), str(ROOT)]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
            "SCRIPT": str(self.checkout / "pretrain_gpt.py"),
            "RECORD": str(out),
            "DS_ACCELERATOR": "cpu",
            "LOCAL_SIZE": str(ranks),  # how many devices DeepSpeed sees
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        }


class Result:
    """A run that has ended."""

    def __init__(self, folder, log, code, ranks):
        self.folder, self.log, self.code = folder, log, code
        found = re.findall(r"iteration +(\d+)/.*?lm loss: (\S+)", log)
        self.losses = {int(i): float(x) for i, x in found}
        self.ranks = [self._read(folder / f"rank{r}") for r in range(ranks)]

    @staticmethod
    def _read(path):
        entries = []
        if path.exists():
            with open(path, "rb") as file:
                while True:
                    try:
                        entries.append(pickle.load(file))
                    except EOFError:
                        break
        return entries

    def ok(self):
        check(f"{self.folder.name}: exit code 0", self.code == 0)
        return self

    def samples(self, rank, start=0, stop=10**9):
        """Rows of tokens that a rank read for the steps of [start, stop)."""
        rows = [e["text"] for e in self.ranks[rank] if start <= e["consumed"] < stop]
        return np.concatenate(rows) if rows else np.empty((0, SEQUENCE + 1), np.int64)

    def positions(self, layout):
        """All rows of the run, in the order of positions."""
        if layout != "DP2":
            return self.samples(0)
        both = zip(self.ranks[0], self.ranks[1], strict=True)
        return np.concatenate([e["text"] for pair in both for e in pair])


def check(name, holds, detail=""):
    print(f"{'ok  ' if holds else 'FAIL'} {name} {detail}".rstrip(), flush=True)
    if not holds:
        sys.exit(1)


def same(one, other):
    return len(one) == len(other) and all(
        sorted(a) == sorted(b) and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def constant_weights(run, layout):
    stock = run(f"{layout}-stock", layout, patched=False).ok()
    for workers in (0, 2):
        name = f"{layout}-same-w{workers}"
        mixed = run(name, layout, "--mix-config", str(run.mix), workers=workers).ok()
        equal = all(same(a, b) for a, b in zip(stock.ranks, mixed.ranks, strict=True))
        read = [len(r) for r in stock.ranks]
        check(f"{name}: every batch as stock's", equal and max(read) > 0, f"batches {read}")
        check(f"{name}: every logged loss as stock's", stock.losses == mixed.losses)


def change(run, layout, order, workers):
    """Weights change at half-run; then the same from a checkpoint at step 30."""
    name = f"{layout}-{order}-w{workers}"
    mix = run.folder / f"{name}.yaml"
    later = ", ".join(f"domain{d}: {w}" for d, w in enumerate(LATER))
    mix.write_text(
        f"order: {order}\nschedule:\n  kind: piecewise\n  points:\n"
        f"    - {{at: 200, weights: {{{later}}}}}\n"
    )
    flags = ["--mix-config", str(mix)]
    whole = run(name, layout, *flags, workers=workers).ok()
    rows = whole.positions(layout)
    domains = run.corpus.domain(rows[:, 0])
    counts = [
        np.bincount(domains[part], minlength=3).tolist() for part in (slice(200), slice(200, None))
    ]
    expected = [np.array(w) * 200 for w in (START, LATER)]
    far = max(np.abs(np.array(c) - e).max() for c, e in zip(counts, expected, strict=True))
    check(f"{name}: shares before and after", far <= 2, str(counts))
    for d in range(3):
        mine = [tuple(row) for row in rows[domains == d]]
        one_epoch = len(set(mine))
        epoch = (int(0.95 * (run.corpus.starts[d + 1] - run.corpus.starts[d])) - 1) // SEQUENCE
        known = min(len(mine), epoch - 8)  # the split is by documents: an epoch is about this long
        first = len(set(mine[:known]))
        check(
            f"{name}: domain {d}: no repeat in its first {known} of {len(mine)} draws",
            first == known,
        )
        if len(mine) > epoch + 8:
            check(f"{name}: domain {d}: goes on in a second epoch", one_epoch < len(mine))
        else:
            check(f"{name}: domain {d}: no repeat", one_epoch == len(mine))
    if layout == "PP2":
        check(f"{name}: both ends read the same", same(*whole.ranks))
    save = str(run.folder / f"{name}-checkpoint")
    part = run(
        f"{name}-part",
        layout,
        *flags,
        "--save",
        save,
        "--save-interval",
        "30",
        "--exit-interval",
        "30",
        workers=workers,
    ).ok()
    rest = run(f"{name}-rest", layout, *flags, "--load", save, workers=2 - workers).ok()
    for rank in range(2):
        joined = np.concatenate([part.samples(rank, 0, 240), rest.samples(rank, 240)])
        check(
            f"{name}: rank {rank}: part + resumed rest read the same",
            np.array_equal(joined, whole.samples(rank)),
        )
    late = {i: x for i, x in whole.losses.items() if i > 30}
    check(f"{name}: losses of the resumed rest", rest.losses == late, f"{len(late)} iterations")


def adopt(run, layout):
    """A checkpoint of stock Megatron-DeepSpeed, gone on from with other weights."""
    save = str(run.folder / f"{layout}-adopted-checkpoint")
    part = run(
        f"{layout}-adopted-part",
        layout,
        "--save",
        save,
        "--save-interval",
        "30",
        "--exit-interval",
        "30",
        patched=False,
    ).ok()
    rest = run(
        f"{layout}-adopted-rest",
        layout,
        "--load",
        save,
        "--mix-config",
        str(run.mix),
        weights=LATER,
    ).ok()
    before, after = part.positions(layout)[:240], rest.positions(layout)
    seen = {tuple(row) for row in before}
    domains = run.corpus.domain(after[:, 0])
    counts = np.bincount(domains, minlength=3).tolist()
    again = sum(tuple(row) in seen for row in after)
    check(
        f"{layout}-adopted: nothing again after the change", again == 0, f"shares {counts} of 160"
    )
    check(f"{layout}-adopted: shares", np.abs(np.array(counts) - 160 * np.array(LATER)).max() <= 2)


def steered(run):
    """A method that needs losses by domain decides alike with and without a pipeline."""
    first = {}
    for layout in LAYOUTS:
        save = run.folder / f"{layout}-steered-checkpoint"
        flags = ["--mix-method", "odm", "--mix-update-every", "5", "--mix-lag", "5"]
        run(f"{layout}-steered", layout, *flags, "--save", str(save), "--save-interval", "50").ok()
        lines = (save / "mixcore_decisions.jsonl").read_text().splitlines()
        check(f"{layout}-steered: decisions", len(lines) == STEPS // 5, str(len(lines)))
        first[layout] = json.loads(lines[0])
    for layout, decision in first.items():
        alike = np.allclose(decision["loss"], first["DP2"]["loss"], rtol=1e-3)
        equal = decision["tokens"] == first["DP2"]["tokens"]
        check(f"{layout}-steered: losses and tokens by domain as DP2's", alike and equal)


def main(checkout, folder):
    folder.mkdir(parents=True)
    run = Runs(checkout, folder)
    for layout in LAYOUTS:
        constant_weights(run, layout)
    for layout in ("DP2", "PP2"):
        change(run, layout, "megatron", 0)
    change(run, "DP2", "balanced", 2)
    change(run, "PP2", "balanced", 2)
    adopt(run, "DP2")
    adopt(run, "PP2")
    steered(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
