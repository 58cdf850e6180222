"""Runs a pretraining script and records what every rank fetched and computed.

The script is `$SCRIPT`, unchanged; only the forward step that it hands to `megatron.training` is
wrapped. Writes to `$RECORD/rank<n>`, one pickle after the other, each whole when the next begins,
so that a killed rank leaves all but the last: first who the rank is, then one entry a micro-batch
fetched and one a micro-batch's loss.
"""

import functools
import inspect
import os
import pickle
import runpy
import sys
from pathlib import Path

import megatron.training
import megatron.training.training
from megatron.core import mpu
from megatron.training import get_args


class Recorder:
    """Appends entries to this rank's file."""

    def __init__(self, path):
        self.file = open(path, "ab")  # noqa: SIM115 (open to the end of the process)
        self.known = False

    def write(self, kind, entry):
        if not self.known:
            self.known = True
            self.write("rank", self.who())
        pickle.dump((kind, entry), self.file)
        self.file.flush()

    @staticmethod
    def who():
        return {
            "tp": mpu.get_tensor_model_parallel_rank(),
            "pp": mpu.get_pipeline_model_parallel_rank(),
            "dp": mpu.get_data_parallel_rank(),
            "cp": mpu.get_context_parallel_rank(),
        }


class Recorded:
    """An iterator that notes what goes through it."""

    def __init__(self, iterator, training):
        self.iterator, self.training = iterator, training

    def __next__(self):
        batch = next(self.iterator)
        tensors = {k: v.numpy().copy() for k, v in batch.items() if v is not None}
        entry = {"iteration": iteration(), "training": self.training, "tensors": tensors}
        recorder.write("fetch", entry)
        return batch


def iteration():
    """Of the step under way, as the log counts: from 1."""
    return get_args().curr_iteration + 1


def recording_step(forward_step):
    def recorded_step(data_iterator, model, *args, **kwargs):
        source = None if data_iterator is None else Recorded(data_iterator, model.training)
        output, loss_func = forward_step(source, model, *args, **kwargs)
        return output, functools.partial(recorded_loss, loss_func, model.training)

    return recorded_step


def recorded_loss(loss_func, training, output):
    loss, tokens, report = loss_func(output)
    entry = {"iteration": iteration(), "training": training}
    recorder.write("loss", {**entry, "sum": loss.item(), "tokens": tokens.item()})
    return loss, tokens, report


def recording_pretrain(pretrain):
    @functools.wraps(pretrain)
    def recorded_pretrain(*args, **kwargs):
        call = inspect.signature(pretrain).bind(*args, **kwargs)
        call.arguments["forward_step_func"] = recording_step(call.arguments["forward_step_func"])
        return pretrain(*call.args, **call.kwargs)

    return recorded_pretrain


if __name__ == "__main__":
    recorder = Recorder(Path(os.environ["RECORD"]) / f"rank{os.environ['RANK']}")
    for module in (megatron.training, megatron.training.training):
        module.pretrain = recording_pretrain(module.pretrain)
    script = os.environ["SCRIPT"]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
