"""A script that knows nothing of mixcore: it trains on the loader that DeepSpeed gives it."""

import argparse
import json
from pathlib import Path

import deepspeed
import torch
from torch.utils.data import ConcatDataset, TensorDataset


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--local_rank", type=int)
    deepspeed.add_config_arguments(parser)
    args = parser.parse_args()
    parts = [
        TensorDataset(torch.full((60, 4), float(d)), torch.arange(60.0)[:, None]) for d in range(3)
    ]
    model = torch.nn.Linear(4, 1)
    engine, _, loader, _ = deepspeed.initialize(
        args=args,
        model=model,
        model_parameters=model.parameters(),
        training_data=ConcatDataset(parts),
    )
    folder = Path(args.out)
    if (folder / "checkpoint").exists():
        engine.load_checkpoint(str(folder / "checkpoint"))
    seen = []
    for x, y in loader:
        seen += list(zip(x[:, 0].int().tolist(), y[:, 0].int().tolist(), strict=True))
        engine.backward(((engine(x) - y) ** 2).mean())
        engine.step()
        if engine.global_steps >= args.steps:
            break
    engine.save_checkpoint(str(folder / "checkpoint"))
    name = f"seen{engine.global_rank}.{args.steps}.json"
    (folder / name).write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
