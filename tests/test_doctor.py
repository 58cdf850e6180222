"""`mixcore doctor`, and why there is no GPU sampler: each reason named, with its remedy."""

import sys
from types import ModuleType

import pytest
from command_line import facts_of, run
from conftest import make_ledger

import mixcore
from mixcore import _core, _cuda_build, _driver, gpu


def fake(**changes):
    module = ModuleType("mixcore._cuda")
    facts = {
        "sources": _core.sources, "archs": "80,90", "gpu_count": lambda: (1, ""),
        "driver_version": lambda: 13000, "runtime_version": lambda: 13000,
        "gpu_info": lambda gpu: {"capability": (9, 0)},
    } | changes  # fmt: skip
    vars(module).update(facts)
    return module


CASES = [
    (None, "this installation has no CUDA extension; mixcore build-cuda mends it"),
    (fake(sources="other"), "built from other sources than the core; mixcore build-cuda"),
    (fake(gpu_count=lambda: (0, "x"), driver_version=lambda: 0), "no NVIDIA driver is loaded"),
    (
        fake(gpu_count=lambda: (0, "too old"), driver_version=lambda: 12040),
        "driver is for CUDA 12.4, the extension was built with CUDA 13.0: too old; a newer driver",
    ),
    (fake(gpu_count=lambda: (0, "none at all")), "the NVIDIA driver shows no GPU: none at all"),
    (
        fake(gpu_info=lambda gpu: {"capability": (7, 5)}),
        "built for compute capabilities 80,90, this GPU has 75; mixcore build-cuda",
    ),
]


@pytest.mark.parametrize(("module", "message"), CASES)
def test_one_clear_error(monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, "mixcore._cuda", module)
    if module is None:  # as if the file were not there
        missing = ModuleNotFoundError("none", name="mixcore._cuda")
        monkeypatch.setattr(
            gpu.importlib, "import_module", lambda name: (_ for _ in ()).throw(missing)
        )
    assert not mixcore.cuda_available()
    with pytest.raises(mixcore.DeviceError, match="device='cuda' is not available: ") as e:
        mixcore.Sampler(make_ledger(2)).picks(0, 5, device="cuda")
    assert message in str(e.value)


def test_an_extension_that_does_not_load(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: x")

    monkeypatch.setattr(gpu.importlib, "import_module", broken)
    assert "does not load (undefined symbol: x)" in str(gpu.trouble())


def test_all_is_well(monkeypatch):
    monkeypatch.setitem(sys.modules, "mixcore._cuda", fake())
    assert mixcore.cuda_available()


def test_torch_without_cuda(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "mixcore._cuda", fake())
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(mixcore.DeviceError, match="was built without CUDA"):
        mixcore.Sampler(make_ledger(2)).picks(0, 5, device="cuda")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(mixcore.DeviceError, match=r"torch, .* is missing .*; pip install torch"):
        mixcore.Sampler(make_ledger(2)).picks(0, 5, device="cuda")


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["80", "90"], (8, 0), True), (["80", "90"], (8, 9), True), (["80", "90"], (9, 0), True),
        (["80", "90"], (12, 0), True),  # through PTX
        (["80", "90"], (7, 5), False), (["89"], (8, 6), False), (["90", "120"], (8, 0), False),
    ],
)  # fmt: skip
def test_what_runs_where(archs, capability, runs):
    assert gpu.runs_on(archs, capability) == runs


def test_facts(monkeypatch):
    monkeypatch.setattr(gpu, "extension", lambda: gpu.Trouble("none is there", gpu.BUILD))
    monkeypatch.setattr(_driver, "probe", lambda: _driver.Driver(0, (), "no driver"))
    monkeypatch.setattr(_cuda_build, "find_nvcc", lambda: None)
    facts = facts_of("doctor")
    assert facts["works"] is False
    assert facts["reason"] == "none is there"
    assert facts["remedy"] == "install the CUDA toolkit (nvcc), then mixcore build-cuda"
    assert facts["cuda"]["archs"] == []
    shown = run("doctor").stdout
    assert 'device="cuda" does not work here: none is there' in shown


def test_driver_without_a_library(monkeypatch):
    def none(name):
        raise OSError(name)

    monkeypatch.setattr(_driver.ctypes, "CDLL", none)
    assert _driver.probe() == _driver.Driver(0, (), "no NVIDIA driver is loaded on this machine")
