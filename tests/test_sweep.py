"""`mixcore sweep`: draws by their properties, runs that are killed, tables, schedulers."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from command_line import facts_of, refused, run

from mixcore.config import load_config
from mixcore.errors import MixcoreError
from mixcore.sweep import DRAWS, Sweep, collect, draw, plan_sweep, run_local
from mixcore.sweep.local import run_one, run_ray, slurm_script

MIX = """\
batch_size: 8
train_samples: 800
tokens_per_sample: 4
domains:
  - {name: web, size: 600, weight: 6}
  - {name: "a, b", size: 300, weight: 3, max_epochs: 2}
  - name: math
    weight: 1
    domains: [{name: x, size: 30}, {name: y, size: 10}]
"""
PRIOR = np.array([0.6, 0.3, 0.1])

# A proxy "training": the loss of a known law of the mixture.
PROXY = """\
import json, os, sys, time
from mixcore.config import load_config
w = load_config(sys.argv[1]).weights
time.sleep(float(os.environ.get("PAUSE", 0)))
found = {"loss": {"val": 2 + (w[0] - 0.5) ** 2}, "tokens": 100, "params": 7}
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.fixture
def mix(tmp_path):
    (tmp_path / "mix.yaml").write_text(MIX)
    (tmp_path / "proxy.py").write_text(PROXY)
    return tmp_path / "mix.yaml"


def command(tmp_path, script="proxy.py"):
    return f"{sys.executable} {tmp_path / script} {{mix}} {{result}}"


def planned(mix, template, runs=4, name="sweep", **options):
    rows = draw("dirichlet", PRIOR, runs, strength=20.0)
    return plan_sweep(mix.parent / name, load_config(mix), rows, template, **options)


@pytest.mark.parametrize("kind", list(DRAWS))
def test_rows_are_on_the_simplex_and_repeat_with_the_seed(kind):
    rows = draw(kind, PRIOR, seed=5)
    assert rows.shape == ({"factor": 7, "one_hot": 3}.get(kind, 12), 3)
    assert (rows >= 0).all()
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(rows, draw(kind, PRIOR, seed=5))
    if kind not in ("factor", "one_hot"):
        assert (rows != draw(kind, PRIOR, seed=6)).any()


def test_factor_and_one_hot_by_hand():
    rows = draw("factor", [0.5, 0.5], by=3.0)
    np.testing.assert_allclose(rows[:, 0], [0.5, 0.75, 0.25, 0.25, 0.75])
    np.testing.assert_allclose(draw("one_hot", [3, 1], smooth=0.2), [[0.95, 0.05], [0.15, 0.85]])


def test_dirichlet_has_its_mean_and_spread():
    rows = draw("dirichlet", PRIOR, 20_000, strength=9.0)
    np.testing.assert_allclose(rows.mean(axis=0), PRIOR, atol=0.01)
    np.testing.assert_allclose(rows.var(axis=0), PRIOR * (1 - PRIOR) / 10, rtol=0.1)
    assert (draw("dirichlet", [1, 0, 1], 50)[:, 1] == 0).all()
    rows = draw("dirichlet", PRIOR, 500, strength=2.0, least=0.05)
    assert rows[rows > 0].min() >= 0.05


def test_latin_hypercube_is_even_on_the_simplex():
    rows = draw("latin", [1, 1, 1, 1], 4000)
    np.testing.assert_allclose(rows.mean(axis=0), 0.25, atol=0.005)
    # Uniform on the simplex: P(w < t) = 1 - (1 - t)^3.
    for t in (0.1, 0.3, 0.6):
        assert (rows < t).mean() == pytest.approx(1 - (1 - t) ** 3, abs=0.02)


def test_regmix_keeps_its_bound_and_its_grid():
    prior = np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    rows = draw("regmix", prior, 200)
    assert (rows <= 15 * prior * 1.01).all()
    assert (rows[:, 4] > 0.05).any()  # the tempered prior does reach the small ones
    assert ((rows == 0) | (rows >= 1.9e-4)).all()
    assert len(np.unique(rows, axis=0)) == 200
    with pytest.raises(ValueError, match="different mixtures within bound=1 "):
        draw("regmix", prior, 20, bound=1)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("nope", PRIOR), {}, "draw must be one of"),
        (("latin", [[1, 2]]), {}, "one number a domain"),
        (("latin", [1, -1]), {}, "prior must be finite, >= 0"),
        (("latin", [0, 0]), {}, "not all zero"),
        (("latin", PRIOR, 0), {}, "runs must be in"),
        (("factor", PRIOR, 3), {}, "runs must be 2 x domains"),
        (("one_hot", PRIOR, 4), {}, "runs must be the number of domains"),
        (("factor", PRIOR), {"by": 1}, "by must be in"),
        (("dirichlet", PRIOR), {"strenght": 3}, "unexpected keyword argument 'strenght'"),
        (("dirichlet", PRIOR), {"strength": 0}, "strength must be in"),
    ],
)
def test_bad_draws(arguments, options, said):
    with pytest.raises(ValueError, match=said):
        draw(*arguments, **options)


