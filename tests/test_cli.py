"""The command line: its numbers against counting by hand, its refusals in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import mixcore
from mixcore.cli import bench, main, plan
from mixcore.config import load_config
from mixcore.errors import ArgumentError
from mixcore.segment import segments

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "mix.yaml")
MIX = """\
domains:
  - {name: web, size: 3000, weight: 6}
  - {name: code, size: 400, weight: 3, max_epochs: 3}
  - {name: "[red]math[/red]", size: 90, weight: 1, max_epochs: 20}
  - {name: tiny, size: 10, weight: 1e-7}
batch_size: 64
train_samples: 6_400
tokens_per_sample: 16
seed: 5
"""


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def refused(*args: str) -> str:
    """The one line on stderr of a mistake."""
    result = run(*args, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("mixcore: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("mixcore: error: ").rstrip("\n")


def facts_of(*args: str) -> dict:
    result = run(*args, "--json")
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture
def mix(tmp_path):
    """Write MIX, changed, and return the file's name."""

    def write(*changes: tuple[str, str], add: str = "") -> str:
        text = MIX
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "mix.yaml").write_text(text + add)
        return str(tmp_path / "mix.yaml")

    return write


@pytest.fixture
def saved(tmp_path):
    """A ledger of two decisions and its file."""
    domains = [mixcore.Domain("web", 10**6), mixcore.Domain("code", 5000, max_epochs=2)]
    ledger = mixcore.Ledger(domains, [0.7, 0.3], batch_size=512, seed=3)
    ledger.append(25_000, [0.5, 0.5], reason="step 49 of odm", author="odm")
    file = tmp_path / "ledger.json"
    ledger.save(file)
    return ledger, str(file)


# plan --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["balanced", "random", "megatron"])
def test_plan_against_counting_every_sample(mix, order, monkeypatch):
    monkeypatch.setattr(plan, "LEAF", 1)
    monkeypatch.setattr(plan, "CHUNK", 1000)
    drop = [(", max_epochs: 3", ""), (", max_epochs: 20", "")] if order == "megatron" else []
    file = mix(*drop, add=f"order: {order}\nschedule: [[3200, [5, 3, 2, 1e-7], 128]]\n")
    facts = facts_of("plan", file)
    ledger = load_config(file).ledger()
    p = mixcore.Sampler(ledger).picks(0, 6400)
    assert (facts["samples"], facts["train_samples"], facts["steps"]) == (6400, 6400, 75)
    assert facts["tokens"] == 6400 * 16
    assert facts["order"] == order
    for i, (d, got) in enumerate(zip(ledger.domains, facts["domains"], strict=True)):
        where = np.flatnonzero(p.domain == i)
        assert (got["name"], got["size"], got["cap"]) == (d.name, d.size, d.cap)
        assert got["samples"] == len(where)
        assert got["tokens"] == 16 * len(where)
        assert got["achieved"] == len(where) / 6400
        assert got["epochs"] == len(where) / d.size
        end = got["first_epoch_ends"]
        assert (end is not None) == (len(where) >= d.size)
        if end is not None:
            assert end["position"] == where[p.epoch[where] == 0].max()
        cap = got["cap_reached"]
        assert (cap is not None) == (d.cap == len(where))
        if cap is not None:
            assert where[-1] < cap["position"] <= where[-1] + 128
        for moment in (end, cap):
            if moment:
                assert moment["step"] == ledger.step_of_position(moment["position"])
    if order != "megatron":
        assert facts["domains"][2]["cap_reached"] is None
        assert facts["domains"][1]["cap_reached"] is not None
    assert (facts["deviation_bound"] is None) == (order != "balanced")


