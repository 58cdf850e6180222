"""`mixcore doctor`: what is built, what the driver sees, and the one command that mends it."""

import importlib.util
import platform
from typing import Any

import click

import mixcore
from mixcore import _core, _cuda_build, _driver, gpu
from mixcore.cli import build_cuda, show


def examine() -> dict[str, Any]:
    """The facts, in JSON's types. `reason` and `remedy` are None where `device="cuda"` works."""
    driver = _driver.probe()
    cuda = gpu.extension()
    extension: dict[str, Any] = {"path": None, "archs": [], "ptx": None, "built_with": None}
    if not isinstance(cuda, gpu.Trouble):
        archs = cuda.archs.split(",")
        built_with = gpu.shown(cuda.runtime_version())
        extension = {
            "path": cuda.__file__, "archs": archs, "ptx": archs[-1], "built_with": built_with
        }  # fmt: skip
    found = gpu.trouble() or gpu.torch_trouble()
    remedy = found.remedy if found else ""
    if remedy == gpu.BUILD:
        remedy = _build_command(bool(driver.gpus))
    return {
        "mixcore": mixcore.__version__,
        "python": platform.python_version(),
        "core": {"path": _core.__file__, "sources": _core.sources},
        "cuda": extension,
        "driver": {
            "cuda": gpu.shown(driver.version) if driver.version else None,
            "gpus": [{"name": g.name, "capability": g.arch} for g in driver.gpus],
        },
        "torch": _torch(),
        "tools": {"nvcc": _cuda_build.find_nvcc(), "ninja": build_cuda.find_ninja()},
        "works": found is None,
        "reason": found.reason if found else None,
        "remedy": remedy or None,
    }


def _build_command(has_gpu: bool) -> str:
    """One line that ends with an extension for this machine."""
    lacking = build_cuda.missing()
    if "nvcc" in lacking:
        return "install the CUDA toolkit (nvcc), then mixcore build-cuda"
    arch = "" if has_gpu else f" --arch {_cuda_build.DEFAULT_ARCHS}"
    first = "pip install 'mixcore[cuda]' && " if {"ninja", "pybind11"} & set(lacking) else ""
    return f"{first}{gpu.BUILD}{arch}"


def _torch() -> dict[str, Any] | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return {"version": torch.__version__, "cuda": torch.version.cuda}


@click.command("doctor", epilog="\b\nExample:\n  mixcore doctor --json")
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(json_: bool) -> None:
    """Say what is built, for which GPUs, what the driver sees, and what mends what is missing."""
    facts = examine()
    if json_:
        show.as_json(facts)
        return
    cuda, driver, torch = facts["cuda"], facts["driver"], facts["torch"]
    gpus = [f"{g['name']} (compute capability {g['capability']})" for g in driver["gpus"]]
    lines = {
        "mixcore": f"{facts['mixcore']}, Python {facts['python']}",
        "core": facts["core"]["path"],
        "CUDA extension": cuda["path"] or "none",
        "built for": f"{', '.join(cuda['archs'])} and PTX {cuda['ptx']}, CUDA {cuda['built_with']}"
        if cuda["archs"]
        else "-",
        "driver": f"CUDA {driver['cuda']}" if driver["cuda"] else "none",
        "GPUs": ", ".join(gpus) or "none",
        "torch": f"{torch['version']}, CUDA {torch['cuda'] or 'not built in'}" if torch else "none",
        "nvcc": facts["tools"]["nvcc"] or "none",
        "ninja": facts["tools"]["ninja"] or "none",
    }
    for name, value in lines.items():
        click.echo(f"{name + ':':<16} {value}")
    if facts["works"]:
        click.echo('device="cuda" works here')
        return
    click.echo(f'device="cuda" does not work here: {facts["reason"]}')
    if facts["remedy"]:
        click.echo(f"to mend it: {facts['remedy']}")
