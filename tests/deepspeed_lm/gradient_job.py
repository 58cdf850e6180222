"""One rank: inner products of per-domain gradients under every ZeRO stage; rank 0 writes them."""

import argparse
import json
from pathlib import Path

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from torch import nn

from mixcore.trainers.deepspeed_gradients import apart, zero_probe

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
D, SAMPLES = 3, 4


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3))


def batches(world=2):
    """[step][domain][rank] -> (x, y)."""
    g = torch.Generator().manual_seed(1)
    return [
        [
            [
                (torch.randn(SAMPLES, 5, generator=g) + d, torch.randn(SAMPLES, 3, generator=g))
                for _ in range(world)
            ]
            for d in range(D)
        ]
        for _ in range(2)
    ]


def loss_of(net, batch):
    return ((net(batch[0]) - batch[1]) ** 2).mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--local_rank", type=int)
    deepspeed.add_config_arguments(parser)
    args = parser.parse_args()
    deepspeed.init_distributed("gloo")
    rank, found = dist.get_rank(), {}
    for stage in range(4):
        config = json.loads(Path(args.deepspeed_config).read_text())
        config["zero_optimization"] = {"stage": stage}
        config["gradient_accumulation_steps"] = 2
        config.pop("data_mixing")
        net = model()
        engine, *_ = deepspeed.initialize(
            model=net, model_parameters=net.parameters(), config=config
        )
        probe = zero_probe(engine, D, parameters="all")
        for number, domains in enumerate(batches()):
            for domain, ranks in enumerate(domains):
                with apart(engine):
                    engine.backward(loss_of(engine, ranks[rank]), scale_wrt_gas=False)
                    probe.observe(domain, samples=SAMPLES * 2)
            # A step of training in between: what was measured must not be in it.
            for ranks in domains[:2]:
                engine.backward(loss_of(engine, ranks[rank]))
                engine.step()
            signals = probe.signals()
            found[f"{stage}.{number}"] = {
                name: value.tolist() for name, value in signals.items() if hasattr(value, "tolist")
            }
    if rank == 0:
        Path(args.out, "gradients.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
