"""The demo's use of mixcore: domains in files, a ledger with a schedule, a rank's micro-batches."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from plan import Plan

import mixcore
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
        schedule = mixcore.linear(points, every=plan.every)
        ledger = mixcore.Ledger(
            domains,
            batch_size=plan.batch_size,
            seed=plan.seed,
            tokens_per_sample=plan.length,
            schedule=schedule,
        )
        ledger.save(path)
    dist.barrier()
    ledger = mixcore.Ledger.load(path, domains)
    if rank == 0:
        ledger.attach(path)
    return ledger


def live_decisions(ledger: mixcore.Ledger) -> list[dict[str, Any]]:
    """Return the decisions made after the start, with the weights they put in force."""
    return [
        {
            "at": decision.position,
            "weights": ledger.weights_at(decision.position).tolist(),
            "reason": decision.reason,
        }
        for decision in ledger.decisions[1:]
    ]
