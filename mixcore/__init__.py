"""The data mixture of a pretraining run as a pure function of position."""

from mixcore import gpu
from mixcore.batches import MixBatchSampler
from mixcore.controller import Controller
from mixcore.dataset import MixDataset
from mixcore.domains import Domain
from mixcore.errors import (
    ArgumentError,
    ArgumentTypeError,
    CapError,
    DataError,
    DeviceError,
    DistanceError,
    LedgerError,
    MixcoreError,
    OutOfRangeError,
)
from mixcore.ledger import Ledger
from mixcore.megatron_arrays import (
    build_blending_indices,
    build_exhaustive_blending_indices,
    build_sample_idx,
)
from mixcore.methods import method, methods
from mixcore.sampler import Picks, Sampler
from mixcore.schedule import Schedule, linear, piecewise
from mixcore.signals import Signals

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CapError",
    "Controller",
    "DataError",
    "DeviceError",
    "DistanceError",
    "Domain",
    "Ledger",
    "LedgerError",
    "MixBatchSampler",
    "MixDataset",
    "MixcoreError",
    "OutOfRangeError",
    "Picks",
    "Sampler",
    "Schedule",
    "Signals",
    "build_blending_indices",
    "build_exhaustive_blending_indices",
    "build_sample_idx",
    "cuda_available",
    "linear",
    "method",
    "methods",
    "piecewise",
]


def cuda_available() -> bool:
    """Whether `device="cuda"` works here: the CUDA extension is built and a GPU answers."""
    return gpu.trouble() is None
