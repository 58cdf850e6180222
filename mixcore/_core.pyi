from typing import Any

import numpy as np
import numpy.typing as npt

class Plan:
    def __init__(self, order: str, key: int, on_cap: str) -> None: ...
    def add_domain(self, name: str, key: int, size: int, cap: int) -> None: ...
    def append(
        self,
        start: int,
        batch_size: int,
        shares: npt.NDArray[np.uint64],
        weights: npt.NDArray[np.float64] | None,
    ) -> None: ...
    def extend(
        self,
        domains: list[tuple[str, int, int, int]],
        pieces: list[tuple[int, int, npt.NDArray[np.uint64], npt.NDArray[np.float64] | None]],
    ) -> None: ...
    def picks(
        self, start: int, count: int, threads: int, mask: int
    ) -> tuple[Any, Any, Any, Any]: ...
    def at(self, positions: npt.NDArray[np.int64], mask: int) -> tuple[Any, Any, Any, Any]: ...
    def counts(self, position: int) -> npt.NDArray[np.int64]: ...
    def find_end(self, horizon: int) -> tuple[int, int] | None: ...
    def cap_events(self, horizon: int) -> list[tuple[int, int]]: ...
    def explain(self, position: int) -> dict[str, Any]: ...
    def checkpoints(self) -> list[tuple[int, int, Any, Any, Any, Any]]: ...
    def restore(
        self,
        position: int,
        piece_start: int,
        counts: npt.NDArray[np.int64],
        at_start: npt.NDArray[np.int64],
        debt: npt.NDArray[np.float64],
        capped_at: npt.NDArray[np.int64],
    ) -> None: ...
    def memory_bytes(self) -> int: ...
    def spans(self, start: int, count: int) -> list[tuple[int, int, int]]: ...
    def flat(self, serial: int) -> npt.NDArray[np.uint8]: ...
    def views(self) -> npt.NDArray[np.uint8]: ...
    @property
    def order_key(self) -> int: ...
    @property
    def num_domains(self) -> int: ...

def shares(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]: ...
def interpolate_shares(
    x: npt.NDArray[np.uint64], y: npt.NDArray[np.uint64], numerator: int, denominator: int
) -> npt.NDArray[np.uint64]: ...
def permutation(
    n: int, key: int, ordinal: int, purpose: int, points: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]: ...
def philox(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]: ...
def build_blending_indices(
    weights: npt.NDArray[np.float64], size: int
) -> tuple[npt.NDArray[np.int16] | npt.NDArray[np.int32], npt.NDArray[np.int64]]: ...
def build_exhaustive_blending_indices(
    sizes: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int16] | npt.NDArray[np.int32], npt.NDArray[np.int64]]: ...
def greedy_plain(
    weights: npt.NDArray[np.float64], size: int
) -> tuple[npt.NDArray[np.int16] | npt.NDArray[np.int32], npt.NDArray[np.int64]]: ...
def exhaustive_plain(
    sizes: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int16] | npt.NDArray[np.int32], npt.NDArray[np.int64]]: ...
def greedy(
    weights: npt.NDArray[np.float64],
    debts: npt.NDArray[np.float64] | None,
    start: int,
    counts: npt.NDArray[np.int64] | None,
    n: int,
    isa: str = "best",
    part: int = 1 << 48,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]: ...
def build_sample_idx(
    sizes: npt.NDArray[np.int32],
    document_idx: npt.NDArray[np.int32],
    seq_length: int,
    num_epochs: int,
    tokens_per_epoch: int,
    drop_last_partial_sequence: bool,
    add_extra_token_to_sequence: int,
    bits: int,
    threads: int,
    plain: bool = False,
) -> npt.NDArray[np.int32] | npt.NDArray[np.int64]: ...
def flat_head(flat: npt.NDArray[np.uint8]) -> dict[str, int]: ...
def grid_picks(
    flat: npt.NDArray[np.uint8],
    views: npt.NDArray[np.uint8],
    order_key: int,
    first: int,
    count: int,
    mask: int,
    strategy: str,
    threads: int,
    blocks: int,
    shared: int,
    limits: tuple[int, int],
    turn: str,
) -> tuple[tuple[Any, Any, Any, Any], str, int, int]: ...
def grid_at(
    flats: list[npt.NDArray[np.uint8]],
    views: npt.NDArray[np.uint8],
    order_key: int,
    end: int,
    positions: npt.NDArray[np.int64],
    mask: int,
    threads: int,
    blocks: int,
    shared: int,
    turn: str,
) -> tuple[Any, Any, Any, Any]: ...

sources: str
sanitized: bool
