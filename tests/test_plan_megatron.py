"""`mixcore plan --megatron`, without Megatron."""

import json
import subprocess
import sys

import numpy as np
import pytest
from command_line import refused, run

import mixcore
from mixcore.cli.plan_megatron import blend_of, train_split
from mixcore.errors import ArgumentError
from mixcore.indexed_writer import IndexedWriter

TOKENS = {"web": 8_001, "code": 1_601, "math": 801}
LENGTH = ["--seq-length", "16"]
BATCH = ["--global-batch-size", "8", "--train-iters", "50"]


@pytest.fixture
def data(tmp_path):
    """Documents of 100 tokens; with sequences of 16: 500, 100 and 50 samples."""
    for name, size in TOKENS.items():
        with IndexedWriter(tmp_path / name, np.uint16) as writer:
            for start in range(0, size, 100):
                writer.add_document(np.arange(min(100, size - start)))
    return [str(tmp_path / name) for name in TOKENS]


def blended(data, weights=("0.5", "0.3", "0.2")):
    return [word for pair in zip(weights, data, strict=True) for word in pair]


def plan(*words):
    done = run("plan", "--megatron", "--json", "--", *words)
    return json.loads(done.stdout)


def test_stock(data):
    """No --mix flag: Megatron's own blend, exactly."""
    found = plan("--data-path", *blended(data), "--split", "100,0,0", *LENGTH, *BATCH, "--lr", "1")
    assert found["order"] == "megatron"
    assert (found["samples"], found["steps"], found["seed"]) == (400, 50, 1234)
    index, _ = mixcore.build_blending_indices([0.5, 0.3, 0.2], 400)
    assert [d["samples"] for d in found["domains"]] == np.bincount(index).tolist()
    assert [d["size"] for d in found["domains"]] == [500, 100, 50]
    assert found["domains"][2]["epochs"] == pytest.approx(80 / 50, abs=0.05)
    last = np.flatnonzero(index == 2)[49]
    assert found["domains"][2]["first_epoch_ends"] == {"step": last // 8, "position": last}
    assert found["file"] == "Megatron command line"


def test_text_names_the_domains(data):
    done = run("plan", "--megatron", "--", "--data-path", *blended(data), *LENGTH, *BATCH)
    for word in ("web", "code", "math", "Megatron command line", "epoch 1: step"):
        assert word in done.stdout


def test_mix_flags(data, tmp_path):
    mix = tmp_path / "mix.yaml"
    mix.write_text("domains:\n- {name: math, max_epochs: 1}\n")
    words = ["--data-path", *blended(data), "--split", "1", *LENGTH, *BATCH, "--mix-config"]
    found = plan(*words, str(mix))
    assert found["order"] == "balanced"
    assert found["domains"][2]["samples"] == 50
    assert found["domains"][2]["cap_reached"] is not None


def test_default_split_leaves_out_the_last_documents(data):
    found = plan("--data-path", *blended(data), *LENGTH, *BATCH)
    documents = round(0.969 * 81)  # of web: 80 of 100 tokens, one of 1
    assert found["domains"][0]["size"] == (documents * 100 - 1) // 16


def test_other_ways_to_name_the_data(data, tmp_path):
    words = [*LENGTH, "--global-batch-size", "8", "--train-samples", "400"]
    expected = plan("--data-path", *blended(data), "--split", "1,0,0", *words)["domains"]
    (tmp_path / "blend.txt").write_text("\n".join(blended(data)))
    (tmp_path / "split.json").write_text(
        json.dumps({"train": " ".join(blended(data)), "valid": data[:1], "test": None})
    )
    for flags in (
        ["--data-args-path", str(tmp_path / "blend.txt"), "--split", "1"],
        ["--per-split-data-args-path", str(tmp_path / "split.json")],
        ["--train-data-path", *blended(data)],
    ):
        assert plan(*flags, *words)["domains"] == expected


def test_without_weights(data):
    found = plan("--data-path", *data, "--split", "1", *LENGTH, "--global-batch-size", "10",
                 "--train-samples", "650")  # fmt: skip
    assert [d["samples"] for d in found["domains"]] == [500, 100, 50]


def test_refused(data, tmp_path):
    good = ["--data-path", *blended(data), *LENGTH, *BATCH]
    (tmp_path / "bad.json").write_text("{")
    for words, part in (
        ([*LENGTH, *BATCH], "--data-path"),
        (good[:-2], "--train-iters or --train-samples is needed"),
        (good[:-4], "--global-batch-size is needed"),
        (["--data-path", *blended(data), *BATCH], "--seq-length is needed"),
        ([*good, "--train-samples", "9"], "exclude each other"),
        ([*good, "--seq-length", "0"], "--seq-length must be in [1, 2147483647], got 0"),
        ([*good, "--train-iters", "x"], "--train-iters"),
        ([*good, "--split", "a"], "got 'a'"),
        ([*good, "--split", "0,1,0"], "--split must leave something"),
        ([*good, "--train-data-path", "x"], "exclude each other"),
        ([*good, "--step-batch-size-schedule", "0:8"], "--step-batch-size-schedule"),
        ([*LENGTH, *BATCH, "--data-path", "1", data[0], "x", data[1]], "got 'x'"),
        ([*LENGTH, *BATCH, "--data-path", "1", str(tmp_path / "none")], "none"),
        ([*LENGTH, *BATCH, "--per-split-data-args-path", str(tmp_path / "bad.json")], "bad.json"),
        ([*good, "--mix-config", str(tmp_path / "none.yaml")], "none.yaml"),
        ([*good, "--mix-order", "best"], "best"),
    ):
        assert part in refused("plan", "--megatron", "--", *words), words


def test_blend_and_split():
    assert blend_of("", ["a", "b"]) == (["a", "b"], None)
    assert blend_of("", ["a"]) == (["a"], None)
    assert blend_of("", ["2", "a", "3", "b"]) == (["a", "b"], [2.0, 3.0])
    assert blend_of("", []) is None
    assert train_split("99,1,0") == (0.0, 0.99)
    assert train_split("1") == (0.0, 1.0)
    assert train_split("0,1") is None
    for text in ("", "1,2,3,4", "-1,2", "nan", "0,0,0", "inf"):
        with pytest.raises(ArgumentError, match="--split"):
            train_split(text)


def test_needs_no_torch(data):
    code = (
        "import sys\nfrom mixcore.cli.plan_megatron import ledger_of\n"
        f"ledger_of({['--data-path', *data, *LENGTH, *BATCH]})\n"
        "assert not {'torch', 'megatron'} & set(sys.modules), 'heavy'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
