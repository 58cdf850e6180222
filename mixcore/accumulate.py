"""Sums of losses and counts of tokens by domain, exact: the order of the additions does not matter.

A loss is rounded once, to a multiple of RESOLUTION = 2^-24 nats, and from then on only integers are
added: on a CPU, in a GPU's atomics and over ranks, in whatever order, the sums are the same bits.
Each is held in two int64 words (what a multiple of 2^32 has, and the rest), so that nothing can
overflow with up to 2^31 samples in a window, all ranks together, of |loss| <= 2^38 nats and fewer
than 2^31 tokens each. A sample beyond that, or with a loss that is not finite, is left out and
counted.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import MAX_DOMAINS, integer
from mixcore.errors import ArgumentError, ArgumentTypeError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SCALE = float(1 << 24)  # 1 / RESOLUTION
LARGEST = float(1 << 38)
MOST_TOKENS = 1 << 31
COLUMNS = ("high", "low", "tokens", "samples", "dropped")
PENDING = 64  # observations that are kept as they came before they are added up
_WORD = (1 << 32) - 1


class Accumulator:
    """Adds up losses and tokens by domain, on the device where the losses are.

    Example:
        >>> sums = Accumulator(num_domains=3)
        >>> sums.observe([0, 2, 0], [2.0, 1.5, 4.0], [10, 10, 10])
        >>> window = Window(sums.table())
        >>> window.loss_sum, window.tokens
        (array([6. , 0. , 1.5]), array([20,  0, 10]))

    `observe` does not wait for a GPU: it keeps a copy of what it is given, and adds up what has
    gathered after every 64 calls. Only `table` waits.

    Args:
        num_domains: D, 1 to 65,536.
    """

    def __init__(self, num_domains: int) -> None:
        self.num_domains = integer("num_domains", num_domains, 1, MAX_DOMAINS)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        # One more row than domains: a GPU cannot raise for a number out of range, so it counts it.
        self._table = np.zeros((self.num_domains + 1, len(COLUMNS)), np.int64)
        self._pending: list[tuple[Ints, Floats, Ints]] = []
        self._on_device: dict[str, _DeviceTable] = {}

    def observe(self, domain_ids: Any, loss_sums: Any, tokens: Any) -> None:
        """Add samples, one entry each (or packed pieces of samples: one entry a piece).

        Args:
            domain_ids: Integers in [0, D): numpy, sequence or tensor on any device.
            loss_sums: Sum of the token losses of each, floats (nats), not scaled, not divided.
            tokens: How many tokens that is, integers >= 0.

        Raises:
            ValueError, TypeError: Shapes differ, or (on a CPU) a number is out of range. On a GPU
                numbers out of range are found by `table`.
        """
        if _is_tensor(loss_sums) and loss_sums.device.type != "cpu":
            key = str(loss_sums.device)
            if key not in self._on_device:
                self._on_device[key] = _DeviceTable(self.num_domains, loss_sums.device)
            self._on_device[key].observe(domain_ids, loss_sums, tokens)
            return
        ids = _whole("domain_ids", domain_ids)
        losses = _losses(loss_sums)
        counts = _whole("tokens", tokens)
        _same_length(len(ids), len(losses), len(counts))
        if not len(ids):
            return
        if ids.min() < 0 or ids.max() >= self.num_domains:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ArgumentError(f"domain_ids must be in [0, {self.num_domains}), got {wrong}")
        if counts.min() < 0:
            raise ArgumentError(f"tokens must be >= 0, got {counts.min()}")
        self._pending.append((ids, losses, counts))
        if len(self._pending) >= PENDING:
            self._flush()

    def table(self) -> Ints:
        """What this rank has observed since `clear`: int64[D, 5], columns as in COLUMNS; a copy.

        Waits for the GPU. Tables of several ranks may be added.

        Raises:
            ArgumentError: Domain numbers out of range were observed on a GPU.
        """
        self._flush()
        table = self._table.copy()
        for part in self._on_device.values():
            table += part.read()
        outside = int(table[-1, 3:].sum())
        if outside:
            raise ArgumentError(
                f"domain_ids must be in [0, {self.num_domains}), got {outside} others on the GPU"
            )
        return table[:-1]

    def load(self, table: Ints) -> None:
        """Begin with what a `table` holds."""
        if table.shape != (self.num_domains, len(COLUMNS)):
            raise ArgumentError(
                f"table must have the shape ({self.num_domains}, {len(COLUMNS)}), got {table.shape}"
            )
        self.clear()
        self._table[:-1] = table

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = zip(*self._pending, strict=True)
        ids, losses, tokens = (np.concatenate(c) for c in columns)
        self._pending.clear()
        # The comparison is False for NaN.
        good = (np.abs(losses) <= LARGEST) & (tokens < MOST_TOKENS)
        fixed = np.rint(np.where(good, losses, 0.0) * SCALE).astype(np.int64)
        tokens = np.where(good, tokens, 0)
        rows = np.stack([fixed >> 32, fixed & _WORD, tokens, good, ~good], axis=1)
        np.add.at(self._table, ids, rows)


class _DeviceTable:
    """The same sums in a tensor; nothing here waits for the device but `read`."""

    def __init__(self, num_domains: int, device: Any) -> None:
        import torch

        self.device = device
        self.num_domains = num_domains
        size = (num_domains + 1, len(COLUMNS))
        self.table = torch.zeros(size, dtype=torch.int64, device=device)
        self._pending: list[tuple[Any, Any, Any]] = []

    def observe(self, *columns: Any) -> None:
        # Copies: the trainer may use the memory of its losses again.
        copies = [_copied(name, c) for name, c in zip(_NAMES, columns, strict=True)]
        _same_length(*(c.numel() for c in copies))
        self._pending.append((copies[0], copies[1], copies[2]))
        if len(self._pending) >= PENDING:
            self.flush()

    def flush(self) -> None:
        import torch

        if not self._pending:
            return
        ids, losses, tokens = (self._gathered(c) for c in zip(*self._pending, strict=True))
        self._pending.clear()
        losses = losses.double()
        good = (losses.abs() <= LARGEST) & (tokens >= 0) & (tokens < MOST_TOKENS)
        rows = torch.where((ids >= 0) & (ids < self.num_domains), ids, self.num_domains)
        fixed = (torch.where(good, losses, 0.0) * SCALE).round().long()
        tokens = torch.where(good, tokens, 0)
        kept = good.long()
        values = torch.stack([fixed >> 32, fixed & _WORD, tokens, kept, 1 - kept], 1)
        self.table.index_add_(0, rows.long(), values)

    def _gathered(self, parts: tuple[Any, ...]) -> Any:
        import torch

        if len({p.device for p in parts}) > 1:
            parts = tuple(p.to(self.device, non_blocking=True) for p in parts)
        return torch.cat(parts).to(self.device, non_blocking=True)

    def read(self) -> Ints:
        self.flush()
        result: Ints = self.table.cpu().numpy()
        return result


class Window:
    """What a table (or the sum of several ranks' tables) says.

    Attributes:
        loss_sum: float64[D], nats.
        tokens, samples: int64[D].
        dropped: int64[D], samples left out because their loss was not finite, or out of bounds.
    """

    def __init__(self, table: Ints) -> None:
        high, low = table[:, 0] + (table[:, 1] >> 32), table[:, 1] & _WORD
        self.loss_sum: Floats = high * ((1 << 32) / SCALE) + low / SCALE
        self.tokens, self.samples, self.dropped = table[:, 2], table[:, 3], table[:, 4]


_NAMES = ("domain_ids", "loss_sums", "tokens")


def table_from_plain(value: object, num_domains: int) -> Ints:
    """A table from its nested lists of integers.

    Raises:
        ArgumentError: It is none, or of another number of domains.
    """
    try:
        table = np.array(value, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as e:
        raise ArgumentError(f"state['accumulated'] must be integers: {e}") from None
    if table.shape != (num_domains, len(COLUMNS)):
        raise ArgumentError(
            f"state['accumulated'] must have the shape ({num_domains}, {len(COLUMNS)}), got "
            f"{table.shape}"
        )
    return table


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def _host(value: Any) -> Any:
    return value.detach().cpu() if _is_tensor(value) else value


def _whole(name: str, value: Any) -> Ints:
    value = _host(value)
    try:
        array = value.numpy() if _is_tensor(value) else np.asarray(value)
    except (TypeError, ValueError) as e:
        raise ArgumentTypeError(f"{name} must be integers ({e})") from None
    if array.size and array.dtype.kind not in "iu":
        raise ArgumentTypeError(f"{name} must be integers, got dtype {array.dtype}")
    return array.ravel().astype(np.int64)  # astype copies


def _losses(value: Any) -> Floats:
    value = _host(value)
    if _is_tensor(value):
        value = value.double().numpy()  # bfloat16 has no numpy type
    if isinstance(value, (str, bytes, Mapping)):
        raise ArgumentTypeError(f"loss_sums must be numbers, got {value!r}")
    try:
        return np.array(value, dtype=np.float64).ravel()
    except (TypeError, ValueError) as e:
        raise ArgumentTypeError(f"loss_sums must be numbers ({e})") from None


def _copied(name: str, value: Any) -> Any:
    import torch

    if not _is_tensor(value):
        return torch.from_numpy(_whole(name, value))
    if name != "loss_sums" and (value.is_floating_point() or value.dtype == torch.bool):
        raise ArgumentTypeError(f"{name} must be integers, got dtype {value.dtype}")
    return value.detach().clone().reshape(-1)


def _same_length(ids: int, losses: int, tokens: int) -> None:
    if not ids == losses == tokens:
        raise ArgumentError(
            f"domain_ids, loss_sums and tokens must have one entry a sample each, got {ids}, "
            f"{losses} and {tokens}"
        )
