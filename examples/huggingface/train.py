"""Hugging Face Trainer: a GPT-2 from scratch, ODM steers the mixture, resumed where it was.

torchrun --nproc-per-node 2 examples/huggingface/train.py --out out
"""

import os
import sys
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import mixcore
from mixcore.trainers.huggingface import MixTrainer, last_checkpoint
from mixcore.trainers.mixer import Mixer

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy


def main() -> None:
    args = toy.arguments()
    ledger = toy.new_ledger()
    method = mixcore.method("odm", domains=ledger.domains)
    mixer = Mixer(ledger, toy.corpora(), method, update_every=2, lag_steps=3)

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=toy.VOCABULARY,
            n_positions=toy.LENGTH,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    settings = TrainingArguments(
        output_dir=args.out,
        max_steps=args.steps,  # the mixture has no end of its own
        per_device_train_batch_size=toy.BATCH // world_size // args.accumulate,
        gradient_accumulation_steps=args.accumulate,
        dataloader_num_workers=args.workers,
        ignore_data_skip=True,  # the loader begins where the checkpoint says
        lr_scheduler_type="constant",
        save_steps=10,
        save_total_limit=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = MixTrainer(model=model, args=settings, mixer=mixer)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.out))
    if trainer.is_world_process_zero():
        toy.report(ledger, mixer.position)


if __name__ == "__main__":
    main()
