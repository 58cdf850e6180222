"""One training loop for each framework that test runs go through, as its users write it."""

import os
import re
from pathlib import Path

import torch
from trainer_runs import LENGTH, VOCABULARY, micro_batch_size

import mixcore
from mixcore.trainers.losses import sample_losses


def tiny(dropout=0.1):
    """A GPT-2 of random weights, made without a hub."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=8,
            n_layer=1,
            n_head=2,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def huggingface(run, mixer):
    from transformers import TrainingArguments

    from mixcore.trainers.huggingface import MixTrainer

    args = TrainingArguments(
        output_dir=os.path.join(run.folder, "out"),
        per_device_train_batch_size=micro_batch_size(run),
        gradient_accumulation_steps=run.micro_batches,
        dataloader_num_workers=run.workers,
        dataloader_prefetch_factor=run.prefetch if run.workers else None,
        max_steps=run.steps,
        lr_scheduler_type="constant",
        save_steps=run.save_every,
        ignore_data_skip=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    model = tiny()
    trainer = MixTrainer(model=model, args=args, mixer=mixer)
    trainer.train(resume_from_checkpoint=run.resume)
    return model


def accelerate(run, mixer):
    from accelerate import Accelerator

    from mixcore.trainers.accelerate import prepare_loader

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=run.micro_batches)
    model = tiny()
    loader = prepare_loader(
        accelerator,
        mixer,
        micro_batch_size(run),
        num_workers=run.workers,
        prefetch_factor=run.prefetch,
        max_steps=run.steps,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    out = Path(run.folder) / "out"
    if run.resume:
        accelerator.load_state(max(out.iterdir(), key=lambda f: int(f.name)))
    wrapped.train()
    for batch in loader:
        with accelerator.accumulate(wrapped):
            outputs = wrapped(input_ids=batch["input_ids"], labels=batch["labels"])
            accelerator.backward(outputs.loss)
            optimizer.step()
            optimizer.zero_grad()
        mixer.observe(batch, *sample_losses(outputs.logits, batch["labels"]))
        mixer.step()
        if accelerator.sync_gradients and mixer.steps % run.save_every == 0:
            accelerator.save_state(str(out / str(mixer.steps)))
    return model


def lightning(run, mixer):
    import lightning.pytorch as pl

    from mixcore.trainers.lightning import MixCallback, MixDataModule

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = tiny(dropout=0)  # Lightning saves no random state

        def training_step(self, batch, batch_idx):
            outputs = self.model(input_ids=batch["input_ids"], labels=batch["labels"])
            loss_sums, tokens = sample_losses(outputs.logits, batch["labels"])
            return {"loss": outputs.loss, "loss_sums": loss_sums, "tokens": tokens}

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    out = os.path.join(run.folder, "out")
    saver = pl.callbacks.ModelCheckpoint(
        dirpath=out, filename="{step}", every_n_train_steps=run.save_every, save_top_k=-1
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=run.world_size,
        strategy="ddp" if run.world_size > 1 else "auto",
        max_steps=run.steps,
        accumulate_grad_batches=run.micro_batches,
        use_distributed_sampler=False,
        callbacks=[MixCallback(mixer), saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    saved = Path(out).glob("*.ckpt") if run.resume else ()
    last = max(saved, key=lambda f: int(re.findall(r"\d+", f.stem)[0]), default=None)
    data = MixDataModule(
        mixer, micro_batch_size(run), num_workers=run.workers, prefetch_factor=run.prefetch
    )
    module = Module()
    trainer.fit(module, datamodule=data, ckpt_path=last)
    return module


def torchdata(run, mixer):
    """A StatefulDataLoader of one's own: its state fits any number of workers and ranks."""
    import torch.distributed as dist
    from torchdata.stateful_dataloader import StatefulDataLoader

    rank, world_size = int(os.environ.get("RANK", 0)), run.world_size
    if world_size > 1:
        dist.init_process_group("gloo")
    mixer.bind(
        micro_batch_size=micro_batch_size(run),
        micro_batches=run.micro_batches,
        rank=rank,
        world_size=world_size,
    )
    saved = None
    if run.resume:
        last = max(Path(run.folder).glob("*.saved"), key=lambda f: int(f.stem))
        saved = torch.load(last)
        mixer.load_state_dict(saved["mixer"])
    batches = mixcore.MixBatchSampler(
        mixer.ledger,
        micro_batch_size(run),
        rank=rank,
        world_size=world_size,
        end=mixer.ledger.position_of_step(run.steps),
    )
    if saved:
        batches.load_state_dict(saved["loader"])
    loader = StatefulDataLoader(
        mixer.dataset,
        batch_sampler=batches,
        num_workers=run.workers,
        prefetch_factor=run.prefetch if run.workers else None,
    )
    for batch in loader:
        mixer.observe(batch)
        if mixer.micro_batches == mixer.observed:
            mixer.step()
            if mixer.steps % run.save_every == 0:
                state = {"mixer": mixer.state_dict(), "loader": loader.state_dict()}
                if rank == 0:
                    new = Path(run.folder) / "new"
                    torch.save(state, new)
                    new.rename(Path(run.folder) / f"{mixer.steps}.saved")
    if world_size > 1:
        dist.destroy_process_group()
    return torch.nn.Identity()
