"""`mixcore build-cuda`: compiles the CUDA extension in place, for this machine's GPU."""

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import click

import mixcore
from mixcore import _cuda_build, _driver
from mixcore.cli import show
from mixcore.errors import ArgumentError, DeviceError

PACKAGE = Path(mixcore.__file__).parent
RULES = """\
ninja_required_version = 1.5
rule cxx
  command = $cxx -MD -MF $out.d $cxxflags -c $in -o $out
  depfile = $out.d
  deps = gcc
rule cuda
  command = $nvcc -MD -MF $out.d $nvccflags -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared -pthread $in $libraries -o $out
"""


def csrc() -> Path:
    """Where the sources are: in the installed package, or in the repository beside it."""
    for path in (PACKAGE / "_csrc", PACKAGE.parent / "csrc"):
        if (path / "sampler_cuda.cu").exists():
            return path
    raise DeviceError(f"the CUDA sources are missing: no _csrc in {PACKAGE} and no csrc beside it")


def find_ninja() -> str | None:
    """The path of ninja, also where only its Python package has it."""
    found = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if found is None and importlib.util.find_spec("ninja") is not None:
        import ninja

        found = shutil.which("ninja", path=ninja.BIN_DIR)
    return found


def missing() -> list[str]:
    """What a build lacks here: names of tools and packages."""
    found = {
        "nvcc": _cuda_build.find_nvcc(),
        "a C++ compiler": shutil.which(os.environ.get("CXX", "c++")),
        "ninja": find_ninja(),
        "pybind11": importlib.util.find_spec("pybind11"),
    }
    return [name for name, where in found.items() if where is None]


def chosen_archs(text: str | None) -> list[str]:
    """The architectures that a user asks for, or those of this machine's GPUs."""
    if text is not None:
        try:
            return _cuda_build.parse_archs(text)
        except ValueError as e:
            raise ArgumentError(f"--arch: {e}") from None
    driver = _driver.probe()
    if not driver.gpus:
        raise DeviceError(f"--arch must be given, like --arch 90: {driver.why}")
    return _cuda_build.parse_archs(",".join(gpu.arch for gpu in driver.gpus))


def ninja_file(archs: list[str], target: str) -> str:
    """The build as ninja reads it."""
    import pybind11

    source = csrc()
    nvcc = str(_cuda_build.find_nvcc())
    digest = _cuda_build.sources_digest(source)
    macros = [f'-DMIXCORE_SOURCES=\\"{digest}\\"', f'-DMIXCORE_ARCHS=\\"{",".join(archs)}\\"']
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    cxx = ["-std=c++17", "-fPIC", *_cuda_build.CXX, *macros, *includes]
    libraries = [f"-L{d}" for d in _cuda_build.library_dirs(nvcc)]
    libraries += [f"-l{name}" for name in _cuda_build.LIBRARIES]
    values = {
        "cxx": os.environ.get("CXX", "c++"),
        "nvcc": nvcc,
        "cxxflags": " ".join(cxx),
        "nvccflags": " ".join(_cuda_build.nvcc_flags(archs)),
        "libraries": " ".join(libraries),
    }
    lines = [f"{name} = {value}" for name, value in values.items()]
    objects = []
    for name in _cuda_build.SOURCES:
        objects.append(f"{name}.o")
        path = str(source / name).replace(" ", "$ ").replace(":", "$:")
        lines.append(f"build {name}.o: {'cuda' if name.endswith('.cu') else 'cxx'} {path}")
    lines.append(f"build {target}: link {' '.join(objects)}")
    return RULES + "\n".join(lines) + "\n"


def build(archs: list[str], folder: Path, destination: Path, jobs: int) -> tuple[Path, bool]:
    """Compile what changed and put `_cuda` into `destination`.

    Returns:
        The extension's path, and whether anything had to be compiled.
    """
    lacking = missing()
    if lacking:
        raise DeviceError(
            f"a build needs {', '.join(lacking)}: nvcc and the compiler come with the CUDA toolkit "
            "and the system, the others with pip install 'mixcore[cuda]'"
        )
    target = "_cuda" + importlib.machinery.EXTENSION_SUFFIXES[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_file(archs, target))
    command = [str(find_ninja()), "-C", str(folder)] + ([f"-j{jobs}"] if jobs else [])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        click.echo(done.stdout + done.stderr, err=True)
        raise DeviceError(f"the build in {folder} failed; the compiler's messages are above")
    made, place = folder / target, destination / target
    changed = "no work to do" not in done.stdout
    if changed or not place.exists() or place.read_bytes() != made.read_bytes():
        fresh = place.with_suffix(".new")
        shutil.copyfile(made, fresh)
        os.replace(fresh, place)  # a process that has the old one loaded keeps it
    return place, changed


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "mixcore" / f"cuda-{sysconfig.get_config_var('SOABI')}"


@click.command("build-cuda", epilog="\b\nExample:\n  mixcore build-cuda --arch 80,90")
@click.option("--arch", help="Compute capabilities, like 90 or 80,90.  [default: this GPU's]")
@click.option("--jobs", type=click.IntRange(0), default=0, help="At a time; 0: as ninja likes.")
@click.option("--build-dir", type=click.Path(path_type=Path), help="Where objects are kept.")
@click.option(
    "--into", type=click.Path(path_type=Path, exists=True, file_okay=False), default=PACKAGE,
    show_default="the installed package", help="Where the extension goes.",
)  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(arch: str | None, jobs: int, build_dir: Path | None, into: Path, json_: bool) -> None:
    """Compile the CUDA extension in place for this machine's GPU; only what changed."""
    archs = chosen_archs(arch)
    place, changed = build(archs, build_dir or _cache(), into, jobs)
    if json_:
        show.as_json({"path": str(place), "archs": archs, "compiled": changed})
        return
    what = "compiled" if changed else "up to date"
    click.echo(f"{place}: {what}, compute capabilities {', '.join(archs)}, PTX for later ones")
