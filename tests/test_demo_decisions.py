"""The proof of a steered demo must be able to fail: its decisions in logs and ledger, damaged."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import mixcore
from mixcore.resume import drop_later

pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "demo"))

import proof

BATCH, STEPS, EVERY, LAG, RESUMED, KILLED = 8, 60, 4, 3, 20, 32
SIZES = {"python": 100, "licence": 17, "web": 40}
EQUAL, TIME, CARRIED, RECORD = (
    "decisions equal on all ranks",
    "decisions in force as declared",
    "decisions carried over",
    "ledger's record = log",
)
SHARES = "achieved shares = decided"


def in_words(decision):
    return {
        "at": decision.position,
        "weights": [share / 2**62 for share in decision.shares.tolist()],
        "shares": decision.shares.tolist(),
        "replace_future": decision.replace_future,
        "reason": decision.reason,
        "author": decision.author,
    }


def step_line(ledger, step, rank, world):
    size = BATCH // world
    picks = mixcore.Sampler(ledger).picks(step * BATCH + rank * size, size)
    line = {"kind": "step", "step": step}
    line["position"] = list(range(step * BATCH + rank * size, step * BATCH + (rank + 1) * size))
    for name in ("domain", "draw", "epoch", "sample"):
        line[name] = getattr(picks, name).tolist()
    line["crc"] = [1000 * d + s for d, s in zip(line["domain"], line["sample"], strict=True)]
    line["tokens"] = [64 * line["domain"].count(d) for d in range(len(SIZES))]
    line["loss_sum"] = [2.5 * t for t in line["tokens"]]
    return line


def said(step):
    """What the method says after a step: far from equal weights, another each time."""
    return [1.0, 1.0, 2.0 + step / 10]


def make_run(folder, second=said, obeyed=True):
    """Write a run: two ranks killed in step 32, then one rank from step 20. `second`: after it."""
    domains = [mixcore.Domain(name, size) for name, size in SIZES.items()]
    ledger = mixcore.Ledger(domains, [1, 1, 1], batch_size=BATCH, seed=3)
    source = ledger if obeyed else mixcore.Ledger(domains, [1, 1, 1], batch_size=BATCH, seed=3)
    files, checkpoint = {}, None
    for attempt, world, first, end, says in (
        (1, 2, 0, KILLED, said),
        (2, 1, RESUMED, STEPS, second),
    ):
        if attempt == 2:
            drop_later(ledger, *checkpoint, RESUMED)
        logs = []
        for rank in range(world):
            logs.append([{
                "kind": "start", "attempt": attempt, "rank": rank, "world": world, "step": first,
                "steps": STEPS, "batch_size": BATCH, "every": 1, "method": "odm",
                "anchors": [[0, [1 / 3] * 3]], "update_every": EVERY, "lag_steps": LAG,
                "domains": [{"name": name, "size": size} for name, size in SIZES.items()],
                "decisions": [in_words(d) for d in ledger.decisions[1:]],
            }])  # fmt: skip
            files[f"attempt-{attempt}-rank-{rank}.jsonl"] = logs[rank]
        for step in range(first, end):
            for rank, lines in enumerate(logs):
                lines.append(step_line(source, step, rank, world))
            done = step + 1
            if done % EVERY:
                continue
            line = {"kind": "kept", "step": done}
            if done + LAG < STEPS:
                ledger.append((done + LAG) * BATCH, says(done), reason=f"at {done}", author="odm")
                line = {"kind": "decision", "step": done, **in_words(ledger.decisions[-1])}
            for lines in logs:
                lines.append(dict(line))
            if done == RESUMED:
                checkpoint = (len(ledger.decisions), ledger.digest)
    folder.mkdir(exist_ok=True)
    (folder / "ledger.json").unlink(missing_ok=True)
    ledger.save(folder / "ledger.json")
    return files


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def prove(tmp_path, capsys):
    """Write the logs, run the proof; return the names of the checks that failed, and its words."""

    def write_and_prove(files):
        (tmp_path / "log").mkdir(exist_ok=True)
        for name, lines in files.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / "log" / name).write_text(text)
        ok = proof.prove(tmp_path / "log", proof.Console(width=300))
        out = capsys.readouterr().out
        failed = {x[6:].split(":")[0] for x in out.splitlines() if x.startswith("FAIL")}
        assert ok is not bool(failed)
        return failed, out

    return write_and_prove


def update(files, attempt, rank, step):
    lines = files[f"attempt-{attempt}-rank-{rank}.jsonl"]
    (line,) = (x for x in lines if x["kind"] in ("decision", "kept") and x["step"] == step)
    return line


def drop(files, attempt, rank, step):
    files[f"attempt-{attempt}-rank-{rank}.jsonl"].remove(update(files, attempt, rank, step))


def test_whole_run_passes(run, prove):
    failed, out = prove(run)
    assert not failed
    assert out.count("PASS") == 11
    assert "3 lost with a kill, undone on the record, 3 of them made anew alike" in out
    assert f"{(KILLED - RESUMED) * BATCH} positions trained on before and after" in out
    # 8 before the kill, the one that undoes, 9 after it (24 ... 56); after step 60 nothing changes.
    assert "18 decisions after the start" in out
    assert "18 decisions on the record, 14 came into force" in out


def test_decisions_made_anew_otherwise(tmp_path, prove):
    """Honest: positions under another decision are not compared, and the proof says how many."""
    failed, out = prove(make_run(tmp_path, second=lambda step: [3.0, 1.0, 1.0 + step / 10]))
    assert not failed
    same = LAG + EVERY  # from step 20 to the effect of what was decided after step 24
    assert f"{same * BATCH} positions trained on before and after" in out
    assert f"{(KILLED - RESUMED - same) * BATCH} after a decision that came out otherwise" in out
    assert "3 lost with a kill, undone on the record, 0 of them" in out


def test_samples_that_ignore_the_decisions(tmp_path, prove):
    assert prove(make_run(tmp_path, obeyed=False))[0] == {SHARES}


def test_replay_that_differs_under_the_same_decisions(run, prove):
    lines = [x for x in run["attempt-1-rank-1.jsonl"] if x["kind"] == "step"]
    lines[-1]["crc"][0] += 1
    assert "replayed = trained before" in prove(run)[0]


def test_ranks_that_disagree(run, prove):
    line = update(run, 1, 1, 12)
    line["shares"] = line["shares"][::-1]
    failed, out = prove(run)
    assert failed == {EQUAL}
    assert "attempt 1 rank 1 differs after step 12" in out


def test_decision_that_one_rank_missed(run, prove):
    drop(run, 1, 1, 12)
    assert prove(run)[0] == {EQUAL}


@pytest.mark.parametrize("step", [12, 28])
def test_decision_that_no_rank_logged(run, prove, step):
    drop(run, 1, 0, step)
    drop(run, 1, 1, step)
    assert {EQUAL, CARRIED} <= prove(run)[0]


def test_decision_that_the_last_attempt_did_not_log(run, prove):
    drop(run, 2, 0, 40)
    assert {EQUAL, RECORD} <= prove(run)[0]


def test_update_where_nothing_changed_is_missing(run, prove):
    drop(run, 2, 0, STEPS)
    assert prove(run)[0] == {EQUAL}


def test_update_that_was_not_due(run, prove):
    run["attempt-2-rank-0.jsonl"].append({"kind": "kept", "step": STEPS + 1})
    assert prove(run)[0] == {EQUAL}


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_last_decision_cut_off_by_the_kill(run, prove, ranks):
    """The ledger is written before the log: it may know one decision more."""
    for rank in ranks:
        drop(run, 1, rank, KILLED)
    assert not prove(run)[0]


@pytest.mark.parametrize("lines", [1, 3])
def test_attempt_killed_before_it_decided(run, prove, lines):
    second = run["attempt-2-rank-0.jsonl"]
    run["attempt-3-rank-0.jsonl"] = [{**second[0], "attempt": 3}, *second[1:]]
    run["attempt-2-rank-0.jsonl"] = second[:lines]
    failed, out = prove(run)
    assert not failed
    assert out.count("PASS") == 11


def test_first_attempt_that_found_decisions(run, prove):
    for rank in (0, 1):
        run[f"attempt-1-rank-{rank}.jsonl"][0]["decisions"] = [update(run, 1, 0, 4)]
    assert CARRIED in prove(run)[0]


def test_decision_dated_too_early(run, prove):
    """Consistently in every log: only the declared lag tells."""
    before = update(run, 1, 0, 12)["at"]
    for lines in run.values():
        for line in (*lines, *lines[0]["decisions"]):
            if line.get("at") == before:
                line["at"] -= BATCH
    failed, out = prove(run)
    assert failed == {TIME, RECORD}
    assert f"decision after step 12 in force at {before - BATCH}, not lag_steps={LAG} later" in out


def test_shares_that_are_no_whole(run, prove):
    update(run, 2, 0, 40)["shares"][0] += 1
    assert prove(run)[0] == {TIME, RECORD}


def test_weights_that_are_not_the_shares(run, prove):
    line = update(run, 2, 0, 40)
    line["weights"] = line["weights"][::-1]
    failed, out = prove(run)
    assert failed == {TIME, SHARES}
    assert "weights are not the shares" in out


def test_resumed_attempt_that_lost_a_decision(run, prove):
    del run["attempt-2-rank-0.jsonl"][0]["decisions"][2]
    assert {CARRIED, RECORD} <= prove(run)[0]


def test_decision_after_the_checkpoint_left_in_force(run, prove):
    start = run["attempt-2-rank-0.jsonl"][0]
    start["decisions"] = [d for d in start["decisions"] if d["author"] != "mixcore.controller"]
    failed, out = prove(run)
    assert failed == {CARRIED, RECORD}
    assert f"still in force at {(24 + LAG) * BATCH}" in out


def test_decisions_that_nobody_logged(run, prove):
    for rank in (0, 1):
        for step in (28, KILLED):
            drop(run, 1, rank, step)
    failed, out = prove(run)
    assert failed == {EQUAL, CARRIED}
    assert "attempt 2 has decisions that nobody logged" in out


def test_ledger_changed_afterwards(run, prove, tmp_path):
    path = tmp_path / "ledger.json"
    path.write_text(path.read_text().replace("at 12", "at 13"))
    failed, out = prove(run)
    assert failed == {RECORD}
    assert "was changed after it was written" in out


def test_ledger_that_lacks_the_last_decision(run, prove, tmp_path):
    path = tmp_path / "ledger.json"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    failed, out = prove(run)
    assert failed == {RECORD}
    assert "17 decisions there, 18 in the log: see no. 18" in out


def test_ledger_of_another_run(run, prove, tmp_path):
    other = mixcore.Ledger([mixcore.Domain("a", 1), mixcore.Domain("b", 1)], [1, 1], batch_size=8)
    (tmp_path / "ledger.json").write_bytes(other.to_bytes())
    assert prove(run)[0] == {RECORD}


@pytest.mark.parametrize("content", [None, b"", b"no ledger\n", b"[]\n[]\n", b'{"hash": 1}\n'])
def test_no_ledger(run, prove, tmp_path, content):
    (tmp_path / "ledger.json").unlink()
    if content is not None:
        (tmp_path / "ledger.json").write_bytes(content)
    assert prove(run)[0] == {RECORD}


def test_weights_of_the_start_are_the_plan(run, prove):
    for lines in run.values():
        lines[0]["anchors"] = [[0, list(np.array([2, 2, 3]) / 7)]]
    assert RECORD in prove(run)[0]
