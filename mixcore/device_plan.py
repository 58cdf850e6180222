"""A ledger's plan on a GPU: what kernels read is uploaded once a change, and launched on.

Only `mixcore.sampler` imports this file, and only where a GPU was asked for: it needs torch, which
allocates, and `mixcore._cuda`, which launches.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mixcore import _core, _cuda
from mixcore._checks import MAX_POSITION
from mixcore.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from mixcore.ledger import Ledger

# Segments of earlier calls that are kept on the GPU; those of the call at hand always are.
KEPT_BYTES = 256 << 20
_DTYPES = (torch.int32, torch.int64, torch.int64, torch.int64)
Columns = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class _Uploaded:
    """Memory that was filled on one stream and may be read on others."""

    tensors: list[torch.Tensor]
    stream: torch.cuda.Stream
    event: torch.cuda.Event

    def ready_on(self, stream: torch.cuda.Stream) -> None:
        """Order a stream's later work after the upload, and the memory's reuse after that work."""
        if stream == self.stream:
            return
        stream.wait_event(self.event)
        for tensor in self.tensors:
            tensor.record_stream(stream)


@dataclass(frozen=True)
class _Segment:
    head: npt.NDArray[np.uint8]
    start: int
    nodes: int
    memory: _Uploaded

    @property
    def data(self) -> torch.Tensor:
        return self.memory.tensors[0]


@dataclass(frozen=True)
class _History:
    """All segments, for look-ups of positions that only the GPU knows."""

    num_decisions: int
    segments: list[_Segment]
    end: int
    memory: _Uploaded  # starts, pointers, and all that the pointers point to


class DevicePlan:
    """The questions that a GPU answers, for one ledger of order balanced and one GPU.

    Kernels run on the stream that is current for the GPU; nothing here waits for them.

    Attributes:
        launches: What the last call launched, one entry a segment: strategy, blocks, threads and
            bytes of shared memory.
    """

    def __init__(self, ledger: "Ledger", device: torch.device) -> None:
        self._ledger = ledger
        self._plan = ledger._plan
        self._device = device
        self._segments: OrderedDict[int, _Segment] = OrderedDict()  # by serial; latest used last
        self._views: tuple[int, _Uploaded] | None = None
        self._history: _History | None = None
        self.launches: list[dict[str, Any]] = []

    def picks(self, start: int, count: int, mask: int, **tuning: Any) -> Columns:
        """Tensors for positions [start, start + count), None for fields not in the mask.

        Args:
            start: First position.
            count: How many.
            mask: Bit 0 domain, 1 draw, 2 epoch, 3 sample.
            tuning: For measurements: strategy ("auto", "walk", "search", "slots"), threads, blocks,
                shared. The answers do not depend on them.
        """
        with self._ledger.lock, torch.cuda.device(self._device):
            spans = self._plan.spans(start, count)  # may raise: before anything is allocated
            stream = torch.cuda.current_stream(self._device)
            out = self._empty(count, mask)
            pointers = [0 if t is None else t.data_ptr() for t in out]
            views = self._views_on(stream) if mask & 12 else 0
            self.launches = []
            used = []
            for serial, begin, end in spans:
                segment = self._segment(serial, stream)
                used.append(serial)
                at = [
                    p and p + (begin - start) * t.itemsize
                    for p, t in zip(pointers, _DTYPES, strict=True)
                ]
                launched = _cuda.picks(
                    self._device.index,
                    segment.head,
                    segment.data.data_ptr(),
                    views,
                    self._plan.order_key,
                    begin - segment.start,
                    end - begin,
                    (at[0], at[1], at[2], at[3]),
                    stream.cuda_stream,
                    **tuning,
                )
                self.launches.append(launched)
            self._evict(set(used))
        return out

    def at(self, positions: torch.Tensor, mask: int, **tuning: Any) -> Columns:
        """Tensors for any positions, an int64 tensor on this GPU; -1 where there is no such one."""
        with self._ledger.lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream(self._device)
            out = self._empty(positions.numel(), mask)
            self.launches = []
            if positions.numel() == 0:
                return out
            history = self._history_on(stream)
            starts, datas = history.memory.tensors[:2]
            views = self._views_on(stream) if mask & 12 else 0
            pointers = [0 if t is None else t.data_ptr() for t in out]
            launched = _cuda.at(
                self._device.index,
                starts.data_ptr(),
                datas.data_ptr(),
                len(history.segments),
                history.segments[0].nodes,
                views,
                self._plan.order_key,
                history.end,
                positions.data_ptr(),
                positions.numel(),
                (pointers[0], pointers[1], pointers[2], pointers[3]),
                stream.cuda_stream,
                **tuning,
            )
            self.launches.append(launched)
        return out

    def positions(self, value: Any) -> torch.Tensor:
        """A GPU's integers, as the int64 tensor that `at` takes; no copy where it is one already.

        Args:
            value: A CUDA tensor, or what has `__cuda_array_interface__` or `__dlpack__`.

        Raises:
            ValueError, TypeError: Not integers, more than one axis, or on another GPU.
        """
        tensor = value if isinstance(value, torch.Tensor) else _shared(value, self._device)
        if tensor.device != self._device:
            raise ArgumentError(f"positions must be on {self._device}, got {tensor.device}")
        if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
            raise ArgumentTypeError(f"positions must be integers, got dtype {tensor.dtype}")
        if tensor.ndim != 1:
            raise ArgumentError(f"positions must have 1 axis, got {tensor.ndim}")
        return tensor.to(torch.int64).contiguous()

    def upload(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """A host array on the GPU. The driver takes pageable memory before the call returns."""
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _empty(self, count: int, mask: int) -> Columns:
        columns = [
            torch.empty(count, dtype=dtype, device=self._device) if mask >> i & 1 else None
            for i, dtype in enumerate(_DTYPES)
        ]
        return columns[0], columns[1], columns[2], columns[3]

    def _uploaded(self, tensors: list[torch.Tensor], stream: torch.cuda.Stream) -> _Uploaded:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return _Uploaded(tensors, stream, event)

    def _segment(self, serial: int, stream: torch.cuda.Stream) -> _Segment:
        segment = self._segments.get(serial)
        if segment is None:
            flat = self._plan.flat(serial)
            about = _core.flat_head(flat)
            head = flat[: about["head_bytes"]].copy()
            memory = self._uploaded([self.upload(flat)], stream)
            segment = _Segment(head, about["start"], about["nodes"], memory)
            self._segments[serial] = segment
        self._segments.move_to_end(serial)
        segment.memory.ready_on(stream)
        return segment

    def _evict(self, used: set[int]) -> None:
        held = sum(s.data.numel() for s in self._segments.values())
        for serial in list(self._segments):
            if held <= KEPT_BYTES or serial in used:
                return
            held -= self._segments.pop(serial).data.numel()

    def _views_on(self, stream: torch.cuda.Stream) -> int:
        """Address of what the kernels know of the domains; domains are only ever added."""
        known = self._plan.num_domains
        if self._views is None or self._views[0] != known:
            views = self.upload(self._plan.views())
            self._views = known, self._uploaded([views], stream)
        memory = self._views[1]
        memory.ready_on(stream)
        return memory.tensors[0].data_ptr()

    def _history_on(self, stream: torch.cuda.Stream) -> _History:
        decisions = self._ledger.num_decisions
        if self._history is None or self._history.num_decisions != decisions:
            spans = self._plan.spans(0, -1)
            segments = [self._segment(serial, stream) for serial, _, _ in spans]
            starts = self.upload(np.array([s.start for s in segments], np.int64))
            datas = self.upload(np.array([s.data.data_ptr() for s in segments], np.int64))
            memory = self._uploaded([starts, datas, *(s.data for s in segments)], stream)
            end = spans[-1][2] if spans else MAX_POSITION
            self._history = _History(decisions, segments, end, memory)
            self._evict(set())
        self._history.memory.ready_on(stream)
        return self._history


def _shared(value: Any, device: torch.device) -> torch.Tensor:
    """Another library's GPU array as a tensor over the same memory."""
    if hasattr(value, "__dlpack__"):
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(value)
        return tensor
    return torch.as_tensor(value, device=device)
