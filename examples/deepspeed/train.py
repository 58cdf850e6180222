"""DeepSpeed: ODM steers the mixture, on any ZeRO stage; killed, it goes on where it was.

deepspeed --num_gpus 2 examples/deepspeed/train.py --deepspeed \
    --deepspeed_config examples/deepspeed/ds.json --mix-method odm --mix-update-every 2 --out out
"""

import argparse
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

import mixcore.trainers.deepspeed as mixed
from mixcore.trainers.losses import sample_losses

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True, help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=60, help="where to end; more: goes on")
    parser.add_argument("--workers", type=int, default=2, help="of the loader; may change")
    parser.add_argument("--local_rank", type=int)  # the launcher gives it
    mixed.add_arguments(deepspeed.add_config_arguments(parser))
    args = parser.parse_args()

    datasets = toy.corpora()
    mixed.check(args, None, datasets)  # a wrong key is found before the engine is made
    torch.manual_seed(0)
    model = toy.Model()
    engine, *_ = deepspeed.initialize(args=args, model=model, model_parameters=model.parameters())
    loader, mixer = mixed.initialize(args, engine, datasets, num_workers=args.workers)
    mixer.load_checkpoint(args.out)  # nothing there: begins anew

    device = get_accelerator().current_device_name()
    for batch in loader if mixer.steps < args.steps else ():
        tokens = batch["tokens"].to(device)
        logits = engine(tokens)
        engine.backward(toy.loss_of(logits, tokens))
        mixer.observe(batch, *sample_losses(logits, tokens))
        engine.step()
        mixer.step()
        if mixer.observed == 0 and mixer.steps % 20 == 0:
            mixer.save_checkpoint(args.out)
        if mixer.observed == 0 and mixer.steps >= args.steps:
            break
    if torch.distributed.get_rank() == 0:
        toy.report(mixer.ledger, mixer.position)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
