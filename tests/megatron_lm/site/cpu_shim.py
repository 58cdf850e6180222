"""Fakes of torch.cuda so that an unmodified Megatron trains on the CPU over gloo.

Only names of torch and of the standard library are replaced, nothing of Megatron's. What runs under
it says nothing of CUDA, NCCL, Transformer Engine, or the distributed optimizer. Known with
megatron-core 0.19.2 and Megatron-LM d98e8a6, for models without dropout: the generators of the GPU
are not imitated.
"""

import collections
import contextlib
import sys
import time
import types
import typing
from typing import Any

CPU_TYPES = ("Float", "Int", "Long", "Byte", "Half", "BFloat16", "Double", "Bool")
MEMORY = 1 << 34  # what the "device" is said to have, in bytes


class Event:
    """A CUDA event: the CPU has always got there already."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.time = 0.0

    def record(self, *_args: Any) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def wait(self, *_args: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "Event") -> float:
        return (other.time - self.time) * 1e3  # milliseconds, as CUDA has it


class Stream(contextlib.nullcontext[None]):
    """A CUDA stream: everything is in order."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__()

    def wait_stream(self, *_args: Any) -> None:
        pass

    def wait_event(self, *_args: Any) -> None:
        pass

    def record_event(self, *_args: Any) -> Event:
        return Event()

    def synchronize(self) -> None:
        pass


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """In place of what the CPU has no need of."""


def install() -> None:
    """Replace what Megatron uses of torch.cuda; once a process, before Megatron is imported."""
    import torch
    import torch._dynamo  # looks at what torch.cuda has, once: before it is faked
    import typing_extensions
    from torch.utils._triton import has_triton_package

    if not hasattr(typing, "override"):  # of Python 3.12; megatron.training imports it
        typing.override = typing_extensions.override  # type: ignore[attr-defined]
    if not has_triton_package():  # torch keeps this answer: it must not take the fake for Triton
        sys.modules.update(_triton())
    if torch.cuda.is_available():
        raise RuntimeError("the CPU shim is for machines without a GPU")
    torch.set_num_threads(1)
    torch.compile = _decorator
    _fake_device(torch)
    _fake_memory(torch.cuda)
    _fake_random(torch.cuda)
    _fake_distributed(torch.distributed)
    _tensors_stay_on_the_cpu(torch)


class Kernels(types.ModuleType):
    """In place of Triton and its language; the real ones take a gigabyte.

    Megatron decorates kernels and names types when it is imported; no kernel can run here.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _decorator if self.__name__ == "triton" else int


def _triton() -> dict[str, types.ModuleType]:
    triton, language = Kernels("triton"), Kernels("triton.language")
    triton.language, triton.__version__ = language, "3.4.0"
    return {"triton": triton, "triton.language": language}


def _decorator(function: Any = None, *_: Any, **__: Any) -> Any:
    """`@decorator` or `@decorator(options)`, that leaves the function as it is."""
    return function if callable(function) else lambda function: function


def _fake_device(torch: Any) -> None:
    cuda, cpu = torch.cuda, torch.device("cpu")

    def is_available() -> bool:
        """True to Megatron's assert at its start; torch itself must go on knowing better."""
        return sys._getframe(1).f_globals.get("__name__") == "megatron.training.initialize"

    cuda.is_available = is_available
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: cpu
    cuda.Event, cuda.Stream = Event, Stream
    cuda.current_stream = cuda.default_stream = Stream
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.set_device = cuda.set_stream = cuda.synchronize = cuda.ipc_collect = nothing
    cuda.get_device_name = lambda *_: "cpu"
    cuda.get_device_capability = lambda *_: (8, 0)
    cuda.get_device_properties = lambda *_: types.SimpleNamespace(
        major=8, minor=0, total_memory=MEMORY, name="cpu", multi_processor_count=1
    )
    for name in CPU_TYPES:
        setattr(cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))


def _fake_memory(cuda: Any) -> None:
    cuda.empty_cache = cuda.reset_peak_memory_stats = nothing
    for name in ("memory_allocated", "memory_reserved"):
        setattr(cuda, name, lambda *_: 0)
        setattr(cuda, f"max_{name}", lambda *_: 0)
    cuda.memory_stats = lambda *_: collections.defaultdict(int)
    cuda.mem_get_info = lambda *_: (MEMORY, MEMORY)


def _fake_random(cuda: Any) -> None:
    """A generator whose state is always the same; what is put off until CUDA starts never runs."""
    import torch

    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.zeros(
        16, dtype=torch.uint8
    )
    cuda.set_rng_state = cuda.random.set_rng_state = nothing
    cuda.manual_seed = cuda.manual_seed_all = nothing
    cuda._lazy_call = nothing


def _fake_distributed(distributed: Any) -> None:
    """Gloo in place of NCCL; it takes no device."""
    start, barrier = distributed.init_process_group, distributed.barrier

    def init_process_group(
        backend: Any = None, *args: Any, device_id: Any = None, **kwargs: Any
    ) -> Any:
        return start("gloo" if backend == "nccl" else backend, *args, **kwargs)

    distributed.init_process_group = init_process_group
    distributed.barrier = lambda group=None, async_op=False, device_ids=None: barrier(
        group, async_op
    )


def _tensors_stay_on_the_cpu(torch: Any) -> None:
    """Every torch function that is asked for a CUDA device gets the CPU."""
    from torch.overrides import TorchFunctionMode

    def cpu(x: Any) -> Any:
        cuda = x.startswith("cuda") if isinstance(x, str) else getattr(x, "type", "") == "cuda"
        return torch.device("cpu") if cuda else x

    class OnCpu(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if "device" in kwargs:
                device = kwargs["device"]
                kwargs["device"] = "cpu" if isinstance(device, int) else cpu(device)
            name = getattr(function, "__name__", "")
            if name in ("cuda", "pin_memory"):
                return args[0]
            if name == "to":
                args = (args[0], *map(cpu, args[1:]))
            return function(*args, **kwargs)

    OnCpu().__enter__()  # to the end of the process
