"""The command line as a whole, and `mixcore bench`."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from command_line import EXAMPLE, facts_of, refused, run

import mixcore
from mixcore.cli import bench, main, plan
from mixcore.errors import ArgumentError

# bench -------------------------------------------------------------------------------------------


def test_bench_reports_every_measure():
    facts = facts_of("bench", "--positions", "2000", "--repeats", "3")
    rows = [(r["measure"], r["domains"]) for r in facts["rows"]]
    for wanted in [("picks", 32), ("picks", 256), ("picks", 2048), ("at", 22), ("at", 1000)]:
        assert wanted in rows
    assert ("append and first batch", 2048) in rows
    for r in facts["rows"]:
        assert 0 < r["least"] <= r["median"] <= r["most"]
        assert r["repeats"] == 3
    out = run("bench", "--positions", "2000", "--repeats", "1").stdout
    assert "numpy fill" in out


def test_bench_compares_with_the_greedy_builder(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        bench._core, "greedy_plain", lambda w, n: sizes.append((len(w), n)), raising=False
    )
    rows = bench.bulk(2048, 200_000, 2)
    assert [r.measure for r in rows] == ["picks", "numpy fill", "greedy, plain loop"]
    assert sizes == [(2048, 48_828)] * 3
    assert [r.count for r in rows] == [200_000, 200_000, 48_828]


def test_side_by_side_takes_turns():
    calls: list[str] = []
    taken = bench.side_by_side({n: (lambda n=n: calls.append(n)) for n in "ab"}, 2)
    assert calls == ["a", "b"] * 3  # the first turn is not measured
    assert [len(s) for s in taken.values()] == [2, 2]
    made = bench.row("x", 3, "ns", [3e-6, 1e-6, 2e-6], 1000)
    assert (made.median, made.least, made.most) == pytest.approx((2.0, 1.0, 3.0))


# All of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "explain", "bench"])
def test_help_has_an_example(command):
    out = run(command, "--help").stdout
    assert f"\n    mixcore {command} " in out
    assert "--json" in out


def test_the_group():
    out = run().stdout
    assert out == run("--help").stdout
    assert all(command in out for command in ("plan", "explain", "bench"))
    assert run("--version").stdout == f"mixcore, version {mixcore.__version__}\n"
    assert refused("plna").startswith("No such command 'plna'.")
    assert refused("plan") == "Missing argument 'MIX_YAML'."
    assert "'none.yaml' does not exist" in refused("plan", "none.yaml")


@pytest.mark.parametrize("error", [ArgumentError("x is wrong"), PermissionError(13, "Denied", "f")])
def test_errors_of_a_command_are_one_line(monkeypatch, error):
    def raises(_):
        raise error

    monkeypatch.setattr(plan, "load_config", raises)
    assert refused("plan", EXAMPLE) == str(error)


def test_a_defect_is_not_taken_for_a_mistake(monkeypatch):
    def raises(_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(plan, "load_config", raises)
    result = CliRunner().invoke(main, ["plan", EXAMPLE])
    assert isinstance(result.exception, ZeroDivisionError)


def module(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "mixcore.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def test_a_real_process(tmp_path):
    done = module("plan", EXAMPLE, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["steps"] == 19_531
    table = module("plan", EXAMPLE)
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.isascii()
    bad = module("plan", str(tmp_path / "none"))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("mixcore: error: Invalid value for 'MIX_YAML'")
    assert bad.stderr.count("\n") == 1
