"""The cost ledger and `mixcore report`: sums by hand, crashes while writing, gains."""

import pytest
from command_line import facts_of, refused, run

from mixcore.costs import Cost, add_cost, flops, read_costs, summary, tokens_to_reach
from mixcore.errors import DataError


def test_flops_by_hand():
    assert flops("proxy", 1e6, 1e9) == 6e15
    assert flops("backward", 10, 5) == 200
    assert flops("evaluation", 10, 5) == 100
    with pytest.raises(ValueError, match="kind must be one of"):
        flops("fun", 1, 1)
    with pytest.raises(ValueError, match="tokens must be in"):
        flops("train", 1, -1)


def test_entries_survive_a_crash_while_writing(tmp_path):
    file = tmp_path / "costs.jsonl"
    costs = [Cost("proxy", 1e15), Cost("backward", 2.5, "anneal", "dga")]
    add_cost(file, costs[0])
    whole = file.read_bytes()
    add_cost(file, costs[1])
    second = file.read_bytes()[len(whole) :]
    assert read_costs(file) == (costs, 0)
    for cut in range(1, len(second) - 1):
        file.write_bytes(whole + second[:cut])
        add_cost(file, costs[1])
        assert read_costs(file) == (costs, 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind": "fun", "flops": 1}', "line 1: kind must be one of"),
        ('{"kind": "proxy", "flops": -1}', "line 1: flops must be in"),
        ('{"kind": "proxy"}', "line 1: .*flops"),
        ("[1]", "line 1: "),
    ],
)
def test_bad_entries(tmp_path, line, said):
    (tmp_path / "c").write_text(line + "\n")
    with pytest.raises(DataError, match=said):
        read_costs(tmp_path / "c")


def test_summary_by_hand():
    found = summary(
        [Cost("proxy", 3), Cost("backward", 4, "a"), Cost("train", 70, "a"), Cost("proxy", 3)]
    )
    assert found["flops"] == {"proxy": 6, "backward": 4, "evaluation": 0, "train": 70, "other": 0}
    assert (found["spent"], found["overhead"]) == (10, 10 / 70)
    assert found["stages"] == {"": 6, "a": 74}
    assert summary([])["overhead"] is None


def test_tokens_to_reach():
    assert tokens_to_reach([0, 100, 200], [4.0, 3.0, 2.0], 2.5) == 150
    assert tokens_to_reach([0, 100], [4.0, 3.0], 4.5) == 0
    assert tokens_to_reach([0, 100], [4.0, 3.0], 2.9) is None
    with pytest.raises(ValueError, match="tokens must ascend"):
        tokens_to_reach([0, 0], [1.0, 1.0], 1)


def test_report_by_hand(tmp_path):
    add_cost(tmp_path / "costs.jsonl", Cost("evaluation", 100.0))
    (tmp_path / "runs.csv").write_text(
        "run,mix/a,mix/b,loss/v,params,tokens\nx,1,0,2,10,5\ny,0,1,3,10,5\n"
    )
    (tmp_path / "base.csv").write_text("tokens,loss\n0,4\n100,3\n200,2\n")
    (tmp_path / "mine.csv").write_text("tokens,loss\n0,4\n100,2.5\n200,1.5\n")
    (tmp_path / "m.yaml").write_text(
        "batch_size: 2\ntrain_samples: 20\ntokens_per_sample: 10\n"
        "domains: [{name: a, size: 9, weight: 1}]\n"
    )
    (tmp_path / "p.yaml").write_text("params: 50\nstages: [{name: one, mix: m.yaml}]\n")
    options = {
        "runs": "runs.csv",
        "pipeline": "p.yaml",
        "baseline": "base.csv",
        "curve": "mine.csv",
    }
    args = ["report", str(tmp_path / "costs.jsonl"), "--params", "50"]
    for name, file in options.items():
        args += [f"--{name}", str(tmp_path / file)]
    facts = facts_of(*args)
    assert facts["flops"]["proxy"] == 2 * 6 * 10 * 5
    assert facts["flops"]["train"] == 6 * 50 * 200
    assert facts["spent"] == 700
    assert facts["gain"] == {
        "baseline_loss": 2,
        "loss": 1.5,
        "saved_tokens": 50,
        "saved_flops": 50 * 6 * 50,
        "net_flops": 50 * 6 * 50 - 700,
    }
    assert "tokens saved up to the baseline's last loss: 50" in run(*args).stdout
    (tmp_path / "mine.csv").write_text("tokens,loss\n0,4\n100,3.5\n")
    assert facts_of(*args)["gain"]["net_flops"] is None
    assert "nothing is gained" in run(*args).stdout


def test_bad_input(tmp_path):
    assert "nothing to report" in refused("report")
    (tmp_path / "runs.csv").write_text("run,params\nx,1\n")
    file = str(tmp_path / "runs.csv")
    assert "the column tokens is missing" in refused("report", "--runs", file)
    assert "--baseline and --curve go together" in refused(
        "report", "--runs", file, "--curve", file
    )
    (tmp_path / "runs.csv").write_text("run,params,tokens\nx,1,many\n")
    assert "line 2: could not convert" in refused("report", "--runs", file)
