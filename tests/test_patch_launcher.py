"""`python -m megatron_patch script.py ...`: a stub in place of Megatron, real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_patch

ROOT = Path(megatron_patch.__file__).parent.parent
SCRIPT = """
import json, sys
import neighbour
from megatron.core.datasets import builder
print(json.dumps({
    "argv": sys.argv, "path0": sys.path[0], "name": __name__, "file": __file__,
    "patched": hasattr(builder.build, "__megatron_patch__"), "value": builder.build(4),
}))
"""
# Runs before everything else in the process: one row for the stub in place of Megatron's own.
SITE = """
from megatron_patch import Row, Table, table
def twice(original):
    return lambda n: 2 * original(n)
row = Row("megatron.core.datasets.builder:build", twice, ("n",), "twice as much")
table.MEGATRON = Table("Megatron-LM", "megatron.core", table.MEGATRON.groups, (row,))
"""
FILES = {
    "site/sitecustomize.py": SITE,
    "site/megatron/core/__init__.py": "__version__ = '0.0.1'\n",
    "site/megatron/core/datasets/__init__.py": "",
    "site/megatron/core/datasets/builder.py": "def build(n):\n    return n\n",
    "run/neighbour.py": "",
    "run/train.py": SCRIPT,
}


@pytest.fixture
def place(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def launch(place, *args, module=("-m", "megatron_patch"), path=(), **env):
    paths = [*map(str, path), str(place / "site"), str(ROOT)]
    return subprocess.run(
        [sys.executable, *module, *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **env},
    )


def facts(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_flag_patches(place):
    for flag in (["--mix-config", "m.yaml"], ["--mix-config=m.yaml"]):
        done = launch(place, "run/train.py", "--lr", "1", *flag)
        found = facts(done)
        assert found["patched"]
        assert found["value"] == 8
        assert found["argv"] == ["run/train.py", "--lr", "1", *flag]
        assert "megatron.core.datasets.builder:build" in done.stderr
        assert "megatron.core 0.0.1" in done.stderr


def test_only_rank_0_prints_the_table(place):
    assert launch(place, "run/train.py", "--mix-config=m", RANK="1").stderr == ""


def test_without_a_flag_it_is_python(place):
    """The same output, whatever python would have set; nothing is patched."""
    args = ["run/train.py", "--data-path", "1", "mix", "--no-mix-config"]
    plain, ours = launch(place, *args, module=()), launch(place, *args)
    assert facts(ours) == facts(plain)
    assert facts(ours)["patched"] is False
    assert facts(ours)["path0"] == str(place / "run")
    assert ours.stderr == plain.stderr == ""


def test_script_behind_a_link(place):
    (place / "link.py").symlink_to(place / "run" / "train.py")
    assert facts(launch(place, "link.py")) == facts(launch(place, "link.py", module=()))


def test_safe_path(place):
    """With -P python puts no folder on the path; what is on it then must stay."""
    found = facts(
        launch(place, "run/train.py", module=("-P", "-m", "megatron_patch"), path=[place / "run"])
    )
    assert found["path0"] == str(place / "run")


def test_exit_code_and_traceback_are_the_scripts(place):
    (place / "run" / "fails.py").write_text("raise SystemExit(7)")
    assert launch(place, "run/fails.py").returncode == 7
    (place / "run" / "fails.py").write_text("raise KeyError('why')")
    done = launch(place, "run/fails.py", "--mix-config=m")
    assert done.returncode == 1
    assert "KeyError: 'why'" in done.stderr


@pytest.mark.parametrize("args", [(), ("--mix-config", "m.yaml"), ("absent.py", "--mix-config")])
def test_no_script(place, args):
    done = launch(place, *args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert ("absent.py" if args[:1] == ("absent.py",) else "no script given") in done.stderr


def test_a_megatron_that_does_not_fit_is_declined(place):
    (place / "site/megatron/core/datasets/builder.py").write_text("def build(m):\n    return m\n")
    done = launch(place, "run/train.py", "--mix-config=m")
    assert done.returncode == 2
    assert done.stdout == ""
    for part in ("builder:build", "(n)", "build(m)", "0.0.1", str(place / "site/megatron/core")):
        assert part in done.stderr
    assert done.stderr.count("\n") == 1
    assert facts(launch(place, "run/train.py"))["value"] == 4


def test_missing_megatron(place):
    (place / "site/megatron").rename(place / "site/elsewhere")
    done = launch(place, "run/train.py", "--mix-config=m")
    assert done.returncode == 2
    assert "no package megatron.core, megatron.training on the path" in done.stderr


@pytest.mark.parametrize("where", ["beside", "script"])
def test_foreign_package_of_the_same_name(place, where):
    """On the path behind ours, or in the folder of the script, that comes first once it runs."""
    root = place / ("other" if where == "beside" else "run")
    foreign = root / "megatron_patch" / "__init__.py"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("")
    site = [place / "site", ROOT, root] if where == "beside" else []
    done = launch(place, "run/train.py", "--mix-config=m", path=site)
    assert done.returncode == 2
    assert str(foreign) in done.stderr
    assert str(ROOT / "megatron_patch" / "__init__.py") in done.stderr
    assert done.stdout == ""
    assert facts(launch(place, "run/train.py", path=site))["patched"] is False


def test_foreign_package_in_the_program_and_a_folder_of_that_name(place):
    foreign = place / "other" / "megatron_patch" / "__init__.py"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("")
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import megatron_patch\n"
        "try:\n    megatron_patch.apply()\n"
        "except megatron_patch.PatchError as e:\n    print(e)\n"
    )
    (place / "run" / "own.py").write_text(code)
    done = launch(place, "run/own.py", str(place / "other"), module=())
    assert str(foreign) in done.stdout
    foreign.unlink()  # a folder that is no package hides nothing
    done = launch(place, "run/own.py", str(place / "other"), module=())
    assert (done.stdout, done.stderr) == ("", "")
    foreign.write_bytes((ROOT / "megatron_patch" / "__init__.py").read_bytes())  # ours, twice
    done = launch(place, "run/own.py", str(place / "other"), module=())
    assert (done.stdout, done.stderr) == ("", "")


def test_import_is_cheap(place):
    code = (
        "import sys, megatron_patch\n"
        "assert not {'torch', 'megatron', 'yaml', 'click', 'rich'} & set(sys.modules)\n"
    )
    done = launch(place, module=("-c", code))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
