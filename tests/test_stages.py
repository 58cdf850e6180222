"""Plans over stages: caps over all of them against counting, the hand-over, refusals."""

import numpy as np
import pytest
from command_line import facts_of, refused, run

import mixcore
from mixcore.config import load_config
from mixcore.errors import ArgumentError, LedgerError
from mixcore.stages import Stage, begin, hand_over, load_pipeline

PRETRAIN = """\
seed: 3
batch_size: 16
train_samples: 1_600
tokens_per_sample: 8
domains:
  - {name: web, size: 1_000, weight: 0.8}
  - {name: code, size: 100, weight: 0.2, max_epochs: 4}
"""
ANNEAL = """\
seed: 3
batch_size: 32
train_samples: 640
tokens_per_sample: 8
domains:
  - {name: code, size: 100, weight: 0.5, max_epochs: 4}
  - {name: math, size: 50, weight: 0.5}
schedule: [[320, {code: 0.25, math: 0.75}]]
"""
LONG = (
    ANNEAL.replace("tokens_per_sample: 8", "tokens_per_sample: 16")
    .replace("100,", "50,")
    .replace("size: 50, weight: 0.5}", "size: 25, weight: 0.5}")
)


@pytest.fixture
def pipeline(tmp_path):
    def write(*mixes, params="params: 1e6\n"):
        stages = ""
        for i, mix in enumerate(mixes):
            (tmp_path / f"m{i}.yaml").write_text(mix)
            stages += f"  - {{name: s{i}, mix: m{i}.yaml}}\n"
        (tmp_path / "pipeline.yaml").write_text(f"{params}stages:\n{stages}")
        return str(tmp_path / "pipeline.yaml")

    return write


def test_two_stages_in_one_ledger_by_hand(pipeline):
    facts = facts_of("pipeline", "plan", pipeline(PRETRAIN, ANNEAL))
    one, two = facts["stages"]
    assert (one["start"], one["end"], two["start"], two["end"]) == (0, 1600, 1600, 2240)
    assert not two["new_ledger"]
    assert one["flops"] == 6 * 1e6 * 1600 * 8
    draws = {s["name"]: {d["name"]: d["samples"] for d in s["domains"]} for s in (one, two)}
    assert draws["s0"] == {"web": 1280, "code": 320}
    assert draws["s1"]["code"] == 80  # 400, the cap over both stages, less 320
    assert draws["s1"]["web"] == 0
    assert draws["s1"]["math"] == 560
    assert facts["totals"]["code"]["epochs"] == 4
    code = next(d for d in two["domains"] if d["name"] == "code")
    assert 1600 < code["cap_reached"] <= 2240
    assert (
        "Stage s1: positions 1,600 to 2,240 of the same ledger"
        in run("pipeline", "plan", pipeline(PRETRAIN, ANNEAL)).stdout
    )


def test_nothing_is_lost_or_repeated_over_the_stages(pipeline):
    stages = load_pipeline(pipeline(PRETRAIN, ANNEAL)).stages
    first = begin(stages[0])
    before = mixcore.Sampler(first.ledger).picks(0, 1600)
    ready = hand_over(first.ledger, first.end, stages[1])
    sampler = mixcore.Sampler(ready.ledger)
    p = sampler.picks(0, ready.end)
    np.testing.assert_array_equal(p.sample[:1600], before.sample)
    for d in range(3):
        assert sorted(p.draw[p.domain == d].tolist()) == list(range(int((p.domain == d).sum())))
    assert ready.ledger.batch_at(1700)[1] == 32
    # The schedule's positions count from the stage's beginning.
    assert ready.ledger.weights_at(1600).tolist() == pytest.approx([0, 0.5, 0.5])
    assert ready.ledger.weights_at(1600 + 320).tolist() == pytest.approx([0, 0.25, 0.75])


def test_a_live_ledger_is_handed_over_as_it_is(pipeline, tmp_path):
    file = pipeline(PRETRAIN, ANNEAL)
    run("pipeline", "next", file, "s0", "-o", str(tmp_path / "a.json"))
    ledger = mixcore.Ledger.load(tmp_path / "a.json")
    ledger.append(800, [1, 0], reason="by hand")  # half of the code was never drawn
    ledger.save(tmp_path / "a.json")
    args = ["--ledger", str(tmp_path / "a.json"), "--position", "1600"]
    said = run("pipeline", "next", file, "s1", *args, "-o", str(tmp_path / "b.json")).stdout
    assert "stage s1 from position 1,600 to 2,240" in said
    made = mixcore.Ledger.load(tmp_path / "b.json")
    counts = mixcore.Sampler(made).counts(2240)
    assert counts[1] == 160 + 160 + 80  # capped at 400 only by what was really drawn
    assert made.decisions[-1].reason == "stage s1"