def test_plan_run_collect(mix, tmp_path):
    out = str(tmp_path / "sweep")
    facts = facts_of("sweep", "plan", str(mix), "-o", out, "--draw", "dirichlet", "--runs", "5",
                     "--option", "strength=20", "--command", command(tmp_path))  # fmt: skip
    assert facts == {"folder": out, "runs": 5, "domains": 3, "draw": "dirichlet"}
    sweep = Sweep.load(out)
    assert sweep.domains == ("web", "a, b", "math")
    config = load_config(sweep.path("0") / "mix.yaml")
    assert [d.name for d in config.domains] == ["web", "a, b", "math/x", "math/y"]
    w = sweep.weights[0]
    assert config.weights == pytest.approx([w[0], w[1], w[2] * 0.75, w[2] * 0.25], rel=1e-15)
    assert config.domains[1].cap == 600
    assert "5 of 5 runs are done" in run("sweep", "run", out, "--jobs", "2").stdout
    table = str(tmp_path / "runs.csv")
    assert facts_of("sweep", "collect", out, "-o", table) == {
        "file": table,
        "rows": 5,
        "missing": [],
    }
    with open(table) as f:
        rows = list(csv.DictReader(f))
    for i, row in enumerate(rows):
        mixture = [float(row[f"mix/{d}"]) for d in sweep.domains]
        assert mixture == sweep.weights[i].tolist()  # to the last bit
        assert (
            float(row["loss/val"])
            == 2 + (load_config(sweep.path(row["run"]) / "mix.yaml").weights[0] - 0.5) ** 2
        )
        assert (row["tokens"], row["params"], row["seed"]) == ("100", "7", "0")


def test_seeds_and_partial_tables(mix, tmp_path):
    sweep = planned(mix, command(tmp_path), runs=2, seeds=[3, 4])
    assert sweep.seeds == (3, 4, 3, 4)
    np.testing.assert_array_equal(sweep.weights[0], sweep.weights[1])
    assert load_config(sweep.path("1") / "mix.yaml").seed == 4
    assert run_one(sweep, "2")
    assert collect(sweep, tmp_path / "r.csv") == (1, ["0", "1", "3"])


