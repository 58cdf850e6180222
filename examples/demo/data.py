"""The demo's use of mixcore: domains in files, a ledger that begins with the plan's weights."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from plan import Plan

import mixcore
from mixcore.decision import Decision
from mixcore.distributed import torch_broadcast, torch_reduce
from mixcore.gpt_dataset import GPTDataset


def open_domains(folder: Path, plan: Plan) -> dict[str, GPTDataset]:
    """Open every domain's .bin/.idx as samples of plan.length + 1 tokens; no index is built.

    In mode "virtual" sample i is always the same piece of the stream: shuffling is the sampler's.
    """
    return {name: GPTDataset(folder / name, plan.length, mode="virtual") for name in plan.domains}


def open_ledger(
    path: Path, plan: Plan, datasets: dict[str, GPTDataset], rank: int
) -> mixcore.Ledger:
    """Load the run's ledger on every rank; rank 0 writes it first if it is not there yet.

    Only rank 0 is attached to the file, so that each later decision is written once.
    """
    domains = [mixcore.Domain(name, size=len(data)) for name, data in datasets.items()]
    if rank == 0 and not path.exists():
        points = [(step * plan.batch_size, weights) for step, weights in plan.anchors]
        schedule = mixcore.linear(points, every=plan.every) if len(points) > 1 else None
        ledger = mixcore.Ledger(
            domains,
            plan.anchors[0][1] if schedule is None else None,
            batch_size=plan.batch_size,
            seed=plan.seed,
            tokens_per_sample=plan.length,
            schedule=schedule,
        )
        ledger.save(path)
    dist.barrier()
    ledger = mixcore.Ledger.load(path, domains)
    dist.barrier()  # all have read it before rank 0 writes to it
    if rank == 0:
        ledger.attach(path)
    return ledger


def live_decisions(ledger: mixcore.Ledger) -> list[dict[str, Any]]:
    """Return the decisions made after the start, as they were made, for the log."""
    return [in_words(decision) for decision in ledger.decisions[1:]]


def in_words(decision: Decision) -> dict[str, Any]:
    """Return a decision about weights as plain values."""
    assert decision.shares is not None
    return {
        "at": decision.position,
        "weights": (decision.shares / float(1 << 62)).tolist(),
        "shares": decision.shares.tolist(),
        "replace_future": decision.replace_future,
        "reason": decision.reason,
        "author": decision.author,
    }


def open_controller(
    ledger: mixcore.Ledger, plan: Plan, rank: int, world: int
) -> mixcore.Controller:
    """Return this rank's controller. The lag is the plan's: it is part of the run, as the seed."""
    assert plan.method is not None
    return mixcore.Controller(
        ledger,
        mixcore.method(plan.method, domains=ledger.domains, **plan.method_options),
        plan.update_every,
        lag_steps=plan.lag_steps,
        train_samples=plan.steps * plan.batch_size,
        rank=rank,
        world_size=world,
        reduce=torch_reduce() if dist.is_initialized() else None,
        broadcast=torch_broadcast() if dist.is_initialized() else None,
    )
