"""The example's pretrain_gpt.py, with a record of what every rank fetched and computed.

Writes to `$RECORD/rank<n>`, one pickle after the other, each whole when the next begins, so that a
killed rank leaves all but the last: first who the rank is, then one entry a micro-batch fetched and
one a micro-batch's loss. The script itself is run as it is; only its forward step is wrapped.
"""

import os
import pickle
import runpy
import sys
from functools import partial
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "megatron" / "pretrain_gpt.py"
names = runpy.run_path(str(EXAMPLE))
stock_forward_step = names["forward_step"]


class Recorder:
    """Appends entries to this rank's file."""

    def __init__(self, path):
        self.file = open(path, "ab")  # noqa: SIM115 (open to the end of the process)

    def write(self, kind, entry):
        pickle.dump((kind, entry), self.file)
        self.file.flush()

    def who(self):
        from megatron.core import mpu

        self.write(
            "rank",
            {
                "tp": mpu.get_tensor_model_parallel_rank(),
                "pp": mpu.get_pipeline_model_parallel_rank(),
                "dp": mpu.get_data_parallel_rank(),
                "cp": mpu.get_context_parallel_rank(),
            },
        )


class Recorded:
    """An iterator that notes what goes through it."""

    def __init__(self, iterator, training):
        self.iterator, self.training = iterator, training

    def __next__(self):
        batch = next(self.iterator)
        tensors = {key: value.numpy().copy() for key, value in batch.items()}
        entry = {"iteration": iteration(), "training": self.training, "tensors": tensors}
        recorder.write("fetch", entry)
        return batch


def iteration():
    """Of the step under way, as the log counts: from 1."""
    from megatron.training import get_args

    return get_args().curr_iteration + 1


def forward_step(data_iterator, model):
    global recorder
    if recorder is None:
        recorder = Recorder(Path(os.environ["RECORD"]) / f"rank{os.environ['RANK']}")
        recorder.who()
    source = None if data_iterator is None else Recorded(data_iterator, model.training)
    output, loss_func = stock_forward_step(source, model)
    return output, partial(recorded_loss, loss_func, model.training)


def recorded_loss(loss_func, training, output):
    loss, tokens, report = loss_func(output)
    entry = {"iteration": iteration(), "training": training}
    recorder.write("loss", {**entry, "sum": loss.item(), "tokens": tokens.item()})
    return loss, tokens, report


recorder = None
if __name__ == "__main__":
    sys.argv[0] = str(EXAMPLE)
    main = names["main"]
    main.__globals__["forward_step"] = forward_step
    main()
