"""The data mixture of a pretraining run as a pure function of position."""

from mixcore.batches import MixBatchSampler
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
)
from mixcore.ledger import Ledger
from mixcore.sampler import Picks, Sampler
from mixcore.schedule import Schedule, linear, piecewise

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CapError",
    "DataError",
    "DeviceError",
    "DistanceError",
    "Domain",
    "Ledger",
    "LedgerError",
    "MixBatchSampler",
    "MixDataset",
    "MixcoreError",
    "Picks",
    "Sampler",
    "Schedule",
    "cuda_available",
    "linear",
    "piecewise",
]


def cuda_available() -> bool:
    """Whether `device="cuda"` works here: the CUDA extension is built and a GPU answers."""
    return False
