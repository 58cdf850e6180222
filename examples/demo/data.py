"""The demo's use of mixcore: domains from files, a ledger with a schedule, a rank's micro-batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plan import Plan
from torch import Tensor
from torch.utils.data import DataLoader

import mixcore
from mixcore.batches import MixBatchSampler
from mixcore.dataset import MixDataset
from mixcore.gpt import VirtualDataset


@dataclass(frozen=True)
class Batch:
    """One micro-batch: tokens int64[samples, length + 1], and what each sample is, int64[samples]."""

    tokens: Tensor
    position: Tensor
    domain: Tensor
    draw: Tensor
    epoch: Tensor
    sample: Tensor


def open_domains(folder: Path, plan: Plan) -> dict[str, VirtualDataset]:
    return {name: VirtualDataset(folder / name, plan.length) for name in plan.domains}


def make_ledger(path, plan, datasets, rank):
    if rank == 0 and not path.exists():
        schedule = mixcore.linear([(s * plan.batch_size, w) for s, w in plan.anchors], every=plan.every)
        mixcore.Ledger(
            [mixcore.Domain(n, size=len(d)) for n, d in datasets.items()],
            weights=plan.anchors[0][1], batch_size=plan.batch_size, seed=plan.seed, schedule=schedule,
        ).save(path)
    torch.distributed.barrier()
    return mixcore.Ledger.load(path, append=rank == 0)


def live_decisions(ledger):
    return [
        {"at": d.position, "weights": list(d.weights), "reason": d.reason}
        for d in ledger.decisions
        if d.reason.startswith("live:")
    ]


def collate(items):
    return Batch(
        torch.stack([torch.as_tensor(np.asarray(i["tokens"], np.int64)) for i in items]),
        *(torch.tensor([int(i[k]) for i in items]) for k in ("position", "domain", "draw", "epoch", "sample")),
    )


def make_loader(ledger, datasets, plan, group, position):
    rank, world, micro = group
    ds = MixDataset(ledger, datasets)
    bs = MixBatchSampler(ledger, rank=rank, world_size=world, micro_batch_size=micro, position=position, end=plan.steps*plan.batch_size)
    return DataLoader(ds, batch_sampler=bs, num_workers=plan.workers, collate_fn=collate, prefetch_factor=2)
