"""Native build of mixcore: `_core` (C++17) always, `_cuda` where nvcc and its source are found.

Switches, read from the environment:
    MIXCORE_CUDA=0|1        forbid or require the CUDA extension (default: build it if it can be)
    MIXCORE_CUDA_ARCHS      compute capabilities, comma separated (default 80,90); PTX for the last
    MIXCORE_SANITIZE=1      AddressSanitizer and UndefinedBehaviorSanitizer, asserts on
    MIXCORE_JOBS            files compiled at a time (default: all cores)
"""

import os
import shutil
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

SANITIZE = os.environ.get("MIXCORE_SANITIZE", "0") == "1"
ARCHS = os.environ.get("MIXCORE_CUDA_ARCHS", "80,90").split(",")
CUDA_SOURCES = ["csrc/bind_cuda.cpp", "csrc/sampler_cuda.cu"]
HEADERS = sorted(glob("csrc/*.h"))

# Contraction is off because order "megatron" must round every multiply and subtract on its own;
# -march=native and -ffast-math are never used, so that a wheel gives the same bytes everywhere.
CXX = ["-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
LINK = ["-pthread"]
if SANITIZE:
    # -fno-sanitize=vptr: the interpreter that loads the extension has no C++ type information.
    CXX += ["-O1", "-g", "-UNDEBUG", "-fsanitize=address,undefined", "-fno-sanitize=vptr"]
    CXX += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-DMIXCORE_SANITIZE=1"]
    LINK += ["-fsanitize=address,undefined"]


def find_nvcc() -> str | None:
    """Return nvcc's path if the CUDA extension is wanted and can be built."""
    wish = os.environ.get("MIXCORE_CUDA", "")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    missing = [s for s in CUDA_SOURCES if not Path(s).exists()]
    if wish == "1" and (nvcc is None or missing):
        raise SystemExit(
            f"MIXCORE_CUDA=1, but nvcc is {nvcc} and these sources are missing: {missing}"
        )
    return nvcc if not missing else None


class BuildExt(build_ext):
    """build_ext with one more rule: `.cu` sources go through nvcc."""

    def build_extension(self, ext):
        cuda = [s for s in ext.sources if s.endswith(".cu")]
        ext.sources = [s for s in ext.sources if s not in cuda]
        ext.extra_objects += [self.compile_cuda(s) for s in cuda]
        super().build_extension(ext)

    def compile_cuda(self, source):
        target = Path(self.build_temp) / Path(source).with_suffix(".cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
        gencode.append(f"-gencode=arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}")
        flags = ["-O3", "-std=c++17", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden"]
        self.spawn([NVCC, "-c", source, "-o", str(target), "--threads=0", *flags, *gencode])
        return str(target)


NVCC = find_nvcc()
core_sources = sorted(s for s in glob("csrc/*.cpp") if s not in CUDA_SOURCES)
core = {"cxx_std": 17, "depends": HEADERS, "extra_compile_args": CXX, "extra_link_args": LINK}
extensions = [Pybind11Extension("mixcore._core", core_sources, **core)]
if NVCC:
    lib = str(Path(NVCC).resolve().parent.parent / "lib64")
    cuda = {"libraries": ["cudart_static", "dl", "rt", "pthread"], "library_dirs": [lib]}
    extensions.append(Pybind11Extension("mixcore._cuda", CUDA_SOURCES, **core, **cuda))

ParallelCompile("MIXCORE_JOBS", default=0).install()
setup(ext_modules=extensions, cmdclass={"build_ext": BuildExt})
