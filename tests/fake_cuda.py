"""A GPU for tests where there is none: the kernels' own bodies, run on the CPU over its memory.

What `mixcore._cuda` is asked goes to the walk of the launch geometry in `mixcore._core`, with the
pointers that it was given; torch's streams and events are replaced by ones that write down what
was asked of them. So everything of `device="cuda"` runs but the GPU.
"""

import ctypes
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

import mixcore
from mixcore import _core, gpu

H100 = (232_448, 233_472)  # bytes of shared memory: a block's, a multiprocessor's
HEAD = _core.flat_head(np.zeros(4096, np.uint8))["head_bytes"]
DTYPES = (np.int32, np.int64, np.int64, np.int64)


def memory(address, dtype, count):
    """The array at an address."""
    size = np.dtype(dtype).itemsize * count
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype)


def segment_at(address):
    return memory(address, np.uint8, _core.flat_head(memory(address, np.uint8, HEAD))["bytes"])


def write(columns, pointers, count):
    for column, pointer, dtype in zip(columns, pointers, DTYPES, strict=True):
        if pointer:
            memory(pointer, dtype, count)[:] = column


def mask_of(pointers):
    return sum(1 << i for i, p in enumerate(pointers) if p)


class FakeCuda(ModuleType):
    """`mixcore._cuda` without a GPU; `calls` keeps what was launched."""

    sources = _core.sources
    archs = "80,90"

    def __init__(self):
        super().__init__("mixcore._cuda")
        self.calls = []
        self.domains = 0

    gpu_count = staticmethod(lambda: (1, ""))
    gpu_info = staticmethod(lambda gpu: {"capability": (9, 0)})

    def picks(self, gpu, head, data, views, order_key, first, count, out, stream, **tuning):
        self.calls.append(("picks", stream))
        flat = segment_at(data)
        assert np.array_equal(flat[:HEAD], head)
        asked = {"strategy": "auto", "threads": 64, "blocks": 3, "shared": 0} | tuning
        columns, strategy, tiles, shared = _core.grid_picks(
            flat,
            self._views(views),
            order_key,
            first,
            count,
            mask_of(out),
            **asked,
            limits=H100,
            turn="backward",
        )
        write(columns, out, count)
        return {"strategy": strategy, "blocks": tiles, "threads": 64, "shared": shared}

    def at(self, gpu, starts, datas, segments, nodes, views, order_key, end, positions, count, *to):
        out, stream = to
        self.calls.append(("at", stream))
        flats = [segment_at(int(x)) for x in memory(datas, np.int64, segments)]
        first = [_core.flat_head(flat)["start"] for flat in flats]
        assert memory(starts, np.int64, segments).tolist() == first
        where = memory(positions, np.int64, count).copy()
        shared = nodes * 24 if segments == 1 else 0
        columns = _core.grid_at(
            flats,
            self._views(views),
            order_key,
            end,
            where,
            mask_of(out),
            64,
            3,
            shared,
            "odd first",
        )
        write(columns, out, count)
        return {"strategy": "walk", "blocks": 3, "threads": 64, "shared": 0}

    def _views(self, address):
        return memory(address, np.uint8, 72 * self.domains) if address else np.empty(0, np.uint8)


class FakeStream:
    """A stream that remembers what it waits for."""

    def __init__(self, number):
        self.cuda_stream = number
        self.waited = []

    def wait_event(self, event):
        self.waited.append(event)


def install(monkeypatch):
    """Put the fake in place; returns it and a box whose `stream` is the current one."""
    fake = FakeCuda()
    now = SimpleNamespace(stream=FakeStream(1), recorded=[])
    monkeypatch.setitem(sys.modules, "mixcore._cuda", fake)
    monkeypatch.setattr(mixcore, "_cuda", fake, raising=False)
    monkeypatch.setattr(gpu, "require", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now.stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda stream: None))
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: now.recorded.append(stream)
    )
    return fake, now