def test_plan_finds_first_epochs_where_they_are_far_apart(mix):
    file = mix(("size: 3000", "size: 10_000_000"), ("6_400", "1e9"), ("weight: 1e-7", "weight: 1"))
    ledger = load_config(file).ledger()
    sampler = mixcore.Sampler(ledger)
    facts = facts_of("plan", file)
    for i, (d, got) in enumerate(zip(ledger.domains, facts["domains"], strict=True)):
        position = got["first_epoch_ends"]["position"]
        p = sampler.at(range(position // 64 * 64, position // 64 * 64 + 64))
        mine = np.flatnonzero((p.domain == i) & (p.epoch == 0))
        assert mine[-1] == position % 64
        assert p.draw[mine].max() == d.size - 1


def test_plan_segments(mix):
    file = mix(add="schedule: [[3200, [5, 3, 2, 1e-7], 128]]\n")
    ledger = load_config(file).ledger()
    facts = facts_of("plan", file)
    shown = facts["segments"]
    assert facts["num_segments"] == len(shown) == len(list(segments(ledger, 6400)))
    assert [s["start"] for s in shown] == [0, *(s["end"] for s in shown[:-1])]
    assert shown[-1]["end"] == 6400
    assert {s["kind"] for s in shown} == {"piece", "cap", "redistributed"}
    assert shown[0]["weights"]["web"] == pytest.approx(6 / (10 + 1e-7))
    assert facts["deviation_bound"] == max(s["bound"] for s in shown)
    few = facts_of("plan", file, "--segments", "1")
    assert (few["num_segments"], few["segments"]) == (len(shown), shown[:1])
    assert f"the first 1; {len(shown) - 1} more" in run("plan", file, "--segments", "1").stdout
    assert "Segments" not in run("plan", file, "--segments", "0").stdout


def test_plan_table(mix):
    out = run("plan", mix()).stdout
    assert "100 steps, 6,400 samples, 102,400 tokens" in out
    row = next(line for line in out.splitlines() if "code" in line and "3.000" in line)
    assert "1,200" in row
    assert "19,200" in row
    assert "cap: step " in row
    assert "[red]math[/red]" in out  # a name is no markup
    assert "epoch 1: step " in next(line for line in out.splitlines() if "[red]math" in line)


def test_plan_notes(mix):
    file = mix(("code, size: 400, weight: 3", "code, size: 400, weight: 0"), ("6_400", "6_450"))
    facts = facts_of("plan", file)
    assert (facts["train_samples"], facts["samples"], facts["steps"]) == (6450, 6400, 100)
    one, two, three, four = facts["notes"]
    assert one.startswith("batch_size does not divide train_samples: the last 50 samples")
    assert two == "no sample, because the weight is 0 throughout: code"
    assert three.startswith("no sample, because the weight is too small for this length: tiny (9")
    epochs = facts["domains"][2]["epochs"]
    assert four.startswith("more than 4 epochs; ")
    assert four.endswith(f": [red]math[/red] ({epochs:.1f})")
    assert f"note: {two}" in run("plan", file).stdout
    late = facts_of("plan", mix(add="schedule: [[9600, [1, 1, 1, 1]]]\n"))["notes"]
    assert "the schedule goes on to position 9,600, where the run has ended" in late


def test_plan_train_samples_option_wins(mix):
    assert facts_of("plan", mix(), "--train-samples", "640")["steps"] == 10
    file = mix(("train_samples: 6_400\n", ""))
    assert refused("plan", file).startswith("train_samples is neither in ")
    assert facts_of("plan", file, "--train-samples", "640")["samples"] == 640


@pytest.mark.parametrize("order", ["balanced", "random"])
@pytest.mark.parametrize("on_cap", ["stop", "error"])
def test_plan_refuses_a_run_that_ends_early(mix, order, on_cap):
    file = mix(add=f"order: {order}\non_cap: {on_cap}\n")
    position, name = load_config(file).ledger().end(10**6)
    assert name == "code"
    step = position // 64
    assert refused("plan", file) == (
        f"the run would end at step {step} (position {position}), before train_samples (6400): "
        f"domain 'code' reaches its cap of 1,200 samples (on_cap: {on_cap})"
    )
    assert facts_of("plan", file, "--train-samples", str(position))["steps"] == step
    assert refused("plan", file, "--train-samples", str(position + 64))


@pytest.mark.parametrize("order", ["balanced", "random"])
def test_plan_refuses_where_nothing_is_left(mix, order):
    capped = [("weight: 6", "weight: 6, max_epochs: 1"), ("1e-7", "1e-7, max_epochs: 1")]
    file = mix(*capped, ("6_400", "64_000"), add=f"order: {order}\n")
    message = refused("plan", file)
    assert message.startswith("the run would end at step ")
    assert message.endswith("(64000): every cap is reached (on_cap: redistribute)")


def test_plan_refuses_less_than_a_batch(mix):
    assert refused("plan", mix(), "--train-samples", "63") == (
        "train_samples must be at least batch_size (64), got 63"
    )


def test_plan_of_a_wrong_file_lists_every_problem(mix):
    file = mix(("seed: 5", "sede: 5"), ("batch_size: 64", "batch_size: 0"))
    result = run("plan", file, code=2)
    assert result.stderr.splitlines()[0] == f"mixcore: error: {file}: 2 problems:"
    assert len(result.stderr.splitlines()) == 3
    assert refused("plan", mix(("seed: 5", "seed: a"))).endswith(
        "mix.yaml: line 9: seed must be an integer, got 'a' (str)"
    )


def test_the_example():
    facts = facts_of("plan", EXAMPLE)
    assert sum(d["samples"] for d in facts["domains"]) == facts["samples"] == 9_999_872
    assert [d["epochs"] for d in facts["domains"]][1:] == [4.0, 8.0]


# explain -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, 48, 49, 53, 60])
def test_explain_against_the_sampler(saved, step):
    ledger, file = saved
    facts = facts_of("explain", file, "--step", str(step), "--limit", "1000")
    first = 512 * step
    p = mixcore.Sampler(ledger).picks(first, 512)
    assert (facts["step"], facts["position"], facts["batch_size"]) == (step, first, 512)
    names = ["web", "code"]
    assert facts["samples"] == [
        {
            "position": first + i,
            "domain": names[p.domain[i]],
            "draw": int(p.draw[i]),
            "epoch": int(p.epoch[i]),
            "sample": int(p.sample[i]),
        }
        for i in range(512)
    ]
    before = mixcore.Sampler(ledger).counts(first).tolist()
    for i, d in enumerate(facts["domains"]):
        assert (d["name"], d["before"]) == (names[i], before[i])
        assert d["in_step"] == int((p.domain == i).sum())
    assert facts["segment"]["start"] <= first
    number = 0 if step < 49 else 1
    assert facts["decision"] == {
        "number": number,
        "position": [0, 25_088][number],
        "author": ["", "odm"][number],
        "reason": ["start", "step 49 of odm"][number],
        "scheduled": False,
    }
    assert facts["asked"] is None


def test_explain_position(saved):
    ledger, file = saved
    facts = facts_of("explain", file, "--position", "1000", "--limit", "0")
    assert (facts["step"], facts["position"], facts["samples"]) == (1, 512, [])
    p = mixcore.Sampler(ledger).at([1000])
    assert facts["asked"]["position"] == 1000
    assert facts["asked"]["sample"] == int(p.sample[0])
    out = run("explain", file, "--position", "1000").stdout
    assert f"position 1,000: {facts['asked']['domain']}, sample {int(p.sample[0]):,}" in out


def test_explain_around_a_cap(saved):
    ledger, file = saved
    ((cap, name),) = ledger.cap_events(10**6)
    assert name == "code"
    at = facts_of("explain", file, "--position", str(cap - 1))
    after = facts_of("explain", file, "--position", str(cap))
    assert at["segment"]["kind"] == "cap"
    assert [d["used_up"] for d in at["domains"]] == [False, False]
    assert after["segment"] == {
        "start": cap,
        "end": None,
        "first_step": cap // 512,
        "kind": "redistributed",
        "bound": 0.0,
    }
    web, code = after["domains"]
    assert (web["in_step"], web["weight"]) == (512, 1.0)
    assert (code["in_step"], code["before"], code["used_up"]) == (0, 10_000, True)
    assert code["epoch"] is None
    out = run("explain", file, "--position", str(cap)).stdout
    assert "without the domains that are used up" in out
    assert "code (used up)" in out


def test_explain_text(saved):
    _, file = saved
    out = run("explain", file, "--step", "49").stdout
    assert "step 49: positions 25,088 to 25,599 (512 samples)" in out
    assert "decision 1, at position 25,088 by odm: step 49 of odm" in out
    assert "the first 8 of 512" in out


def test_explain_a_schedule(tmp_path):
    ledger = mixcore.Ledger(
        [mixcore.Domain("a", 10**6), mixcore.Domain("b", 10**6)],
        [1, 1],
        batch_size=10,
        schedule=[(500, [3, 1], 20), (1000, None, 40)],
        order="random",
    )
    ledger.save(tmp_path / "l")
    before = facts_of("explain", str(tmp_path / "l"), "--step", "49")
    after = facts_of("explain", str(tmp_path / "l"), "--step", "50")
    last = facts_of("explain", str(tmp_path / "l"), "--position", "1039")
    assert [f["decision"]["scheduled"] for f in (before, after, last)] == [False, True, True]
    assert [f["batch_size"] for f in (before, after, last)] == [10, 20, 40]
    assert [d["weight"] for d in after["domains"]] == [0.75, 0.25]
    assert last["position"] == 1000
    assert after["segment"]["bound"] is None
    out = run("explain", str(tmp_path / "l"), "--step", "50").stdout
    assert "its schedule: start" in out


def test_explain_a_batch_size(tmp_path):
    ledger = mixcore.Ledger([mixcore.Domain("a", 100)], [1], batch_size=10)
    ledger.append(100, batch_size=25, reason="ramp-up")
    ledger.save(tmp_path / "l")
    facts = facts_of("explain", str(tmp_path / "l"), "--step", "11")
    assert (facts["position"], facts["batch_size"]) == (125, 25)
    assert facts["decision"]["reason"] == "ramp-up"
    assert not facts["decision"]["scheduled"]


def test_explain_before_a_domain_was_added(tmp_path):
    ledger = mixcore.Ledger([mixcore.Domain("a", 100)], [1], batch_size=10)
    ledger.append(100, {"a": 1, "b": 1}, add=[mixcore.Domain("b", None)])
    ledger.save(tmp_path / "l")
    names = [
        [d["name"] for d in facts_of("explain", str(tmp_path / "l"), "--step", step)["domains"]]
        for step in ("9", "10")
    ]
    assert names == [["a"], ["a", "b"]]


def test_explain_refuses(saved, tmp_path):
    _, file = saved
    assert refused("explain", file) == "give --step or --position, got step=None, position=None"
    assert "got step=1, position=2" in refused("explain", file, "--step", "1", "--position", "2")
    assert "Invalid value for '--step'" in refused("explain", file, "--step", "-1")
    assert "position of the step" in refused("explain", file, "--step", str(10**14))
    assert "is no ledger of mixcore: line 1" in refused("explain", EXAMPLE, "--step", "0")
    data = Path(file).read_bytes().replace(b"step 49", b"step 48")
    (tmp_path / "edited").write_bytes(data)
    assert "line 3 is damaged: it was changed" in refused(
        "explain", str(tmp_path / "edited"), "--step", "0"
    )
    stopped = mixcore.Ledger(
        [mixcore.Domain("a", 100, 1)], [1], batch_size=10, on_cap="stop", seed=1
    )
    stopped.save(tmp_path / "stopped")
    assert facts_of("explain", str(tmp_path / "stopped"), "--step", "9")["step"] == 9
    assert "100" in refused("explain", str(tmp_path / "stopped"), "--step", "10")


def test_an_incomplete_last_line_is_a_warning(saved):
    _, file = saved
    Path(file).write_bytes(Path(file).read_bytes()[:-20])
    result = run("explain", file, "--step", "49", "--json")
    assert result.stderr.startswith(f"mixcore: warning: {file}: the last line (")
    assert result.stderr.count("\n") == 1
    assert json.loads(result.stdout)["decision"]["number"] == 0


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
def test_errors_of_a_command_are_one_line(monkeypatch, error, mix):
    def raises(_):
        raise error

    monkeypatch.setattr(plan, "load_config", raises)
    assert refused("plan", mix()) == str(error)


def test_a_defect_is_not_taken_for_a_mistake(monkeypatch, mix):
    def raises(_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(plan, "load_config", raises)
    result = CliRunner().invoke(main, ["plan", mix()])
    assert isinstance(result.exception, ZeroDivisionError)


def module(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "mixcore.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def test_a_real_process(mix, tmp_path):
    done = module("plan", mix(), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["steps"] == 100
    table = module("plan", mix())
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.isascii()
    bad = module("plan", str(tmp_path / "none"))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("mixcore: error: Invalid value for 'MIX_YAML'")
    assert bad.stderr.count("\n") == 1
