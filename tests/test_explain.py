"""`mixcore explain`: what it says of a step against the sampler, its refusals in one line."""

import json
from pathlib import Path

import pytest
from command_line import EXAMPLE, facts_of, refused, run

import mixcore


@pytest.fixture
def saved(tmp_path):
    """A ledger of two decisions and its file."""
    domains = [mixcore.Domain("web", 10**6), mixcore.Domain("code", 5000, max_epochs=2)]
    ledger = mixcore.Ledger(domains, [0.7, 0.3], batch_size=512, seed=3)
    ledger.append(25_000, [0.5, 0.5], reason="step 49 of odm", author="odm")
    file = tmp_path / "ledger.json"
    ledger.save(file)
    return ledger, str(file)


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
