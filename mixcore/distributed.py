"""Reduction and broadcast over `torch.distributed`."""

from typing import Any

import numpy as np

from mixcore.ranks import Broadcast, Ints, Reduce


def torch_reduce(group: Any = None) -> Reduce:
    """Reduce over a `torch.distributed` group (None: all ranks).

    Example:
        >>> Controller(ledger, method, reduce=torch_reduce(), broadcast=torch_broadcast(),
        ...            rank=dist.get_rank(), world_size=dist.get_world_size())

    Integers are added, so the result does not depend on the algorithm. With context or tensor
    parallelism choose the group, and who observes, such that each sample is observed once in it.
    """

    def reduce(array: Ints) -> Ints:
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(_device(group))
        if tensor.device.type == "cpu":
            tensor = tensor.clone()  # the argument stays as it is
        dist.all_reduce(tensor, group=group)
        result: Ints = tensor.cpu().numpy()
        return result

    return reduce


def torch_broadcast(group: Any = None) -> Broadcast:
    """Broadcast from rank 0 of a `torch.distributed` group (None: all ranks)."""

    def broadcast(data: bytes | None) -> bytes:
        import torch
        import torch.distributed as dist

        source = 0 if group is None else dist.get_global_rank(group, 0)
        device = _device(group)
        length = torch.tensor([len(data or b"")], dtype=torch.int64, device=device)
        dist.broadcast(length, source, group=group)
        content = torch.zeros(int(length.item()), dtype=torch.uint8, device=device)
        if data is not None:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(content, source, group=group)
        return bytes(content.cpu().numpy())

    return broadcast


def _device(group: Any) -> Any:
    """Where the group's backend wants its tensors."""
    import torch
    import torch.distributed as dist

    if "nccl" in str(dist.get_backend(group)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
