"""The launcher: `torchrun -m megatron_patch script.py ...`, or with `python` in place of torchrun.

Patches Megatron, then runs the script as `python script.py ...` would. Without a `--mix-*` flag it
runs the script and does nothing else.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import megatron_patch
from mixcore import _import_name

USAGE = "usage: python -m megatron_patch script.py [arguments of the script] --mix-config mix.yaml"


def main(argv: list[str]) -> None:
    """Run the script of `argv[0]` with the arguments that follow it.

    DeepSpeed's launcher puts `--local_rank=N` before the script; it is handed on behind it.
    """
    if len(argv) > 1 and argv[0].startswith("--local_rank="):
        argv = [argv[1], argv[0], *argv[2:]]
    if not argv or argv[0].startswith("-"):
        _stop(f"{USAGE}\nmegatron_patch: error: no script given, got {argv}")
    script = argv[0]
    if not Path(script).is_file():
        _stop(f"megatron_patch: error: there is no script {script!r}")
    sys.argv[:] = argv
    if not sys.flags.safe_path:  # what `-m` put there, python would have taken the script's folder
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    if any(is_mix_flag(word) for word in argv[1:]):
        _patch()
    _run(script)


def is_mix_flag(word: str) -> bool:
    """Whether a word of the command line is one of our flags."""
    return word.startswith("--mix-")


def _patch() -> None:
    foreign = _import_name.foreign()
    if foreign is not None:
        _stop(f"megatron_patch: error: {_import_name.message(foreign)}")
    try:
        megatron_patch.apply()
    except megatron_patch.PatchError as e:
        _stop(f"megatron_patch: error: {e}")
    if os.environ.get("RANK", "0") == "0":
        megatron_patch.status(sys.stderr)


def _run(script: str) -> None:
    """Run a file as python does.

    Unlike runpy.run_path: `__file__` is absolute, sys.argv[0] stays as it was given, and the module
    lives to the end of the process, for threads and exit handlers.
    """
    path = os.path.abspath(script)
    module = ModuleType("__main__")
    module.__file__ = path
    module.__spec__ = None
    sys.modules["__main__"] = module
    exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)


def _stop(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
