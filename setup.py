"""Native build of mixcore: `_core` (C++17) always, `_cuda` where nvcc and its source are found.

Switches, read from the environment:
    MIXCORE_CUDA=0|1        forbid or require the CUDA extension (default: build it if it can be)
    MIXCORE_CUDA_ARCHS      compute capabilities, comma separated (default 80,90); PTX for the last
    MIXCORE_SANITIZE=1      AddressSanitizer and UndefinedBehaviorSanitizer, asserts on
    MIXCORE_JOBS            files compiled at a time (default: all cores)
"""

import os
import runpy
import shutil
from glob import glob
from pathlib import Path
from types import SimpleNamespace

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CUDA = SimpleNamespace(**runpy.run_path("mixcore/_cuda_build.py"))
SANITIZE = os.environ.get("MIXCORE_SANITIZE", "0") == "1"
ARCHS = CUDA.parse_archs(os.environ.get("MIXCORE_CUDA_ARCHS", CUDA.DEFAULT_ARCHS))
CUDA_SOURCES = [f"csrc/{s}" for s in CUDA.SOURCES]
HEADERS = sorted(glob("csrc/*.h"))

CXX = list(CUDA.CXX)
LINK = ["-pthread"]
if SANITIZE:
    # -fno-sanitize=vptr: the interpreter that loads the extension has no C++ type information.
    CXX += ["-O1", "-g", "-UNDEBUG", "-fsanitize=address,undefined", "-fno-sanitize=vptr"]
    CXX += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-DMIXCORE_SANITIZE=1"]
    LINK += ["-fsanitize=address,undefined"]


def wanted_nvcc() -> str | None:
    """Return nvcc's path if the CUDA extension is wanted and can be built."""
    wish = os.environ.get("MIXCORE_CUDA", "")
    nvcc = None if wish == "0" else CUDA.find_nvcc()
    if wish == "1" and nvcc is None:
        raise SystemExit("MIXCORE_CUDA=1, but no nvcc is found on PATH or in CUDA_HOME")
    return nvcc


class BuildExt(build_ext):
    """build_ext with one more rule: `.cu` sources go through nvcc."""

    def build_extension(self, ext):
        cuda = [s for s in ext.sources if s.endswith(".cu")]
        sources = ext.sources
        ext.sources = [s for s in sources if s not in cuda]
        ext.extra_objects += [self.compile_cuda(s) for s in cuda]
        super().build_extension(ext)
        ext.sources = sources  # an sdist made in the same run wants all of them

    def compile_cuda(self, source):
        target = Path(self.build_temp) / Path(source).with_suffix(".cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MIXCORE_JOBS", "0")
        flags = [f"--threads={jobs}", *CUDA.nvcc_flags(ARCHS)]
        self.spawn([NVCC, "-c", source, "-o", str(target), *flags])
        return str(target)


class BuildPy(build_py):
    """build_py that packs what `mixcore build-cuda` compiles."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "mixcore/_csrc")
        target.mkdir(parents=True, exist_ok=True)
        for source in [*HEADERS, *CUDA_SOURCES, "csrc/flat.cpp"]:
            shutil.copy(source, target)


NVCC = wanted_nvcc()
core_sources = sorted(s for s in glob("csrc/*.cpp") if s not in CUDA_SOURCES)
macros = [("MIXCORE_SOURCES", f'"{CUDA.sources_digest(Path("csrc"))}"')]
core = {"cxx_std": 17, "depends": HEADERS, "extra_compile_args": CXX, "extra_link_args": LINK}
extensions = [Pybind11Extension("mixcore._core", core_sources, define_macros=macros, **core)]
if NVCC:
    macros = [*macros, ("MIXCORE_ARCHS", f'"{",".join(ARCHS)}"')]
    core["depends"] = [*HEADERS, *CUDA_SOURCES]  # BuildExt takes the .cu out of the sources
    cuda = {"libraries": CUDA.LIBRARIES, "library_dirs": CUDA.library_dirs(NVCC)}
    extensions.append(
        Pybind11Extension("mixcore._cuda", CUDA_SOURCES, define_macros=macros, **core, **cuda)
    )

ParallelCompile("MIXCORE_JOBS", default=0).install()
setup(ext_modules=extensions, cmdclass={"build_ext": BuildExt, "build_py": BuildPy})
