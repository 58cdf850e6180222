"""The sampler: positions in, (domain, draw, epoch, sample) out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixcore import gpu
from mixcore._checks import MAX_POSITION, integer
from mixcore.errors import ArgumentError, ArgumentTypeError, DeviceError
from mixcore.ledger import Ledger

if TYPE_CHECKING:
    from mixcore.device_plan import DevicePlan

FIELDS = ("domain", "draw", "epoch", "sample")


@dataclass(frozen=True, slots=True)
class Picks:
    """Answers for some positions: arrays of one length; None for a field not asked for.

    On a GPU they are torch tensors, which also give `__cuda_array_interface__` and DLPack.

    Attributes:
        domain: int32, the domain's number.
        draw: int64, how many samples the domain had given before this one.
        epoch: int64, draw // size.
        sample: int64, the shuffled place of draw % size inside the domain.
    """

    domain: Any = None
    draw: Any = None
    epoch: Any = None
    sample: Any = None


class Sampler:
    """A live view of a ledger: what the ledger appends, the sampler sees.

    Example:
        >>> sampler = Sampler(ledger)
        >>> p = sampler.picks(0, 4096)
        >>> p.domain, p.draw, p.epoch, p.sample      # numpy arrays of length 4096

    `picks`, `at` and `counts` are questions: they mark nothing as fetched and may be asked of any
    position, in any order, from any thread.
    """

    def __init__(self, ledger: Ledger) -> None:
        if not isinstance(ledger, Ledger):
            raise ArgumentTypeError(f"ledger must be a mixcore.Ledger, got {ledger!r}")
        self.ledger = ledger
        self._on_gpus: dict[str, DevicePlan] = {}  # what has been uploaded, by GPU

    def __reduce__(self) -> tuple[Any, ...]:
        return Sampler, (self.ledger,)

    def _on(self, device: object) -> "DevicePlan":
        if self.ledger.order != "balanced":
            raise DeviceError(
                f"device={str(device)!r} needs order 'balanced', this ledger's is "
                f"{self.ledger.order!r}, which decides each sample from all before it: a job for "
                "one CPU core"
            )
        found = gpu.require(device)
        from mixcore.device_plan import DevicePlan

        with self.ledger.lock:
            if str(found) not in self._on_gpus:
                self._on_gpus[str(found)] = DevicePlan(self.ledger, found)
            return self._on_gpus[str(found)]

    def picks(
        self,
        start: int,
        count: int,
        *,
        threads: int | None = None,
        fields: Sequence[str] = FIELDS,
        device: Any = None,
    ) -> Picks:
        """Answers for positions start to start + count - 1.

        Args:
            start: First position, 0 to 2^48.
            count: How many; start + count may be at most 2^48.
            threads: At most so many threads work (short ranges use fewer); None: one a core.
            fields: Which of "domain", "draw", "epoch", "sample" to compute.
            device: None or "cpu" for numpy arrays; "cuda", "cuda:N" or a torch.device for tensors
                computed there, on the current stream, without waiting for it (order balanced).

        Raises:
            ValueError, TypeError: A bad argument, named with its value.
            CapError: The run ends before start + count (it is a LedgerError and a ValueError).
            DistanceError: A sequential order would have to replay more than 10^9 steps.
            DeviceError: The device does not work here; the message says why.
        """
        start = integer("start", start, 0, MAX_POSITION)
        count = integer("count", count, 0, MAX_POSITION - start)
        if threads is None:
            threads = min(len(os.sched_getaffinity(0)), 1024)
        threads = integer("threads", threads, 1, 1024)
        if gpu.is_cuda(device):
            return Picks(*self._on(device).picks(start, count, _mask(fields)))
        return Picks(*self.ledger._plan.picks(start, count, threads, _mask(fields)))

    def at(
        self,
        positions: Sequence[int] | npt.NDArray[np.integer[Any]] | Any,
        *,
        fields: Sequence[str] = FIELDS,
        device: Any = None,
    ) -> Picks:
        """Answers for any positions, in any order; repeated ones are fine.

        Args:
            positions: Integers in [0, 2^48), a sequence or an integer array with one axis. If they
                are on a GPU (a tensor, or what has `__cuda_array_interface__`), so are the answers.
                A GPU cannot raise without waiting for it: there the answers are -1 for a number
                that is no position, or one beyond the end of the run.
            fields: Which of "domain", "draw", "epoch", "sample" to compute.
            device: None: where the positions are. Else as in `picks`.

        Raises:
            ValueError, TypeError, CapError, DistanceError, DeviceError: As `picks`.
        """
        mask = _mask(fields)
        wanted = gpu.is_cuda(device)
        where = _gpu_of(positions)
        if where is not None:
            if device is not None and not wanted:
                raise ArgumentError(f"device must be a GPU as positions are, got {device!r}")
            on = self._on(device if wanted else where)
            return Picks(*on.at(on.positions(positions), mask))
        array = _positions(positions)
        if not wanted:
            return Picks(*self.ledger._plan.at(array, mask))
        on = self._on(device)
        for extreme in (array.min(), array.max()) if array.size else ():
            self.ledger._plan.at(np.array([extreme]), 1)  # raises where the run has ended
        return Picks(*on.at(on.upload(array), mask))

    def counts(self, position: int) -> npt.NDArray[np.int64]:
        """Draws of each domain at positions below `position`: int64, one per domain."""
        position = integer("position", position, 0, MAX_POSITION)
        return self.ledger._plan.counts(position)


def _gpu_of(value: Any) -> str | None:
    """The GPU that holds an array, if one does."""
    device = getattr(value, "device", None)
    if getattr(device, "type", None) == "cuda":
        return str(device)
    if hasattr(value, "__cuda_array_interface__"):
        number = getattr(device, "id", None)  # CuPy's
        return "cuda" if number is None else f"cuda:{number}"
    return None


def _mask(fields: Sequence[str]) -> int:
    if isinstance(fields, str) or not isinstance(fields, Sequence):
        raise ArgumentTypeError(f"fields must be a sequence of names, got {fields!r}")
    mask = 0
    for name in fields:
        if name not in FIELDS:
            raise ArgumentError(f"fields must be among {', '.join(FIELDS)}, got {name!r}")
        mask |= 1 << FIELDS.index(name)
    if not mask:
        raise ArgumentError("fields must name at least one of domain, draw, epoch, sample")
    return mask


def _positions(value: object) -> npt.NDArray[np.int64]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        raise ArgumentTypeError(f"positions must be a sequence of integers, got {value!r}")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as e:
        raise ArgumentTypeError(f"positions must be a sequence of integers ({e})") from None
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1:
        raise ArgumentError(f"positions must have 1 axis, got {array.ndim}")
    if array.dtype.kind not in "iu":
        if array.dtype == object:  # Python integers beyond 64 bits, or no numbers at all
            for i, x in enumerate(array.tolist()):
                integer(f"positions[{i}]", x, 0, MAX_POSITION - 1)
        raise ArgumentTypeError(f"positions must be integers, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.max() >= MAX_POSITION:
        raise ArgumentError(f"positions must be below {MAX_POSITION}, got {array.max()}")
    return np.ascontiguousarray(array, dtype=np.int64)
