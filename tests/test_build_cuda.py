"""`mixcore build-cuda` compiles, only what changed; the extension imports without a driver."""

import subprocess
import sys

import pytest
from command_line import facts_of, refused

from mixcore import _core, _cuda_build, _driver
from mixcore.cli import build_cuda

needs_nvcc = pytest.mark.skipif(bool(build_cuda.missing()), reason="no nvcc, ninja or compiler")


@needs_nvcc
def test_builds_and_builds_only_what_changed(tmp_path):
    options = ["--build-dir", str(tmp_path / "objects"), "--into", str(tmp_path), "--jobs", "1"]
    facts = facts_of("build-cuda", "--arch", "90", *options)
    assert facts["compiled"]
    assert facts["archs"] == ["90"]
    assert not facts_of("build-cuda", "--arch", "90", *options)["compiled"]
    needed = subprocess.run(["ldd", facts["path"]], capture_output=True, text=True).stdout
    assert "libc.so" in needed
    assert "libcuda" not in needed  # neither the driver nor a shared runtime
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('mixcore._cuda', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "count, why = module.gpu_count()\n"
        "assert (count == 0) == bool(why)\n"
        "print(module.sources, module.archs)\n"
    )
    command = [sys.executable, "-c", code, facts["path"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [_core.sources, "90"]


def test_without_a_gpu_the_architecture_must_be_said(monkeypatch):
    monkeypatch.setattr(_driver, "probe", lambda: _driver.Driver(0, (), "no driver"))
    assert refused("build-cuda") == "--arch must be given, like --arch 90: no driver"


def test_takes_the_gpus_own_architecture(monkeypatch):
    gpus = (_driver.Gpu("a", (9, 0)), _driver.Gpu("b", (8, 6)), _driver.Gpu("c", (9, 0)))
    monkeypatch.setattr(_driver, "probe", lambda: _driver.Driver(13000, gpus))
    assert build_cuda.chosen_archs(None) == ["86", "90"]


def test_bad_architecture():
    assert refused("build-cuda", "--arch", "sm_90") == (
        "--arch: 'sm_90' is no compute capability like 80 or 90"
    )


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(_cuda_build, "find_nvcc", lambda: None)
    monkeypatch.setattr(build_cuda, "find_ninja", lambda: None)
    assert refused("build-cuda", "--arch", "90").startswith("a build needs nvcc, ninja: ")