def test_a_failed_run_is_told_and_the_others_are_done(mix, tmp_path):
    (tmp_path / "some.py").write_text(
        "import os, sys\nprint('oh')\nif os.environ['MIXCORE_RUN'] == '1': sys.exit(3)\n" + PROXY
    )
    sweep = planned(mix, command(tmp_path, "some.py"))
    said = run("sweep", "run", str(sweep.folder), code=2)
    assert "3 of 4 runs are done" in said.stdout
    assert "run 1: the command ended with 3; its output is in" in said.stderr
    assert (sweep.path("1") / "log.txt").read_text() == "oh\n"
    (tmp_path / "some.py").write_text(PROXY)
    assert run_local(sweep) == []  # only what is missing
    assert (sweep.path("0") / "log.txt").read_text() == "oh\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ('{"loss": {}}', "must be {"),
        ('{"loss": {"val": NaN}}', "loss.val must be a finite number, got nan"),
        ('{"loss": {"val": true}}', "loss.val must be a finite number, got True"),
        ('{"loss": {"val": 1}, "acc": 3}', "unknown keys ['acc']"),
        (None, "no result"),
    ],
)
def test_what_is_no_result(mix, tmp_path, text, said):
    write = "true {mix}" if text is None else f"cp {tmp_path / 'text'} {{result}} # {{mix}}"
    (tmp_path / "text").write_text(text or "")
    sweep = planned(mix, write, runs=1)
    (failed,) = run_local(sweep)
    assert said in failed
    assert sweep.missing() == ["0"]
    with pytest.raises(MixcoreError, match="no run is done"):
        collect(sweep, tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_sigkill_loses_at_most_the_runs_in_flight(mix, tmp_path, jobs):
    sweep = planned(mix, command(tmp_path), runs=6)
    arguments = [sys.executable, "-m", "mixcore.cli", "sweep", "run", str(sweep.folder)]
    process = subprocess.Popen(
        [*arguments, "--jobs", str(jobs)],
        env={**os.environ, "PAUSE": "0.4"},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while len(sweep.missing()) > 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    done = [r for r in sweep.runs if r not in sweep.missing()]
    assert 2 <= len(done) < 6
    before = {r: (sweep.path(r) / "result.json").stat().st_mtime_ns for r in done}
    started = [r for r in sweep.runs if (sweep.path(r) / "log.txt").exists()]
    assert len(started) - len(done) <= jobs
    subprocess.run(arguments, check=True, timeout=120, capture_output=True)
    assert sweep.missing() == []
    assert before == {r: (sweep.path(r) / "result.json").stat().st_mtime_ns for r in done}


def test_what_a_killed_sweep_has_started_dies_with_it(mix, tmp_path):
    sweep = planned(mix, "echo {mix}; sleep 300")
    arguments = [sys.executable, "-m", "mixcore.cli", "sweep", "run", str(sweep.folder)]
    process = subprocess.Popen([*arguments, "--jobs", "2"])
    deadline = time.monotonic() + 60
    log = sweep.path("0") / "log.txt"
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    while time.monotonic() < deadline:
        left = subprocess.run(["pgrep", "-f", str(sweep.folder)], capture_output=True, text=True)
        if not left.stdout:
            break
        time.sleep(0.05)
    assert left.stdout == ""


def test_two_sweeps_at_once_share_the_work(mix, tmp_path):
    sweep = planned(mix, f"echo x >> {tmp_path}/count; " + command(tmp_path), runs=6)
    arguments = [sys.executable, "-m", "mixcore.cli", "sweep", "run", str(sweep.folder)]
    both = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    assert sweep.missing() == []
    assert (tmp_path / "count").read_text().count("x") == 6


def test_values_are_quoted_for_the_shell(mix, tmp_path):
    sweep = planned(mix, "printf '%s' {dir} > {dir}/out; cat {mix}", name="it's; a $(folder)")
    run_local(sweep)
    assert (sweep.path("0") / "out").read_text() == str(sweep.path("0"))


def test_slurm_script_does_every_run(mix, tmp_path):
    sweep = planned(mix, command(tmp_path))
    script = tmp_path / "array.sh"
    run("sweep", "run", str(sweep.folder), "--slurm", str(script), "--sbatch", "--time=1:00:00")
    text = script.read_text()
    assert text == slurm_script(sweep, options=["--time=1:00:00"])
    assert "#SBATCH --array=0-3\n" in text
    assert "#SBATCH --time=1:00:00\n" in text
    assert sweep.missing() == ["0", "1", "2", "3"]
    for task in range(4):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(
            ["bash", str(script)], env=environment, check=True, timeout=60, capture_output=True
        )
    assert sweep.missing() == []
    assert "--array=0-3%2" in slurm_script(sweep, jobs=2)


def test_ray_through_a_stub(mix, tmp_path, monkeypatch):
    """The stub has the public names that are used, with Ray's shapes; Ray itself is not run."""
    sweep = planned(mix, command(tmp_path))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(MixcoreError, match=r"pip install 'mixcore\[ray\]'"):
            run_ray(sweep)
    calls = []

    def remote(**resources):
        calls.append(resources)
        return lambda f: types.SimpleNamespace(remote=lambda *args: f(*args))

    stub = types.SimpleNamespace(
        is_initialized=lambda: False, init=lambda: calls.append("init"), remote=remote, get=list
    )
    monkeypatch.setitem(sys.modules, "ray", stub)
    assert run_ray(sweep, gpus=1) == []
    assert calls == ["init", {"num_cpus": 1, "num_gpus": 1}]
    assert sweep.missing() == []


def test_bad_input(mix, tmp_path):
    base = ("sweep", "plan", str(mix), "-o", str(tmp_path / "s"))
    assert "command must have {mix} or {dir}" in refused(*base, "--command", "train")
    assert "--option must be NAME=VALUE, got 'strength'" in refused(
        *base, "--command", "x {mix}", "--option", "strength"
    )
    assert "--seeds must be integers" in refused(*base, "--command", "x {mix}", "--seeds", "a")
    assert not (tmp_path / "s").exists()
    assert "no sweep there" in refused("sweep", "run", str(tmp_path))
    sweep = planned(mix, "x {mix}")
    assert "has a sweep already" in refused(
        *base[:3], "-o", str(sweep.folder), "--command", "x {mix}"
    )
    assert "--index must be below 4, the runs, got 4" in refused(
        "sweep", "run", str(sweep.folder), "--index", "4"
    )
    (sweep.folder / "sweep.json").write_text(json.dumps({"format": "mixcore.sweep/2"}))
    assert "format must be 'mixcore.sweep/1'" in refused("sweep", "run", str(sweep.folder))
    with pytest.raises(ValueError, match="one column a domain"):
        plan_sweep(tmp_path / "t", load_config(mix), np.ones((2, 2)), "x {mix}")


def test_different_outcomes_are_refused(mix, tmp_path):
    sweep = planned(mix, "x {mix}", runs=2)
    (sweep.path("0") / "result.json").write_text('{"loss": {"a": 1.0}}')
    (sweep.path("1") / "result.json").write_text('{"loss": {"b": 1.0}}')
    with pytest.raises(MixcoreError, match="do not have the same outcomes: loss/a, loss/b"):
        collect(sweep, tmp_path / "r.csv")
