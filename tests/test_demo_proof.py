"""The proof of the demo must be able to fail: logs of an invented run, whole and damaged."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "demo"))

import history
import proof

BATCH, STEPS, RESUMED, KILLED = 8, 60, 20, 27
SIZES = {"python": 100, "licence": 17, "web": 40}
ANCHORS = [[0, [0.5, 0.25, 0.25]], [40, [0.2, 0.5, 0.3]]]
LIVE = {"kind": "decision", "at": 50 * BATCH, "weights": [0.1, 0.1, 0.8], "reason": "a test"}
COLUMNS = ("position", "domain", "draw", "epoch", "sample", "crc")


def step_lines():
    """One line a step of an uninterrupted run, blended by a plain largest-debt rule."""
    rng = np.random.default_rng(7)
    ideal, counts = np.zeros(len(SIZES)), [0] * len(SIZES)
    shuffles = {}
    lines = []
    for step in range(STEPS):
        columns = np.array([weights for _, weights in ANCHORS]).T
        weights = [np.interp(step // 5 * 5, [at for at, _ in ANCHORS], w) for w in columns]
        if step * BATCH >= LIVE["at"]:
            weights = LIVE["weights"]
        line = {"kind": "step", "step": step, **{name: [] for name in COLUMNS}}
        for i in range(BATCH):
            ideal += np.asarray(weights) / np.sum(weights)
            domain = int(np.argmax(ideal - counts))
            draw, size = counts[domain], list(SIZES.values())[domain]
            counts[domain] += 1
            key = (domain, draw // size)
            if key not in shuffles:
                shuffles[key] = rng.permutation(size)
            sample = int(shuffles[key][draw % size])
            values = (step * BATCH + i, domain, draw, draw // size, sample, 1000 * domain + sample)
            for name, value in zip(COLUMNS, values, strict=True):
                line[name].append(value)
        lines.append(line)
    return lines


def part(line, rank, world):
    """One rank's slice of a step's line."""
    size = BATCH // world
    mine = {name: line[name][rank * size : (rank + 1) * size] for name in COLUMNS}
    tokens = [64 * mine["domain"].count(d) for d in range(len(SIZES))]
    return {**line, **mine, "tokens": tokens, "loss_sum": [2.5 * t for t in tokens]}


@pytest.fixture
def run():
    """The run as files: two ranks killed in step 27, then one rank from step 20."""
    lines, files = step_lines(), {}
    for attempt, world, first, end in ((1, 2, 0, KILLED), (2, 1, RESUMED, STEPS)):
        for rank in range(world):
            start = {
                "kind": "start", "attempt": attempt, "rank": rank, "world": world, "step": first,
                "steps": STEPS, "batch_size": BATCH, "anchors": ANCHORS, "every": 5,
                "domains": [{"name": name, "size": size} for name, size in SIZES.items()],
                "decisions": [],
            }  # fmt: skip
            name = f"attempt-{attempt}-rank-{rank}.jsonl"
            files[name] = [start, *(part(lines[s], rank, world) for s in range(first, end))]
    files["attempt-2-rank-0.jsonl"].append(LIVE)
    return files


@pytest.fixture
def prove(tmp_path, capsys):
    """Write the logs, run the proof; return the names of the checks that failed, and its words."""

    def write_and_prove(files):
        for name, lines in files.items():
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        ok = proof.prove(tmp_path, proof.Console(width=200))
        out = capsys.readouterr().out
        failed = {x[6:].split(":")[0] for x in out.splitlines() if x.startswith("FAIL")}
        assert ok is not bool(failed)
        return failed, out

    return write_and_prove


def edit(files, attempt, rank, step, change):
    """Apply `change` to one logged step."""
    lines = files[f"attempt-{attempt}-rank-{rank}.jsonl"]
    (line,) = (x for x in lines if x["kind"] == "step" and x["step"] == step)
    change(line)


def test_whole_run_passes(run, prove):
    failed, out = prove(run)
    assert not failed
    assert out.count("PASS") == 7
    assert f"{(KILLED - RESUMED) * BATCH} positions trained on before and after" in out


def test_lost_sample(run, prove):
    def drop(line):
        for name in COLUMNS:
            del line[name][2]

    edit(run, 2, 0, 33, drop)
    failed, out = prove(run)
    assert f"lost {33 * BATCH + 2} (1)" in out
    assert {"every position exactly once", "draws without gap or repeat"} <= failed


@pytest.mark.parametrize("lost", [41, STEPS - 1])
def test_lost_step(run, prove, lost):
    lines = run["attempt-2-rank-0.jsonl"]
    lines[:] = [x for x in lines if x["kind"] != "step" or x["step"] != lost]
    assert "every position exactly once" in prove(run)[0]


def test_rank_that_logged_nothing(run, prove):
    del run["attempt-1-rank-1.jsonl"][1:]
    assert {"every position exactly once", "slices of the ranks disjoint"} <= prove(run)[0]


def test_rank_without_a_log(run, prove):
    del run["attempt-1-rank-1.jsonl"]
    assert {"every position exactly once", "slices of the ranks disjoint"} <= prove(run)[0]


def test_repeated_position(run, prove):
    def repeat(line):
        for name in COLUMNS:
            line[name][3] = line[name][2]

    edit(run, 2, 0, 33, repeat)
    failed, out = prove(run)
    assert f"repeated {33 * BATCH + 2} (1)" in out
    assert "every position exactly once" in failed


def test_ranks_with_the_same_slice(run, prove):
    run["attempt-1-rank-1.jsonl"][1:] = run["attempt-1-rank-0.jsonl"][1:]
    assert "slices of the ranks disjoint" in prove(run)[0]


def test_repeated_sample_within_an_epoch(run, prove):
    steps = [x for x in run["attempt-2-rank-0.jsonl"] if x["kind"] == "step"]
    new = [x for x in steps if x["step"] >= KILLED]
    places = [(x, i) for x in new for i in range(BATCH) if x["domain"][i] == x["epoch"][i] == 0]
    (first, i), (second, j) = places[:2]
    for name in ("sample", "crc"):
        second[name][j] = first[name][i]
    assert prove(run)[0] == {"epochs complete, no repeats"}


@pytest.mark.parametrize("distance", [1, 3])
def test_swapped_draws_of_two_steps(run, prove, distance):
    """Every draw is there once, but not in the batch it belongs to."""
    steps = [x for x in run["attempt-2-rank-0.jsonl"] if x["kind"] == "step" and x["step"] >= 30]
    first, second = steps[0], steps[distance]
    i, j = first["domain"].index(1), second["domain"].index(1)
    for name in ("draw", "epoch", "sample", "crc"):
        first[name][i], second[name][j] = second[name][j], first[name][i]
    assert prove(run)[0] == {"draws without gap or repeat"}


def test_draw_given_to_another_domain(run, prove):
    def change(line):
        line["domain"][line["domain"].index(0)] = 2

    edit(run, 2, 0, 45, change)
    assert "draws without gap or repeat" in prove(run)[0]


def test_unknown_domain(run, prove):
    edit(run, 2, 0, 45, lambda line: line["domain"].__setitem__(0, 3))
    failed, out = prove(run)
    assert "draws without gap or repeat" in failed
    assert "unknown domain" in out


@pytest.mark.parametrize(("column", "value"), [("epoch", 5), ("sample", 100), ("sample", -1)])
def test_impossible_epoch_or_sample(run, prove, column, value):
    edit(run, 2, 0, 45, lambda line: line[column].__setitem__(0, value))
    assert "epochs complete, no repeats" in prove(run)[0]


def test_other_tokens_behind_a_sample(run, prove):
    """A domain of 17 samples is gone through many times: one wrong read shows."""

    def change(line):
        line["crc"][line["domain"].index(1)] += 1

    edit(run, 2, 0, 45, change)
    assert prove(run)[0] == {"tokens behind a sample fixed"}


@pytest.mark.parametrize("column", ["domain", "draw", "epoch", "sample", "crc"])
def test_replay_that_differs(run, prove, column):
    """The damage lies in steps that were lost with the kill: only the comparison can see it."""
    edit(run, 1, 1, KILLED - 2, lambda line: line[column].__setitem__(0, line[column][0] + 1))
    failed, out = prove(run)
    assert "replayed = trained before" in failed
    assert f"differs at position {(KILLED - 2) * BATCH + BATCH // 2}" in out


def test_shares_that_ignore_the_plan(run, prove):
    for lines in run.values():
        lines[0]["anchors"] = [[0, [0.5, 0.25, 0.25]]]
    assert prove(run)[0] == {"achieved shares = planned"}


def test_decision_that_came_late(run, prove):
    run["attempt-2-rank-0.jsonl"][-1] = {**LIVE, "at": 40 * BATCH}
    assert prove(run)[0] == {"achieved shares = planned"}


def test_incomplete_last_line_of_a_killed_attempt_is_put_aside(run, prove, tmp_path, capsys):
    prove(run)
    path = tmp_path / "attempt-1-rank-1.jsonl"
    path.write_text(path.read_text()[:-40])
    assert proof.prove(tmp_path, proof.Console(width=200))
    assert "1 unfinished line put aside" in capsys.readouterr().out


def test_incomplete_line_that_counts(run, prove, tmp_path):
    prove(run)
    path = tmp_path / "attempt-2-rank-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1])[:-40])
    assert not proof.prove(tmp_path, proof.Console(width=200))


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [('"draw"', "draw", "not JSON"), ('"draw"', '"drew"', "draw"), ('"start"', '"go"', "start")],
)
def test_damaged_line(run, prove, tmp_path, capsys, old, new, word):
    prove(run)
    path = tmp_path / "attempt-2-rank-0.jsonl"
    path.write_text(path.read_text().replace(old, new, 1))
    assert not proof.prove(tmp_path, proof.Console(width=200))
    assert word in capsys.readouterr().out


def test_no_log(tmp_path, capsys):
    assert not proof.prove(tmp_path, proof.Console(width=200))
    assert "no log of a run" in capsys.readouterr().out


def test_later_attempt_that_starts_further_back(run, prove, tmp_path):
    """Three attempts, the third from before the second's start: the first counts up to there."""
    lines = step_lines()
    second = run["attempt-2-rank-0.jsonl"]
    third = {**second[0], "attempt": 3, "step": 10}
    run["attempt-2-rank-0.jsonl"] = second[:5]
    run["attempt-3-rank-0.jsonl"] = [third, *(part(lines[s], 0, 1) for s in range(10, STEPS)), LIVE]
    assert not prove(run)[0]
    effective = history.read(tmp_path).effective
    assert set(effective.attempt[effective.step < 10]) == {1}
    assert set(effective.attempt[effective.step >= 10]) == {3}
