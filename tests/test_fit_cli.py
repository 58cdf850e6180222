"""`mixcore fit`, and the weights.yaml that it writes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from command_line import facts_of, refused, run
from fit_runs import exponential_runs

import mixcore
from mixcore.config import load_config
from mixcore.errors import ArgumentError, DeviceError
from mixcore.fit import _libraries, fit, fitters
from mixcore.fit.runs import write_runs
from mixcore.fit.weights_file import read_weights

MIX = """seed: 7
batch_size: 8
train_samples: 1000
tokens_per_sample: 16
domains:
  - {name: d2, size: 4000, weight: 0.2, max_epochs: 0.1}
  - {name: d0, size: 600, weight: 0.5}
  - {name: d1, size: 900, weight: 0.3}
"""


@pytest.fixture
def folder(tmp_path):
    write_runs(tmp_path / "runs.csv", exponential_runs(40, 0.01))
    (tmp_path / "mix.yaml").write_text(MIX)
    (tmp_path / "sizes.yaml").write_text("d0: 1e9\nd1: 2e9\nd2: 5e8\n")
    return tmp_path


def arguments(folder, *more, method="olmix", out="weights.yaml"):
    targets = [a for i in range(3) for a in ("-t", f"loss/d{i}")]
    return ["fit", method, str(folder / "runs.csv"), *targets, "-o", str(folder / out), *more]


def test_weights_yaml_is_a_mix_yaml_when_the_sizes_came_from_one(folder):
    facts = facts_of(*arguments(folder, "--prior", str(folder / "mix.yaml"), "--cap", "0.9"))
    config = load_config(folder / "weights.yaml")
    assert [d.name for d in config.domains] == ["d2", "d0", "d1"]
    assert config.seed == 7
    weights = dict(zip((d.name for d in config.domains), config.weights, strict=True))
    assert weights == {d["name"]: d["weight"] for d in facts["domains"]}
    assert sum(weights.values()) == pytest.approx(1)
    assert facts["budget"] == 16_000
    epochs = {d["name"]: d["epochs"] for d in facts["domains"]}
    assert epochs["d2"] <= 0.1 + 1e-9  # its own max_epochs
    assert max(epochs.values()) <= 0.9 + 1e-9
    assert epochs["d0"] == pytest.approx(weights["d0"] * 1000 / 600)
    planned = facts_of("plan", str(folder / "weights.yaml"))
    assert {d["name"]: d["weight"] for d in planned["domains"]} == pytest.approx(weights)


def test_plain_weights_go_into_a_ledger(folder):
    run(*arguments(folder, "--prior", str(folder / "sizes.yaml")))
    weights = read_weights(folder / "weights.yaml")
    domains = [mixcore.Domain(f"d{i}", 1000) for i in range(3)]
    ledger = mixcore.Ledger(domains, [1, 1, 1], batch_size=8)
    ledger.append(80, weights=weights, reason="olmix")
    assert mixcore.Sampler(ledger).counts(8080)[1] - mixcore.Sampler(ledger).counts(80)[
        1
    ] == pytest.approx(8000 * weights["d1"], abs=4)
    text = (folder / "weights.yaml").read_text()
    assert text.startswith("# mixcore fit olmix: least of +0.3333 loss/d0")
    assert "# held out, loss/d0: 40 runs" in text


def test_paths_of_the_mix_stay_right_in_another_folder(folder, monkeypatch):
    mix = yaml.safe_load(MIX)
    for d in mix["domains"]:
        d["path"] = "data/" + d["name"]
        del d["size"]
    from mixcore.fit import weights_file

    found = fit("olmix", folder / "runs.csv", "loss/d0")
    (folder / "out").mkdir()
    weights_file.write_weights(folder / "out" / "w.yaml", found, mix=mix, folder=folder)
    written = yaml.safe_load((folder / "out" / "w.yaml").read_text())
    assert [d["path"] for d in written["domains"]] == ["../data/d2", "../data/d0", "../data/d1"]


def test_nothing_is_overwritten_unasked(folder):
    target = folder / "weights.yaml"
    target.write_text("mine\n")
    assert refused(*arguments(folder)) == f"{target} exists already (--force replaces it)"
    assert target.read_text() == "mine\n"
    run(*arguments(folder, "--force"))
    assert sum(read_weights(target).values()) == pytest.approx(1)
    before = target.read_text()
    refused(*arguments(folder, "--force", "-s", "kl=-1"))
    assert target.read_text() == before
    assert not list(folder.glob("*.tmp"))


def test_tables_facts_and_judges(folder):
    write_runs(folder / "other.csv", exponential_runs(30, 0.01, seed=5))
    out = run(*arguments(folder, "--judge", str(folder / "other.csv"))).stdout
    for words in ("olmix -> ", "held out", "other.csv", "rank corr.", "at the prior", "note: "):
        assert words in out
    facts = facts_of(*arguments(folder, "--judge", str(folder / "other.csv"), "--force"))
    assert facts["elsewhere"][str(folder / "other.csv")]["objective"]["runs"] == 30
    assert facts["held_out"]["loss/d0"]["spearman"] > 0.9
    assert json.dumps(facts)


def test_options_are_yaml_and_runs_can_be_chosen(folder):
    tokens = np.where(np.arange(40) < 20, 1e9, 2e9)
    write_runs(folder / "runs.csv", exponential_runs(40, tokens=tokens))
    assert "2 different tokens" in refused(*arguments(folder))
    facts = facts_of(
        *arguments(folder, "--only", "tokens=1e9", "-s", "kl=0", "-s", "proposer=exact")
    )
    assert facts["held_out"]["loss/d0"]["runs"] == 20
    assert facts["options"] == {"kl": 0, "proposer": "exact"}
    assert "leaves no run; tokens there: 1e+09, 2e+09" in refused(
        *arguments(folder, "--only", "tokens=3", "--force")
    )


def test_the_next_round_is_written(folder):
    more = ["--next", str(folder / "next.csv"), "-s", "next_runs=5", "-s", "samples=500"]
    run(*arguments(folder, *more, method="climb"))
    lines = (folder / "next.csv").read_text().splitlines()
    assert lines[0] == "run,mix/d0,mix/d1,mix/d2"
    assert len(lines) == 6
    assert sum(map(float, lines[1].split(",")[1:])) == pytest.approx(1)
    assert "--next: olmix proposes no further runs" in refused(
        *arguments(folder, "--next", str(folder / "n.csv"), "--force")
    )


def test_every_fit_describes_itself():
    found = fitters()
    assert list(found) == [
        *("regmix", "climb", "demix", "mixing_law", "olmix", "bimix", "autoscale", "dcpt", "cmr"),
        *("apple_law", "mde", "mixmin", "utilimax", "chameleon", "doremi", "doge"),
    ]
    for name, info in found.items():
        assert info.name == name
        assert info.tractable
        assert info.doc.count("\n") > 5
        assert all(f"{option}" in info.doc for option in [*info.options, *info.required]), name
        assert name in run("fit", name).stdout
        assert facts_of("fit", name)["name"] == name
    listed = run("fit").stdout
    assert all(name in listed for name in found)
    assert len(facts_of("fit")["fits"]) == len(found)
    assert "\n    mixcore fit" in run("fit", "--help").stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-t", "loss/d0"], "--target names 'loss/d0' twice"),
        (["-t", "loss/x=y"], "--target must be COLUMN or COLUMN=WEIGHT, got 'loss/x=y'"),
        (["-t", "x"], "target must be columns loss/NAME or metric/NAME, got 'x'"),
        (["-s", "kl"], "--set must be NAME=VALUE, got 'kl'"),
        (["-s", "kl=1", "-s", "kl=2"], "--set gives 'kl' twice"),
        (["-s", "lk=1"], "fit 'olmix' has no option 'lk'"),
        (["--cap", "4"], "cap=4.0 needs sizes"),
        (["--cap", "x"], "Invalid value for '--cap': 'x' is not a valid float."),
        (["--only", "seed=1"], "--only 'seed=1'"),
        (["--seed", "-1"], "seed must be in"),
    ],
)
def test_mistakes_are_one_line(folder, more, message):
    assert message in refused(*arguments(folder, *more))
    assert not (folder / "weights.yaml").exists()


def test_bad_files_are_one_line(folder):
    (folder / "runs.csv").write_text("run,mix/a,mix/b,loss/x\nr,0.5,0.5,nan\n")
    assert "line 2, column 'loss/x': the value must be finite, got nan" in refused(
        "fit", "olmix", str(folder / "runs.csv"), "-t", "loss/x"
    )
    for text, message in [
        ("- a\n", "must be a mix.yaml or map each domain's name"),
        ("d0: 1\nd0: 2\n", "line 2: d0 is given twice"),
        ("d0: -1\n", "tokens of domain 'd0' must be in"),
        ("d0: [\n", "is not YAML"),
        ("d0: 1\nd1: 1\nd3: 1\n", "the sizes lack the domain 'd2'"),
        (MIX.replace("tokens_per_sample: 16\n", ""), "must have tokens_per_sample"),
    ]:
        (folder / "sizes.yaml").write_text(text)
        write_runs(folder / "runs.csv", exponential_runs())
        assert message in refused(*arguments(folder, "--prior", str(folder / "sizes.yaml")))
    (folder / "w.yaml").write_text("domains: [{name: a}]\n")
    with pytest.raises(ArgumentError, match=r"domains\[0\] must have a name and a weight"):
        read_weights(folder / "w.yaml")


def test_a_missing_library_names_the_extra(monkeypatch, folder):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(_libraries.importlib, "import_module", missing)
    with pytest.raises(DeviceError, match=r"pip install mixcore\[fit\]"):
        _libraries.lightgbm()


def test_fits_load_nothing_heavy_until_they_need_it():
    heavy = "torch lightgbm sklearn cvxpy scipy pandas"
    code = (
        "import sys, mixcore, mixcore.fit, mixcore.cli\n"
        "mixcore.fit.fitters()\n"
        f"loaded = [m for m in {heavy.split()} if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
