"""What the NVIDIA driver says, asked directly: needs neither the CUDA extension nor torch."""

import ctypes
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name and compute capability, as (9, 0)."""

    name: str
    capability: tuple[int, int]

    @property
    def arch(self) -> str:
        """The capability as compilers write it: "90"."""
        return f"{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Driver:
    """Newest CUDA that the driver knows (13000 is 13.0; 0: no driver), its GPUs, or why none."""

    version: int
    gpus: tuple[Gpu, ...]
    why: str = ""


def probe() -> Driver:
    """Ask `libcuda`; creates no context."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(0, (), "no NVIDIA driver is loaded on this machine")
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return Driver(version.value, (), f"the NVIDIA driver fails (error {status})")
    gpus = []
    for number in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(), ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), number)
        cuda.cuDeviceGetName(name, 256, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        gpus.append(Gpu(name.value.decode(), (major.value, minor.value)))
    why = "" if gpus else "the NVIDIA driver shows no GPU"
    return Driver(version.value, tuple(gpus), why)
