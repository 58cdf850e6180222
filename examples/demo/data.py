"""The demo's use of mixcore: domains in files, a ledger with a schedule, one rank's micro-batches."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mixcore.batches import MixBatchSampler
from mixcore.dataset import MixDataset
from mixcore.gpt_dataset import GPTDataset
from plan import Plan
from torch import Tensor
from torch.utils.data import DataLoader

import mixcore


@dataclass(frozen=True)
class Batch:
    """One micro-batch: what each sample is, int64[samples], and its tokens [samples, length + 1]."""

    position: Tensor
    domain: Tensor
    draw: Tensor
    epoch: Tensor
    sample: Tensor
    tokens: Tensor


def open_domains(folder: Path, plan: Plan) -> dict[str, GPTDataset]:
    """Open every domain's .bin/.idx as samples of plan.length + 1 tokens; no index is built.

    Mode "virtual": sample i is always the same piece of the stream; the Sampler does the shuffling.
    """
    return {name: GPTDataset(folder / name, plan.length, mode="virtual") for name in plan.domains}


def make_ledger(
    path: Path, plan: Plan, datasets: dict[str, GPTDataset], rank: int
) -> mixcore.Ledger:
    """Load the run's ledger on every rank; rank 0 writes it first if this is the first attempt.

    Only rank 0 is attached to the file, so that each decision is written once.
    """
    domains = [mixcore.Domain(name, size=len(data)) for name, data in datasets.items()]
    if rank == 0 and not path.exists():
        schedule = mixcore.linear(
            [(step * plan.batch_size, weights) for step, weights in plan.anchors],
            every=plan.every,
        )
        mixcore.Ledger(domains, batch_size=plan.batch_size, seed=plan.seed, schedule=schedule).save(
            path
        )
    dist.barrier()
    ledger = mixcore.Ledger.load(path, domains)
    if rank == 0:
        ledger.attach(path)
    return ledger


def live_decisions(ledger: mixcore.Ledger) -> list[dict[str, Any]]:
    """Return the decisions made after the start: position, weights, reason."""
    return [
        {
            "at": decision.position,
            "weights": ledger.weights_at(decision.position).tolist(),
            "reason": decision.reason,
        }
        for decision in ledger.decisions[1:]
    ]


def make_loader(
    ledger: mixcore.Ledger,
    datasets: dict[str, GPTDataset],
    plan: Plan,
    group: tuple[int, int, int],
    position: int,
) -> DataLoader[Batch]:
    """Return the micro-batches of rank `group[0]` of `group[1]`, `group[2]` samples each."""
    rank, world, micro_batch = group
    return DataLoader(
        MixDataset(ledger, datasets),
        batch_sampler=MixBatchSampler(
            ledger,
            rank=rank,
            world_size=world,
            micro_batch_size=micro_batch,
            position=position,
            end=plan.steps * plan.batch_size,
        ),
        num_workers=plan.workers,
        collate_fn=collate,
    )


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Stack samples into tensors."""
    return Batch(
        **{
            field.name: torch.stack([torch.as_tensor(s[field.name]) for s in samples])
            for field in fields(Batch)
        }
    )
