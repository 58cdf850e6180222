"""One rank of a DeepSpeed job for the tests: trains a toy, writes down every sample and weight.

Started by the real launcher. What the mixer is told of a sample's loss is a function of the sample,
so that decisions are the same whatever the number of ranks; the model trains on a real loss.
"""

import argparse
import json
import os
import signal
from pathlib import Path

import deepspeed
import deepspeed.ops
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import mixcore.trainers.deepspeed as mixed

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled for a minute

SIZES = {"a": 60, "b": 45, "c": 30, "d": 14}
WIDTH = 8


class Corpus:
    """Samples that are functions of (domain, number)."""

    def __init__(self, domain, size):
        self.domain, self.size = domain, size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        x = np.random.default_rng([self.domain, i]).normal(size=WIDTH).astype(np.float32)
        return {"x": x, "y": x[:1] * (self.domain + 1)}


def observed_losses(domains, samples):
    """What the method sees: float64, one a sample."""
    return ((domains * 7 + samples * 13) % 11).double() / 8 + domains


class Loss(nn.Module):
    """Mean squared error of a micro-batch."""

    def forward(self, outputs, y):
        return ((outputs - y) ** 2).mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--kill-after", type=int)
    parser.add_argument("--unmanaged", action="store_true")
    parser.add_argument("--io", action="store_true")
    parser.add_argument("--resize", type=int, nargs=2, metavar=("STEP", "SAMPLES"))
    parser.add_argument("--local_rank", type=int)
    deepspeed.add_config_arguments(parser)
    mixed.add_arguments(parser)
    args = parser.parse_args()
    torch.manual_seed(5)
    layers = [nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 1)]
    deepspeed.init_distributed("gloo")
    config = json.loads(Path(args.deepspeed_config).read_text())
    args.deepspeed_config = None
    box = {}
    if args.stages > 1:
        from deepspeed.pipe import PipelineModule

        def loss_fn(outputs, labels):
            y, domains, samples = labels[:, :1], labels[:, 1].long(), labels[:, 2].long()
            losses = observed_losses(domains, samples)
            box["mixer"].observe_losses(losses, torch.ones_like(samples))
            return Loss()(outputs, y)

        model = PipelineModule(layers=layers, num_stages=args.stages, loss_fn=loss_fn)
    else:
        model = nn.Sequential(*layers)
    engine, *_ = deepspeed.initialize(
        args=args, model=model, model_parameters=model.parameters(), config=config
    )
    datasets = {name: Corpus(i, size) for i, (name, size) in enumerate(SIZES.items())}

    def pipe(batch):
        columns = [batch["y"][:, 0], batch["domain"].float(), batch["sample"].float()]
        seen.append(batch["position"].tolist())
        return batch["x"], torch.stack(columns, dim=1)

    loader, mixer = mixed.initialize(
        args, engine, datasets, num_workers=args.workers, pipe=pipe, engine_io=args.io
    )
    box["mixer"] = mixer
    folder = Path(args.out)
    seen = []
    if (folder / "checkpoint").exists():
        mixer.load_checkpoint(str(folder / "checkpoint"))
    log = open(folder / f"rank{dist.get_rank()}.jsonl", "a", buffering=1)  # noqa: SIM115
    who = {"start": mixer.steps, "data": mixer._facts.data, "job": mixer._facts.job}
    who["version"] = deepspeed.__version__
    log.write(json.dumps({**who, "observes": mixer._facts.observes}) + "\n")

    def done():
        step = mixer.steps
        weights = mixer.ledger.weights_at(mixer.position - 1).tolist()
        entry = {"step": step, "position": mixer.position, "fetched": seen.copy()}
        entry |= {"weights": weights, "digest": mixer.ledger.digest_at(mixer.position)}
        entry["global_samples"] = int(engine.global_samples)
        log.write(json.dumps(entry) + "\n")
        seen.clear()
        if args.resize is not None and step == args.resize[0]:
            mixer.set_train_batch_size(args.resize[1])
        if step % args.save_every == 0:
            mixer.save_checkpoint(str(folder / "checkpoint"))
        if step == args.kill_after:
            os.killpg(os.getpgid(0), signal.SIGKILL) if dist.get_rank() == 0 else signal.pause()
        return step >= args.steps

    batches = iter(loader)
    if args.stages > 1:
        while True:
            engine.train_batch(data_iter=batches)
            mixer.step()
            if done():
                break
    else:
        for batch in batches:
            seen.append(batch["position"].tolist())
            dtype = next(engine.module.parameters()).dtype
            outputs = engine(batch["x"].to(dtype))
            loss = Loss()(outputs.float(), batch["y"])
            engine.backward(loss)
            losses = observed_losses(batch["domain"], batch["sample"])
            mixer.observe(batch, losses, torch.ones_like(batch["sample"]))
            if not args.unmanaged or mixer.observed == mixer.micro_batches:
                engine.step()
            mixer.step()
            if mixer.observed == 0 and done():
                break
    (folder / f"ledger{dist.get_rank()}.bytes").write_bytes(mixer.ledger.to_bytes())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
