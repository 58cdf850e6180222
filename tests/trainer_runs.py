"""Runs under other people's trainers, for tests: what each saw, killed and resumed, and the truth.

Every run is in processes of its own, forked from one that has imported the frameworks already.
"""

import json
import multiprocessing
import os
import signal
import socket
from dataclasses import dataclass

import numpy as np
from controlled import Hedge, losses_of

import mixcore
from mixcore.trainers.mixer import Mixer

BATCH, SIZE, NUM, LENGTH, VOCABULARY = 16, 40, 4, 8, 32
EVERY = 2  # steps between two decisions
PRELOAD = [  # by the process that all others are forked from; what is not installed is left out
    "mixcore.trainers.huggingface",
    "mixcore.trainers.lightning",
    "transformers.models.gpt2.modeling_gpt2",
    "accelerate",
    "torchdata.stateful_dataloader",
]


@dataclass(frozen=True)
class Run:
    """How a job is set up; the mixture must not depend on anything here but steps and lag."""

    framework: str
    folder: str
    steps: int = 13
    world_size: int = 1
    workers: int = 0
    prefetch: int = 2
    micro_batches: int = 1
    lag: int | None = 5
    save_every: int = 5
    resume: bool = False
    kill_after: int | None = None
    pure: bool = True  # losses are a function of the sample; else the model's
    on_cap: str = "redistribute"


class Corpus:
    """Samples as a language model takes them, a function of (domain, number)."""

    def __init__(self, domain, size=SIZE):
        self.domain, self.size = domain, size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        tokens = np.random.default_rng([self.domain, i]).integers(0, VOCABULARY, LENGTH)
        return {"input_ids": tokens, "labels": tokens}


class Recording(Mixer):
    """Writes down what the trainer was given and what weights it had; may kill itself."""

    def __init__(self, run, rank):
        cap = None if run.on_cap == "redistribute" else 2
        domains = [mixcore.Domain(f"d{i}", SIZE, max_epochs=cap) for i in range(NUM)]
        ledger = mixcore.Ledger(domains, [4, 3, 2, 1], batch_size=BATCH, seed=7, on_cap=run.on_cap)
        method = Hedge(domains)
        datasets = [Corpus(d) for d in range(NUM)]
        super().__init__(ledger, datasets, method, EVERY, lag_steps=run.lag)
        self.run, self.path = run, os.path.join(run.folder, f"seen.{rank}")

    def write(self, **facts):
        with open(self.path, "a") as f:
            f.write(json.dumps(facts) + "\n")

    def observe(self, batch, loss_sums=None, tokens=None):
        if self.steps == self.run.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.run.pure:
            import torch

            losses = losses_of(batch["position"].numpy(), batch["domain"].numpy())
            loss_sums, tokens = map(torch.from_numpy, losses)
        super().observe(batch, loss_sums, tokens)
        names = ("position", "domain", "epoch", "sample")
        rows = zip(*(batch[name].tolist() for name in names), strict=True)
        self.write(rows=list(rows))

    def step(self):
        before = self.position
        decided = super().step()
        if self.position != before:
            self.write(step=self.steps, weights=self.ledger.weights_at(before).tolist())
        return decided


def micro_batch_size(run):
    return BATCH // run.world_size // run.micro_batches


def launch(run, timeout=90):
    """All ranks of a run; the exit code of each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = [
        context.Process(target=_life, args=(run, rank, port)) for rank in range(run.world_size)
    ]
    for p in processes:
        p.start()
    for p in processes:
        p.join(timeout)
        if p.exitcode is None:
            for q in processes:
                q.kill()
            raise TimeoutError(f"{run} has not ended within {timeout} s")
    return [p.exitcode for p in processes]


def _life(run, rank, port):
    """One rank, from its beginning to its end or to SIGKILL."""
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as usual
    if run.world_size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(run.world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    import torch
    import trainer_loops

    torch.set_num_threads(1)
    mixer = Recording(run, rank)
    try:
        model = getattr(trainer_loops, run.framework)(run, mixer)
    except Exception as e:
        with open(os.path.join(run.folder, f"error.{rank}"), "w") as f:
            f.write(str(e))
        raise
    torch.save(model.state_dict(), os.path.join(run.folder, f"model.{rank}.pt"))
    if rank == 0:
        mixer.ledger.save(os.path.join(run.folder, "ledger.jsonl"))


def truth(run):
    """The ledger of the same run without any trainer: one rank, no loader, never killed."""
    domains = [mixcore.Domain(f"d{i}", SIZE) for i in range(NUM)]
    ledger = mixcore.Ledger(domains, [4, 3, 2, 1], batch_size=BATCH, seed=7)
    controller = mixcore.Controller(ledger, Hedge(domains), EVERY, lag_steps=run.lag)
    sampler = mixcore.Sampler(ledger)
    for step in range(run.steps):
        positions = np.arange(step * BATCH, (step + 1) * BATCH)
        found = sampler.at(positions).domain
        controller.observe(found, *losses_of(positions, found))
        controller.step((step + 1) * BATCH)
    return ledger


def check(run, replayed=0):
    """From what the ranks wrote: nothing lost, nothing repeated, one truth, one mixture on all.

    Args:
        replayed: Steps that a crash made the run do twice.

    Returns:
        The ledger at the end.
    """
    seen, count, weights = {}, 0, {}
    for name in sorted(os.listdir(run.folder)):
        if not name.startswith("seen."):
            continue
        with open(os.path.join(run.folder, name)) as f:
            for line in f:
                entry = json.loads(line)
                for position, *what in entry.get("rows", ()):
                    seen[position] = what  # after a crash the later line counts
                    count += 1
                if "step" in entry:
                    weights.setdefault(entry["step"], set()).add(tuple(entry["weights"]))
    ledger = mixcore.Ledger.load(os.path.join(run.folder, "ledger.jsonl"))
    total = run.steps * BATCH
    picks = mixcore.Sampler(ledger).picks(0, total)
    wanted = np.stack([picks.domain, picks.epoch, picks.sample], axis=1).tolist()
    assert sorted(seen) == list(range(total))
    assert [seen[i] for i in range(total)] == wanted
    assert count == total + replayed * BATCH
    assert all(len(w) == 1 for w in weights.values()), "ranks had different weights at a step"
    assert len(weights) == run.steps
    assert len({w for s in weights.values() for w in s}) > 3  # they did change
    assert len(set(map(tuple, wanted))) == total  # no sample twice in an epoch
    return ledger