def test_another_sample_length_carries_the_caps_in_tokens(pipeline):
    facts = facts_of("pipeline", "plan", pipeline(PRETRAIN, LONG))
    two = facts["stages"][1]
    assert two["new_ledger"]
    assert (two["start"], two["end"]) == (0, 640)
    code = next(d for d in two["domains"] if d["name"] == "code")
    assert code["samples"] == (400 * 8 - 320 * 8) // 16  # tokens left, in samples of 16
    assert facts["totals"]["code"]["tokens"] == 400 * 8
    spent = PRETRAIN.replace("0.8", "0.5").replace("0.2", "0.5")
    said = refused("pipeline", "plan", pipeline(spent, LONG))
    assert "asks for domain 'code', which has nothing left of its 4 epochs: 3,200 of 3,200" in said


def test_tokens_used_are_counted_over_three_ledgers(pipeline):
    again = LONG.replace("tokens_per_sample: 16", "tokens_per_sample: 32").replace(
        "size: 50", "size: 25"
    )
    small = again.replace("size: 25, weight: 0.5}", "size: 12, weight: 0.5}").replace(
        "weight: 0.5, max", "weight: 0.25, max"
    )
    lighter = LONG.replace("train_samples: 640", "train_samples: 64")
    facts = facts_of("pipeline", "plan", pipeline(PRETRAIN, lighter, small))
    used = [
        next(d["samples"] for d in s["domains"] if d["name"] == "code") for s in facts["stages"]
    ]
    assert used[0] * 8 + used[1] * 16 + used[2] * 32 <= 3200
    assert used[2] == (3200 - used[0] * 8 - used[1] * 16) // 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seed: 3", "seed: 4"), "stage 's1' has seed 4, stage 's0' 3"),
        (("max_epochs: 4", "max_epochs: 5"), "a cap counts over all stages"),
        (("size: 100", "size: 101"), "domain 'code' has size 101"),
        (("train_samples: 640\n", ""), "stage 's1' needs train_samples"),
        (("batch_size: 32", "batch_size: 0"), "batch_size must be in"),
        (("seed: 3", "seed: 3\non_cap: stop"), "stage 's1' has on_cap 'stop'"),
    ],
)
def test_stages_that_do_not_fit(pipeline, change, said):
    assert said in refused("pipeline", "plan", pipeline(PRETRAIN, ANNEAL.replace(*change)))


def test_a_stage_that_caps_do_not_let_end(pipeline):
    stop = "on_cap: stop\n"
    said = refused("pipeline", "plan", pipeline(stop + PRETRAIN, stop + ANNEAL))
    assert "stage 's1' would end at position" in said
    assert "domain 'code' reaches its cap" in said


def test_bad_input(pipeline, tmp_path):
    file = pipeline(PRETRAIN, ANNEAL)
    out = str(tmp_path / "x.json")
    assert "STAGE must be one of s0, s1, got 's2'" in refused(
        "pipeline", "next", file, "s2", "-o", out
    )
    assert "all others need both" in refused("pipeline", "next", file, "s1", "-o", out)
    (tmp_path / "x.json").write_text("keep")
    assert "must be new" in refused("pipeline", "next", file, "s0", "-o", out)
    assert (tmp_path / "x.json").read_text() == "keep"
    (tmp_path / "p.yaml").write_text("stages: [{name: a}]\n")
    assert "stages[0] needs a name and a mix" in refused(
        "pipeline", "plan", str(tmp_path / "p.yaml")
    )
    stage = Stage("s1", load_config(tmp_path / "m1.yaml"))
    first = begin(Stage("s0", load_config(tmp_path / "m0.yaml")))
    with pytest.raises(ArgumentError, match="position must be a batch boundary, got 5"):
        hand_over(first.ledger, 5, stage)
    other = mixcore.Ledger(
        [mixcore.Domain("code", 7)], [1], batch_size=16, seed=3, tokens_per_sample=8
    )
    with pytest.raises(LedgerError, match="domain 'code' has size 7"):
        hand_over(other, 16, stage)
    assert other.num_decisions == 1
