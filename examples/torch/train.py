"""Plain torch: DDP and a DataLoader, ODM steers the mixture, resumed on any number of ranks.

torchrun --nproc-per-node 2 examples/torch/train.py --out out
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import mixcore
from mixcore.distributed import torch_broadcast, torch_reduce
from mixcore.trainers.losses import sample_losses

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy


def main() -> None:
    args = toy.arguments()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    talk = {}
    if world_size > 1:
        dist.init_process_group("gloo")
        talk = {"reduce": torch_reduce(), "broadcast": torch_broadcast()}
    checkpoint = Path(args.out) / "checkpoint.pt"
    saved = torch.load(checkpoint) if checkpoint.exists() else None

    ledger = mixcore.Ledger.from_bytes(saved["ledger"]) if saved else toy.new_ledger()
    controller = mixcore.Controller(
        ledger,
        mixcore.method("odm", domains=ledger.domains),
        update_every=2,
        lag_steps=3,  # declared, so that the order does not depend on the workers
        rank=rank,
        world_size=world_size,
        **talk,
    )
    consumed = 0
    torch.manual_seed(0)
    model = toy.Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if saved:
        consumed = saved["consumed"]
        controller.load_state_dict(saved["controller"])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world_size > 1 else model

    batches = mixcore.MixBatchSampler(
        ledger,
        toy.BATCH // world_size // args.accumulate,
        rank=rank,
        world_size=world_size,
        position=consumed,
        end=args.steps * toy.BATCH,
    )
    dataset = mixcore.MixDataset(ledger, toy.corpora())
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=args.workers)
    for number, batch in enumerate(loader, start=1):
        logits = wrapped(batch["tokens"])
        (toy.loss_of(logits, batch["tokens"]) / args.accumulate).backward()
        controller.observe(batch["domain"], *sample_losses(logits, batch["tokens"]))
        if number % args.accumulate:
            continue
        optimizer.step()
        optimizer.zero_grad()
        consumed += toy.BATCH
        controller.step(consumed)
        if consumed % (10 * toy.BATCH) == 0:
            state = {
                "consumed": consumed,  # trained on, whatever the workers have fetched
                "ledger": ledger.to_bytes(),  # with what is decided and not yet in force
                "controller": controller.state_dict(),  # every rank calls this
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            if rank == 0:
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, f"{checkpoint}.new")
                os.replace(f"{checkpoint}.new", checkpoint)
    if rank == 0:
        toy.report(ledger, consumed)
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
