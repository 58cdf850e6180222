"""How `_cuda` is compiled: one list of flags for setup.py and for `mixcore build-cuda`.

Imports nothing of mixcore and nothing beyond the standard library: setup.py runs this file before
there is a package.
"""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

SOURCES = ("bind_cuda.cpp", "sampler_cuda.cu")
LIBRARIES = ["cudart_static", "dl", "rt", "pthread"]
DEFAULT_ARCHS = "80,90"
# Contraction is off because order "megatron" must round every multiply and subtract on its own;
# -march=native and -ffast-math are never used, so that a wheel gives the same bytes everywhere.
CXX = ["-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
NVCC = ["-O3", "-std=c++17", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]


def find_nvcc() -> str | None:
    """The path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def parse_archs(text: str) -> list[str]:
    """Compute capabilities like "80,90", ascending.

    Raises:
        ValueError: One is no such number.
    """
    archs = sorted({a.strip() for a in text.split(",")}, key=lambda a: (len(a), a))
    for arch in archs:
        if not re.fullmatch(r"[0-9]{2,3}", arch):
            raise ValueError(f"{arch!r} is no compute capability like 80 or 90")
    return archs


def nvcc_flags(archs: list[str]) -> list[str]:
    """Machine code for each of them, and PTX of the last, which later GPUs compile at load time."""
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    last = archs[-1]
    return [*NVCC, *codes, f"-gencode=arch=compute_{last},code=compute_{last}"]


def library_dirs(nvcc: str) -> list[str]:
    """Where this nvcc's own libraries are; it says so itself, wherever it was installed."""
    command = [nvcc, "--dryrun", "-c", "none.cu"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
    libraries = next((x for x in said.splitlines() if x.startswith("#$ LIBRARIES=")), "")
    found = [d for d in re.findall(r'-L"?([^"\s]+)', libraries) if "stubs" not in d]
    if not found:
        raise OSError(f"{nvcc} --dryrun does not say where its libraries are")
    return found


def sources_digest(csrc: Path) -> str:
    """A digest of what decides the sampler's bytes; `_core` and `_cuda` must have the same."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted([*csrc.glob("*.h"), csrc / "flat.cpp"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
