"""Lightning: a data module and a callback, ODM steers the mixture, resumed from the checkpoint.

torchrun --nproc-per-node 2 examples/lightning/train.py --out out
"""

import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

import mixcore
from mixcore.trainers.lightning import MixCallback, MixDataModule
from mixcore.trainers.losses import sample_losses
from mixcore.trainers.mixer import Mixer

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy


class Module(pl.LightningModule):
    """As any module; the callback needs each sample's loss besides their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.model = toy.Model()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, object]:
        """One micro-batch."""
        logits = self.model(batch["tokens"])
        loss_sums, tokens = sample_losses(logits, batch["tokens"])
        loss = toy.loss_of(logits, batch["tokens"])
        return {"loss": loss, "loss_sums": loss_sums, "tokens": tokens}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    args = toy.arguments()
    ledger = toy.new_ledger()
    method = mixcore.method("odm", domains=ledger.domains)
    mixer = Mixer(ledger, toy.corpora(), method, update_every=2, lag_steps=3)

    world_size = int(os.environ.get("WORLD_SIZE", 1))
    saver = pl.callbacks.ModelCheckpoint(dirpath=args.out, every_n_train_steps=10, save_last=True)
    trainer = pl.Trainer(
        max_steps=args.steps,
        accumulate_grad_batches=args.accumulate,
        use_distributed_sampler=False,  # the samples are shared out already
        callbacks=[MixCallback(mixer), saver],
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
    )
    micro_batch_size = toy.BATCH // world_size // args.accumulate
    data = MixDataModule(mixer, micro_batch_size, num_workers=args.workers)
    last = Path(args.out) / "last.ckpt"
    trainer.fit(Module(), datamodule=data, ckpt_path=str(last) if last.exists() else None)
    if trainer.is_global_zero:
        toy.report(ledger, mixer.position)


if __name__ == "__main__":
    main()
