"""Finds what would make the host wait for a GPU, on a machine that has none.

Under torch's FakeTensorMode tensors have a device and no data, so code for CUDA tensors runs
anywhere; this mode sees each operation that it comes down to, and raises at those that wait.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Their result, or its shape, is decided by values: the host has to read them.
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.equal,
    aten.is_nonzero,
    aten.item,
    aten.bincount,
    aten.repeat_interleave,
}


class Waits(AssertionError):
    """An operation waits for the GPU."""


class NoSync(TorchDispatchMode):
    """Raises Waits at the first operation that would wait for a GPU; counts the others."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = function.overloadpacket
        if packet in READS and on_gpu(args):
            raise Waits(f"{function} reads values of a CUDA tensor")
        if packet in (aten.index, aten.index_put, aten.index_put_) and on_gpu(args):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if masks:
                raise Waits(f"{function} with a mask reads how many are set")
        if packet is aten.copy_:
            moves(function, args[1].device, args[0].device, args[2:] == (True,))
        if packet is aten._to_copy:
            source = args[0].device
            moves(function, source, kwargs.get("device", source), kwargs.get("non_blocking", False))
        self.operations += 1
        return function(*args, **kwargs)


def moves(function, source, to, non_blocking):
    """Copies to the host wait; copies from it wait unless they are told not to."""
    to = torch.device(to)
    if source.type != to.type and (to.type == "cpu" or not non_blocking):
        raise Waits(f"{function} from {source} to {to} waits")


def on_gpu(values):
    return any(isinstance(v, torch.Tensor) and v.device.type == "cuda" for v in values)
