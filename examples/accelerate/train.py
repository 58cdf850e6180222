"""Accelerate: a loop of one's own, ODM steers the mixture, saved and loaded with save_state.

accelerate launch --cpu --num_processes 2 examples/accelerate/train.py --out out
"""

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

import mixcore
from mixcore.trainers.accelerate import prepare_loader
from mixcore.trainers.losses import sample_losses
from mixcore.trainers.mixer import Mixer

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy


def main() -> None:
    args = toy.arguments()
    ledger = toy.new_ledger()
    method = mixcore.method("odm", domains=ledger.domains)
    mixer = Mixer(ledger, toy.corpora(), method, update_every=2, lag_steps=3)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.accumulate)
    loader = prepare_loader(  # prepared already, and part of save_state and load_state
        accelerator,
        mixer,
        toy.BATCH // accelerator.num_processes // args.accumulate,
        num_workers=args.workers,
        max_steps=args.steps,
    )
    torch.manual_seed(0)
    model = toy.Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    checkpoint = Path(args.out) / "checkpoint"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint.resolve()))

    for batch in loader:
        with accelerator.accumulate(model):
            logits = model(batch["tokens"])
            accelerator.backward(toy.loss_of(logits, batch["tokens"]))
            optimizer.step()
            optimizer.zero_grad()
        mixer.observe(batch, *sample_losses(logits, batch["tokens"]))
        mixer.step()  # does nothing between the micro-batches of a step
        if accelerator.sync_gradients and mixer.steps % 10 == 0:
            folder = Path(args.out) / f"step-{mixer.steps}"
            accelerator.save_state(str(folder))
            accelerator.wait_for_everyone()  # whole on all ranks: now it may be the last one
            if accelerator.is_main_process:
                new = checkpoint.with_name("checkpoint.new")
                new.unlink(missing_ok=True)
                new.symlink_to(folder.name)
                os.replace(new, checkpoint)
    if accelerator.is_main_process:
        toy.report(ledger, mixer.position)
    accelerator.end_training()


if __name__ == "__main__":
    main()
