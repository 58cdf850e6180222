"""docs/megatron.md: every command in it runs, in its order, on a small model on two ranks."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from megatron_expected import check_nothing_lost
from megatron_runs import EXAMPLE, MODEL, ROOT, SEQUENCE, core, environment

from mixcore import Ledger
from mixcore.indexed_writer import IndexedWriter

GUIDE = (ROOT / "docs" / "megatron.md").read_text(encoding="utf-8")
DOMAINS = ("web", "code", "math", "law")
# Every start goes ten iterations on; `$MODEL` is what a reader has anyway.
FLAGS = f"""
    --vocab-size 500 --seq-length {SEQUENCE} --max-position-embeddings {SEQUENCE}
    --micro-batch-size 2 --global-batch-size 8 --train-iters 100 --exit-interval 10
    --save-interval 1000 --data-cache-path cache
"""


def blocks(language):
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the reader's: the script, the data, mix.yaml."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copy(EXAMPLE, folder)
    (folder / "data").mkdir()
    random = np.random.default_rng(0)
    for name in DOMAINS:
        with IndexedWriter(folder / "data" / name, np.uint16) as writer:
            for _ in range(100):
                writer.add_document(random.integers(0, 499, int(random.integers(10, 61))))
    for body in [*blocks("yaml"), *blocks("python")]:
        name = re.match(r"# (\S+)\n", body)
        assert name is not None, body
        (folder / name[1]).write_text(body)
    return folder


def block(part):
    """The one command that has this in it; two ranks will do."""
    (found,) = [b for b in blocks("sh") if part in b]
    found = found.replace("--nproc-per-node 8", "--nproc-per-node 2")
    return re.sub("^mixcore ", "python -m mixcore.cli ", found)  # the script may be elsewhere


def shell(place, command):
    """Run a command; what it printed."""
    made = environment(core(), place, EXAMPLE)
    made["MODEL"] = f"{shlex.join(MODEL)} {FLAGS}".replace("\n", " ")
    made["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), made["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=place,
        env=made,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def ledger_in(place, folder):
    return Ledger.load(place / folder / "mixcore_ledger.json")


def test_no_command_is_left_out():
    parts = ("mix.yaml", "odm", "--mix-control", "control.new", "law", "stock", "explain", "own.py")
    assert [p for p in parts if block(p)] == list(parts)
    assert len(blocks("sh")) == len(parts)


def test_the_table_is_the_measured_one():
    rows = list(csv.DictReader((ROOT / "docs" / "megatron_change.csv").open()))
    for way in {row["way"] for row in rows}:
        mine = [row for row in rows if row["way"] == way]
        assert [row["domain"] for row in mine] == ["0", "1", "2"]
        repeated = " / ".join(row["repeated_percent"] for row in mine)
        skipped = " / ".join(row["skipped"] for row in mine)
        assert f"{way} | {repeated} % | {skipped} |" in GUIDE.replace("`", "")


def test_start_and_resume(place):
    """The run of the first command, resumed with other domains, and with the first ones again."""
    told = shell(place, block("mix.yaml"))
    assert "Megatron-LM: megatron.core 0.19.2" in told
    assert "mixture from position 0 on, order balanced: web 0.5, code 0.3, math 0.2" in told
    assert [p.start for p in ledger_in(place, "checkpoint").pieces] == [0, 51_200_000]
    shell(place, block("law"))
    ledger = ledger_in(place, "checkpoint")
    assert [p.start for p in ledger.pieces] == [0, 80]
    assert ledger.weights_at(80) == pytest.approx([0.3, 0, 0.5, 0.2])
    assert "positions 96 to 103" in shell(place, block("explain"))
    shell(place, block("mix.yaml"))
    ledger = ledger_in(place, "checkpoint")
    assert [p.start for p in ledger.pieces] == [0, 80, 160, 51_200_000]
    assert ledger.weights_at(160) == pytest.approx([0.5, 0.3, 0.2, 0])
    assert ledger.weights_at(51_200_000) == pytest.approx([0.2, 0.3, 0.5, 0])
    check_nothing_lost(ledger, 240)


def test_method(place):
    assert "order balanced, lag 3 steps" in shell(place, block("odm"))
    assert ledger_in(place, "checkpoint-odm").num_decisions == 1


def test_by_hand(place):
    shell(place, block("--mix-control"))
    shell(place, block("control.new"))
    shell(place, block("--mix-control"))
    made = ledger_in(place, "checkpoint-by-hand").decisions[1]
    assert made.author == "ana"
    assert made.reason.startswith("more math")
    updates = (place / "checkpoint-by-hand" / "mixcore_decisions.jsonl").read_text().splitlines()
    assert [json.loads(line)["decided"] for line in updates] == [False, True]


def test_adopt(place):
    adopt = block("stock")
    stock = adopt.replace("-m megatron_patch ", "").replace("--mix-order megatron ", "")
    stock = stock.replace("checkpoint-adopted", "checkpoint-stock")
    stock = stock.replace("0.2 data/web", "0.5 data/web").replace("0.5 data/math", "0.2 data/math")
    assert "mix" not in stock
    shell(place, stock)
    assert "adopted a run of stock Megatron at 80 samples" in shell(place, adopt)
    ledger = ledger_in(place, "checkpoint-adopted")
    assert ledger.weights_at(0) == pytest.approx([0.5, 0.3, 0.2])
    assert ledger.weights_at(80) == pytest.approx([0.2, 0.3, 0.5])
    check_nothing_lost(ledger, 160)


def test_own_script(place):
    told = shell(place, block("own.py"))
    assert "-> megatron.training.training:train_step" in told
    assert "mixture from position 0 on" in told


BUILDER = """
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

class Tokenizer:
    vocab_size, eod, eos, pad = 500, 499, 499, -1
    unique_identifiers, special_tokens_dict = {"class": "Tokenizer"}, {}

config = GPTDatasetConfig(
    random_seed=1234, sequence_length=16, path_to_cache="cache", tokenizer=Tokenizer(),
    reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
    create_attention_mask=False, split="100,0,0",
    blend=(["data/web", "data/code", "data/math"], [0.5, 0.3, 0.2]))
builder = BlendedMegatronDatasetBuilder(GPTDataset, [2_000, 0, 0], lambda: True, config)
"""


def test_own_loop(place):
    code = BUILDER + (place / "loop.py").read_text() + "print(sorted(sample))"
    told = shell(place, f"RANK=0 python -c {shlex.quote(code)}")
    assert "'dataset_id', 'labels', 'loss_mask', 'position_ids', 'tokens'" in told
    ledger = Ledger.load(place / "ledger.json")
    assert ledger.batch_at(0) == (0, 512)
