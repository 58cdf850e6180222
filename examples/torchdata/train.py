"""torchdata's StatefulDataLoader: its state is saved, and fits even another number of workers.

python examples/torchdata/train.py --out out --workers 2
"""

import os
import sys
from pathlib import Path

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import mixcore
from mixcore.trainers.losses import sample_losses

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy


def main() -> None:
    args = toy.arguments()
    checkpoint = Path(args.out) / "checkpoint.pt"
    saved = torch.load(checkpoint) if checkpoint.exists() else None

    ledger = mixcore.Ledger.from_bytes(saved["ledger"]) if saved else toy.new_ledger()
    method = mixcore.method("odm", domains=ledger.domains)
    controller = mixcore.Controller(ledger, method, update_every=2, lag_steps=3)
    torch.manual_seed(0)
    model = toy.Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = mixcore.MixBatchSampler(
        ledger, toy.BATCH // args.accumulate, end=args.steps * toy.BATCH
    )
    dataset = mixcore.MixDataset(ledger, toy.corpora())
    loader = StatefulDataLoader(dataset, batch_sampler=batches, num_workers=args.workers)
    consumed = 0
    if saved:
        consumed = saved["consumed"]
        controller.load_state_dict(saved["controller"])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        # The loader itself refuses a state of another number of workers, and one of other
        # micro-batches; the sampler takes the position out of any.
        batches.load_state_dict(saved["loader"])

    for number, batch in enumerate(loader, start=1):
        logits = model(batch["tokens"])
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
                "consumed": consumed,
                "loader": loader.state_dict(),  # counts what was received, not what was fetched
                "ledger": ledger.to_bytes(),  # with what is decided and not yet in force
                "controller": controller.state_dict(),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
    toy.report(ledger, consumed)


if __name__ == "__main__":
    main()
