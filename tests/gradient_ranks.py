"""One of two gloo ranks: every way to observe gradients, what came of it in a file."""

import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from gradient_model import D, batches, loss_of, model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

from mixcore.gradients import GradientProbe


def run(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=2)
    data = batches(micro=4)
    # 1. DDP, other domains on other ranks at the same time, gradients not synchronised
    net = DDP(model())
    probe = GradientProbe(net, D, parameters="all", reduce_data=dist.all_reduce)
    jobs = [(i, b) for i, parts in enumerate(data) for b in parts]
    mine = jobs[::2] if rank == 0 else jobs[1::2][::-1]
    for i, batch in mine:
        with net.no_sync(), probe.capture(i, samples=4):
            loss_of(net, batch).backward()
    local = probe.signals()

    # the same while DDP synchronises: capture sees this rank's own gradient
    for i, batch in mine:
        with probe.capture(i, samples=4):
            loss_of(net, batch).backward()
    synced = probe.signals()

    # a domain that one rank never saw
    net.zero_grad()
    if rank == 0:
        with net.no_sync(), probe.capture(0, samples=4):
            loss_of(net, data[0][0]).backward()
    alone = probe.signals()

    # 2. DDP's averaged gradient, one domain on both ranks
    averaged = GradientProbe(net, D, parameters="all")
    for i, parts in enumerate(data):
        for k in (0, 2):
            net.zero_grad()
            loss_of(net, parts[k + rank]).backward()
            averaged.observe(i, samples=8)
    replicated = averaged.signals()

    # 3. FSDP2: reduced shards
    sharded_net = model()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (sharded_net[0], sharded_net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded_net, mesh=mesh)
    probe = GradientProbe(
        sharded_net, D, parameters="all", reduce_shards=dist.all_reduce, clip_norm=1e9
    )
    first = True
    for i, parts in enumerate(data):
        for k in (0, 2):  # accumulated over the whole step
            loss_of(sharded_net, parts[k + rank]).backward()
            assert probe.observe(i, samples=8, first=first)
            first = False
    sharded = probe.signals()
    try:
        with probe.capture(0, samples=1):
            pass
        refused = False
    except ValueError as e:
        refused = "observe" in str(e)

    # 4. an overflow on one rank's shard is one on every rank
    sharded_net.zero_grad()
    loss_of(sharded_net, data[0][rank]).backward()
    if rank == 1:
        sharded_net[0].weight.grad.to_local()[0, 0] = torch.inf
    taken = probe.observe(0, samples=8)

    # 5. several ranks and no reduction
    try:
        with GradientProbe(net, D).capture(0, samples=1):
            pass
        unreduced = False
    except ValueError as e:
        unreduced = "reduce_data" in str(e)
    found = {
        "local": local,
        "synced": synced,
        "alone": alone,
        "replicated": replicated,
        "sharded": sharded,
    }
    out = {
        f"{name}.{key}": signals[key]
        for name, signals in found.items()
        for key in ("grad_dot", "grad_norm2", "grad_var", "samples")
    }
    np.savez(path + f".{rank}.npz", refused=refused, taken=taken, unreduced=unreduced, **out)
    dist.barrier()
    # no teardown: gloo's threads may abort a process that another one has just left
    os._exit(0)


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2])
