"""Runs `$SCRIPT` of Megatron-DeepSpeed, unchanged, and records what each rank reads.

Every train batch that a rank's data iterator hands out is appended to `$RECORD/rank<n>` as it is
taken: 'text' and 'dataset_idx'.
"""

import os
import pickle
import runpy
import sys
from pathlib import Path

import megatron.training
from megatron import get_args


class Recorded:
    """An iterator that notes what goes through it."""

    def __init__(self, iterator, path):
        self.iterator, self.file = iterator, open(path, "ab")  # noqa: SIM115 (open to the end)

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.iterator)
        entry = {key: value.numpy().copy() for key, value in batch.items()}
        pickle.dump({"consumed": get_args().consumed_train_samples, **entry}, self.file)
        self.file.flush()
        return batch


def recording(build):
    def build_train_valid_test_data_iterators(provider):
        train, valid, test = build(provider)
        path = Path(os.environ["RECORD"]) / f"rank{os.environ['RANK']}"
        return None if train is None else Recorded(train, path), valid, test

    return build_train_valid_test_data_iterators


if __name__ == "__main__":
    name = "build_train_valid_test_data_iterators"
    setattr(megatron.training, name, recording(getattr(megatron.training, name)))
    script = os.environ["SCRIPT"]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
