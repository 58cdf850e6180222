"""One rank of the demo's training: `run.py` starts it, kills it, starts it again in another size.

Everything it needs is in the output folder: `plan.json`, `tokens/`, `ledger.json`, `checkpoint/`.
What it trained on goes to `log/attempt-<n>-rank-<r>.jsonl`, one line a step, before the checkpoint
that contains the step.
"""

import argparse
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from data import in_words, live_decisions, open_controller, open_domains, open_ledger
from model import GPT, sample_losses
from plan import Plan
from torch import Tensor
from torch.utils.data import DataLoader

from mixcore.batches import MixBatchSampler
from mixcore.controller import Controller
from mixcore.dataset import MixDataset

Batch = dict[str, Tensor]  # tokens [samples, length + 1]; position, domain, ... int64[samples]
MICRO_BATCH = 16  # samples a forward pass: 2 ranks take one a step, 1 rank takes two
LIVE_WINDOW = 50  # steps whose losses the live decision looks at
LIVE_LEAD = 8  # steps from the live decision to its effect: more than the loader fetches ahead


class Log:
    """An append-only file of JSON lines; a line is handed to the kernel whole."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)

    def write(self, kind: str, **facts: Any) -> None:
        """Append one line. What is written survives SIGKILL, though not a power cut."""
        os.write(self.file, (json.dumps({"kind": kind, **facts}) + "\n").encode())


class Trainer:
    """Model, optimizer, ledger, log and, where a method steers, controller of one rank."""

    def __init__(self, out: Path, attempt: int, rank: int, world: int) -> None:
        self.out, self.attempt, self.rank, self.world = out, attempt, rank, world
        self.plan = plan = Plan.load(out / "plan.json")
        torch.manual_seed(plan.seed)
        self.model = GPT(plan.vocab, plan.width, plan.layers, plan.heads, plan.length)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
        )
        self.step = 0
        self.datasets = open_domains(out / "tokens", plan)
        self.ledger = open_ledger(out / "ledger.json", plan, self.datasets, rank)
        self.sampler = MixBatchSampler(
            self.ledger,
            MICRO_BATCH,
            rank=rank,
            world_size=world,
            end=plan.steps * plan.batch_size,
        )
        self.controller = open_controller(self.ledger, plan, rank, world) if plan.method else None
        self.log = Log(out / "log" / f"attempt-{attempt}-rank-{rank}.jsonl")
        self.recent = torch.zeros(2, len(plan.domains), dtype=torch.float64)

    @property
    def position(self) -> int:
        """Samples that the model has been trained on."""
        return self.step * self.plan.batch_size

    def resume(self) -> str | None:
        """Load the newest checkpoint, if any.

        Raises `mixcore.LedgerError` if it was trained under another ledger than `ledger.json`. How
        many ranks wrote it does not matter.
        """
        files = sorted((self.out / "checkpoint").glob("step-*.pt"))
        if not files:
            return None
        state = torch.load(files[-1], weights_only=True)
        if self.controller is not None:
            # The ledger's file went on until the kill: what it decided since is decided anew.
            self.controller.load_state_dict(state["controller"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        self.step = state["step"]
        return files[-1].name

    def save(self) -> None:
        """Write a checkpoint under a temporary name and rename it: none is ever half there.

        Rank 0 writes; the others only tell it what their controllers have observed.
        """
        controller = self.controller.state_dict() if self.controller is not None else None
        if self.rank:
            return
        folder = self.out / "checkpoint"
        folder.mkdir(exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(self.position),  # not what is fetched ahead
            "step": self.step,
            "controller": controller,
        }
        torch.save(state, folder / "unfinished")
        os.replace(folder / "unfinished", folder / f"step-{self.step:06d}.pt")
        for old in sorted(folder.glob("step-*.pt"))[:-2]:
            old.unlink()

    def run(self) -> None:
        """Train from the newest checkpoint to the plan's last step."""
        plan = self.plan
        checkpoint = self.resume()
        if checkpoint is None and self.controller is not None:
            self.save()  # so that decisions made before the next one can be made anew
        self.log.write(
            "start",
            attempt=self.attempt,
            rank=self.rank,
            world=self.world,
            step=self.step,
            steps=plan.steps,
            batch_size=plan.batch_size,
            domains=[{"name": name, "size": len(data)} for name, data in self.datasets.items()],
            anchors=plan.anchors,
            every=plan.every,
            decisions=live_decisions(self.ledger),
            checkpoint=checkpoint,
            ledger=self.ledger.digest,
            method=plan.method,
            method_options=plan.method_options,
            update_every=plan.update_every,
            lag_steps=plan.lag_steps,
        )
        dataset = MixDataset(self.ledger, self.datasets)
        loader = DataLoader(dataset, batch_sampler=self.sampler, num_workers=plan.workers)
        batches = iter(loader)
        while self.step < plan.steps:
            self.train_step(batches)
            if self.controller is not None:
                self.steer(self.controller)
            elif self.step >= plan.live_step - LIVE_LEAD and not live_decisions(self.ledger):
                self.decide()
            if self.step % plan.checkpoint_every == 0 or self.step == plan.steps:
                dist.barrier()  # every rank has logged what the checkpoint contains
                self.save()

    def train_step(self, batches: Iterator[Batch]) -> None:
        """Take one optimizer step over this rank's micro-batches and log what it saw."""
        began = time.monotonic()
        count = self.plan.batch_size // (self.world * MICRO_BATCH)
        mine = [next(batches) for _ in range(count)]
        losses = []
        self.optimizer.zero_grad()
        for batch in mine:
            loss = sample_losses(self.model, batch["tokens"])
            (loss.mean() / count).backward()
            losses.append(loss.detach())
            if self.controller is not None:
                tokens = torch.full((len(loss),), self.plan.length)
                self.controller.observe(batch["domain"], losses[-1] * tokens, tokens)
        self.average_gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.log_step(mine, torch.cat(losses), time.monotonic() - began)
        self.step += 1

    def average_gradients(self) -> None:
        """Average the gradients over the ranks, in one message."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / self.world).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def learning_rate(self) -> float:
        """Warm up over 5% of the steps, then a half cosine down to a tenth."""
        warm = max(1, self.plan.steps // 20)
        if self.step < warm:
            return self.plan.learning_rate * (self.step + 1) / warm
        progress = (self.step - warm) / max(1, self.plan.steps - warm)
        return self.plan.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))

    def log_step(self, batches: list[Batch], losses: Tensor, seconds: float) -> None:
        """Write down every sample of this step, a check sum of its tokens, and the losses."""
        columns = {
            name: [value for batch in batches for value in batch[name].tolist()]
            for name in ("position", "domain", "draw", "epoch", "sample")
        }
        crc = [zlib.crc32(row.numpy().tobytes()) for batch in batches for row in batch["tokens"]]
        domain = torch.tensor(columns["domain"])
        sums = torch.zeros(2, len(self.plan.domains), dtype=torch.float64)
        sums[0].index_add_(0, domain, losses.double() * self.plan.length)
        sums[1].index_add_(0, domain, torch.full_like(losses, self.plan.length).double())
        if self.step >= self.plan.live_step - LIVE_LEAD - LIVE_WINDOW:
            self.recent += sums
        self.log.write(
            "step",
            step=self.step,
            **columns,
            crc=crc,
            loss_sum=[round(x, 4) for x in sums[0].tolist()],
            tokens=[int(x) for x in sums[1].tolist()],
            seconds=round(seconds, 4),
        )

    def steer(self, controller: Controller) -> None:
        """Let the method decide where an update is due, and log what came of it."""
        made = controller.step(self.position)
        if made is not None:
            self.log.write("decision", step=self.step, **in_words(self.ledger.decisions[-1]))
        elif self.step % self.plan.update_every == 0:
            self.log.write("kept", step=self.step)

    def decide(self) -> None:
        """Change the weights while the run goes on: twice as much of what is learned worst.

        Rank 0 decides and all ranks append the same decision, so their ledgers stay equal.
        """
        dist.all_reduce(self.recent)
        decision: list[Any] = [None]
        if self.rank == 0:
            loss = self.recent[0] / self.recent[1].clamp(min=1)
            weights = torch.tensor(self.plan.anchors[-1][1], dtype=torch.float64)
            hardest = sorted(loss.topk(2).indices.tolist())
            weights[hardest] *= 2
            names = " and ".join(self.plan.domains[d] for d in hardest)
            reason = f"live: {names} have the highest loss, so their weights are doubled"
            decision = [((weights / weights.sum()).tolist(), reason)]
        dist.broadcast_object_list(decision)
        weights, reason = decision[0]
        position = self.position + LIVE_LEAD * self.plan.batch_size
        at = self.ledger.append(position, weights=weights, reason=reason)
        digests: list[Any] = [None] * self.world
        dist.all_gather_object(digests, self.ledger.digest)
        if len(set(digests)) > 1:
            raise SystemExit(f"the ranks' ledgers differ after the live decision: {digests}")
        self.log.write("decision", at=at, weights=weights, reason=reason)


def follow(parent: int) -> None:
    """End this process when the one that started it is gone, however that one was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Train as one rank of a process group that meets in a file, so that no port is needed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for name in ("--attempt", "--rank", "--world", "--parent"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    follow(options.parent)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # A method's decisions depend on the losses to the last bit, and these on the number of threads:
    # the same with every number of ranks, so that what is decided anew is decided alike.
    share = 2 if Plan.load(options.out / "plan.json").method else options.world
    torch.set_num_threads(max(1, min(4, (cores or 1) // share)))
    if Path("/sys/class/net/lo").exists():  # all ranks are here: the host's name may not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=(options.out / "output" / f"meeting-{options.attempt}").resolve().as_uri(),
        rank=options.rank,
        world_size=options.world,
        timeout=timedelta(minutes=2),
    )
    Trainer(options.out, options.attempt, options.rank, options.world).run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
