"""`import mixcore` is cheap and quiet (promise 9)."""

import subprocess
import sys


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_imports_nothing_heavy_and_prints_nothing():
    heavy = "torch torchdata tokenizers matplotlib scipy pandas rich click yaml mixcore.reference"
    code = (
        "import sys, mixcore\n"
        f"loaded = [m for m in {heavy.split()} if m in sys.modules]\n"
        "assert not loaded, loaded\n"
        "assert mixcore.cuda_available() in (True, False)\n"
    )
    assert run(code) == ("", "")


def test_public_names():
    code = (
        "import mixcore\n"
        "missing = [n for n in mixcore.__all__ if not hasattr(mixcore, n)]\n"
        "assert not missing, missing\n"
        "assert mixcore.__all__ == sorted(mixcore.__all__)\n"
    )
    assert run(code) == ("", "")
