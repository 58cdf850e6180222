from typing import Any

import numpy as np
import numpy.typing as npt

sources: str
archs: str

def gpu_count() -> tuple[int, str]: ...
def gpu_info(gpu: int) -> dict[str, Any]: ...
def driver_version() -> int: ...
def runtime_version() -> int: ...
def picks(
    gpu: int,
    head: npt.NDArray[np.uint8],
    data: int,
    views: int,
    order_key: int,
    first: int,
    count: int,
    out: tuple[int, int, int, int],
    stream: int,
    strategy: str = "auto",
    threads: int = 0,
    blocks: int = 0,
    shared: int = 0,
) -> dict[str, Any]: ...
def at(
    gpu: int,
    starts: int,
    datas: int,
    segments: int,
    nodes: int,
    views: int,
    order_key: int,
    end: int,
    positions: int,
    count: int,
    out: tuple[int, int, int, int],
    stream: int,
    threads: int = 0,
    blocks: int = 0,
    shared: int = 0,
) -> dict[str, Any]: ...
