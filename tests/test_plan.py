"""`mixcore plan`: its numbers against counting every sample, its refusals in one line."""

import numpy as np
import pytest
from command_line import EXAMPLE, facts_of, refused, run

import mixcore
from mixcore.cli import plan
from mixcore.config import load_config
from mixcore.segment import segments

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
