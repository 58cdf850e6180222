"""Whether `device="cuda"` works here and, if not, why and what mends it."""

import importlib
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mixcore import _core
from mixcore.errors import DeviceError

BUILD = "mixcore build-cuda"


@dataclass(frozen=True)
class Trouble:
    """Why there is no GPU sampler here.

    Attributes:
        reason: One sentence without a full stop.
        remedy: The one command that mends it, or what else does; "" where nothing here can.
    """

    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy} mends it" if self.remedy else self.reason


def extension() -> ModuleType | Trouble:
    """The module `mixcore._cuda`, or why it cannot be had."""
    try:
        module = importlib.import_module("mixcore._cuda")
    except ModuleNotFoundError as e:
        if e.name != "mixcore._cuda":
            raise
        return Trouble("this installation has no CUDA extension", BUILD)
    except ImportError as e:
        return Trouble(f"the CUDA extension does not load ({e})", BUILD)
    if module.sources != _core.sources:
        return Trouble("the CUDA extension was built from other sources than the core", BUILD)
    return module


def runs_on(archs: list[str], capability: tuple[int, int]) -> bool:
    """Whether machine code or PTX for these architectures runs on such a GPU.

    Machine code runs on its own major version from its minor one on; PTX of the last one is
    compiled by the driver for anything newer.
    """
    major, minor = capability
    pairs = [divmod(int(a), 10) for a in archs]
    return any(m == major and n <= minor for m, n in pairs) or pairs[-1] <= (major, minor)


def trouble() -> Trouble | None:
    """Why the GPU sampler cannot run here, or None; torch is not asked (see `torch_trouble`)."""
    cuda = extension()
    if isinstance(cuda, Trouble):
        return cuda
    count, why = cuda.gpu_count()
    if count == 0:
        driver = cuda.driver_version()
        if driver == 0:
            return Trouble("no NVIDIA driver is loaded on this machine")
        if driver < cuda.runtime_version():
            return Trouble(
                f"the NVIDIA driver is for CUDA {shown(driver)}, the extension was built with CUDA "
                f"{shown(cuda.runtime_version())}: {why}",
                "a newer driver",
            )
        return Trouble(f"the NVIDIA driver shows no GPU: {why}")
    archs = cuda.archs.split(",")
    capability = cuda.gpu_info(0)["capability"]
    if not runs_on(archs, capability):
        return Trouble(
            f"the CUDA extension was built for compute capabilities {cuda.archs}, this GPU has "
            f"{capability[0]}{capability[1]}",
            BUILD,
        )
    return None


def shown(version: int) -> str:
    """CUDA's version number, 13000, as people write it, 13.0."""
    return f"{version // 1000}.{version % 1000 // 10}"


def torch_trouble() -> Trouble | None:
    """Why torch, which allocates the results, is of no use for that; imports torch."""
    try:
        import torch
    except ImportError as e:
        return Trouble(f"torch, which allocates the results, is missing ({e})", "pip install torch")
    if torch.version.cuda is None:
        return Trouble(f"torch {torch.__version__} was built without CUDA", "a torch with CUDA")
    if not torch.cuda.is_available():
        return Trouble(f"torch {torch.__version__} finds no GPU that it can use")
    return None


def is_cuda(device: object) -> bool:
    """Whether a caller's `device` means a GPU: "cuda", "cuda:1", torch.device("cuda").

    Raises:
        DeviceError: It means neither a GPU nor the CPU.
    """
    if device is None or str(device) == "cpu":
        return False
    if re.fullmatch(r"cuda(:\d+)?", str(device)):
        return True
    raise DeviceError(f"device={device!r} is not available: it must be 'cpu', 'cuda' or 'cuda:N'")


def require(device: object) -> Any:
    """The torch.device that `device` means, with its number.

    Raises:
        DeviceError: It does not work here; the message says why and what mends it.
    """
    found = trouble() or torch_trouble()
    if found is not None:
        raise DeviceError(f"device={str(device)!r} is not available: {found}")
    import torch

    wanted = torch.device(str(device))
    index = torch.cuda.current_device() if wanted.index is None else wanted.index
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"device={str(device)!r} is not available: there are {torch.cuda.device_count()} GPUs"
        )
    return torch.device("cuda", index)
