"""`make upstream MEGATRON=folder`: a checkout of Megatron-LM with the patch and without it.

Runs Megatron's own unit tests of its data side and its own pretrain_gpt.py, on the CPU, and writes
what came out to docs/upstream.md. Nothing of the checkout is edited; its C++ helpers are compiled
in it, as Megatron itself does at its start.
"""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from megatron_runs import HERE, ROOT, Corpus, Result, environment, train, write_corpus

FILES = ("builder", "prepare_cache", "gpt_dataset", "multimodal_dataset", "varlen_dataset")
KEYS = ("tokens", "labels", "loss_mask", "position_ids", "dataset_id")
ITERATIONS = 50
LAYOUTS = {
    "DP=1": (1, []),
    "DP=2": (2, []),
    "TP=2": (2, ["--tensor-model-parallel-size", "2"]),
    "PP=2": (2, ["--pipeline-model-parallel-size", "2"]),
}
# Every way to start it that must not change a byte, and its further flags.
LAUNCHES = {
    "`-m megatron_patch`, no flag": [],
    "`-m megatron_patch`, `--mix-order megatron`": ["--mix-order", "megatron"],
}
PAGE = """# Upstream

Written by `make upstream MEGATRON=<checkout of Megatron-LM>`: Megatron's own unit tests and its own
`pretrain_gpt.py`, stock and under the patch, on the CPU (gloo, no Transformer Engine).

| | |
|---|---|
| commit | {commit} |
| megatron.core | {version} |
| when | {when} |
| with | Python {python}, torch {torch}, numpy {numpy} |

## Unit tests

`megatron_patch.apply()`, no `--mix-*` flag; files of `tests/unit_tests/data`.

| file | stock | patched | differences |
|---|---|---|---|
{tests}

## pretrain_gpt.py

{iterations} iterations, three domains, batches of 8. Every tensor of every micro-batch that any
rank fetched ({keys}) and the losses of the log are
compared with those of `python pretrain_gpt.py`.

| ranks | how | tensors | losses |
|---|---|---|---|
{runs}
"""


def git(checkout: Path, *words: str) -> str:
    command = ["git", "-C", str(checkout), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def unit_tests(checkout: Path, file: str, patched: bool, folder: Path) -> dict[str, str]:
    """What became of each test of one file."""
    outcomes = folder / f"{file}-{patched}.json"
    env = environment(checkout, folder, Path())
    env["PYTHONPATH"] += os.pathsep + str(HERE / "plugin")
    env |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    env |= {"MIXCORE_PATCH": "01"[patched], "MIXCORE_OUTCOMES": str(outcomes)}
    path = f"tests/unit_tests/data/test_{file}.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mixcore_upstream"]
    # Its tests share a folder two levels above their own, which must not be another session's.
    base = folder / f"pytest-{file}-{patched}"
    base.mkdir()
    command += ["-p", "no:cacheprovider", "--basetemp", str(base / "tests"), path]
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
    if not outcomes.exists() or done.returncode not in (0, 1):
        raise SystemExit(f"{path}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
    print(f"{path}, {'patched' if patched else 'stock'}: {done.stdout.splitlines()[-1]}")
    return json.loads(outcomes.read_text())


def test_row(checkout: Path, file: str, folder: Path) -> tuple[str, bool]:
    """One line of the table, and whether both came out alike with nothing failed."""
    stock, patched = (unit_tests(checkout, file, p, folder) for p in (False, True))
    names = sorted(set(stock) | set(patched))
    different = [n for n in names if stock.get(n) != patched.get(n)]
    failed = "failed" in [*stock.values(), *patched.values()]
    row = f"| test_{file}.py | {counts(stock)} | {counts(patched)} | {len(different)} |"
    return row, not different and not failed and bool(stock)


def counts(outcomes: dict[str, str]) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(Counter(outcomes.values()).items()))


def same_tensors(run: Result, stock: Result) -> bool:
    """Whether every rank fetched the same bytes in the same order."""
    for mine, other in zip(run.ranks, stock.ranks, strict=True):
        if len(mine.fetches) != len(other.fetches):
            return False
        for a, b in zip(mine.fetches, other.fetches, strict=True):
            if any(not np.array_equal(a.tensors[key], b.tensors[key]) for key in KEYS):
                return False
    return any(rank.fetches for rank in run.ranks)


def run_rows(checkout: Path, corpus: Corpus, folder: Path) -> tuple[list[str], bool]:
    """pretrain_gpt.py in every layout: stock, and through the launcher."""
    rows, good = [], True
    for layout, (ranks, flags) in LAYOUTS.items():
        shared = {"ranks": ranks, "iterations": ITERATIONS, "megatron": checkout}
        shared["script"] = checkout / "pretrain_gpt.py"
        stock = train(folder / f"{layout}-stock", corpus, flags=flags, **shared)
        for how, extra in LAUNCHES.items():
            run = train(
                folder / f"{layout}-{how}", corpus, patched=True, flags=[*flags, *extra], **shared
            )
            tensors, losses = same_tensors(run, stock), run.logged == stock.logged
            good &= tensors and losses and len(stock.logged) == ITERATIONS
            words = ["equal" if same else "DIFFERENT" for same in (tensors, losses)]
            rows.append(f"| {layout} | {how} | {' | '.join(words)} |")
            print(rows[-1])
    return rows, good


def main(checkout: Path) -> None:
    """Run all of it and write the page; exit code 1 if anything came out otherwise."""
    # Its Makefile asks python3-config for the suffix, which may be another Python's than ours.
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    datasets = checkout / "megatron" / "core" / "datasets"
    subprocess.run(["make", "-C", str(datasets), f"LIBEXT={suffix}"], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = [test_row(checkout, file, folder) for file in FILES]
        corpus = write_corpus(folder / "data", [4_000, 3_000, 2_000])
        runs, good = run_rows(checkout, corpus, folder)
    version: dict[str, str] = {}
    text = (checkout / "megatron" / "core" / "package_info.py").read_text()
    exec(text.partition("\nimport")[0], version)
    page = PAGE.format(
        commit=git(checkout, "log", "-1", "--format=%H (%cs)"),
        version=version["__version__"],
        when=datetime.now(UTC).strftime("%Y-%m-%d"),
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        tests="\n".join(row for row, _ in tests),
        iterations=ITERATIONS,
        keys=", ".join(KEYS),
        runs="\n".join(runs),
    )
    (ROOT / "docs" / "upstream.md").write_text(page)
    if not (good and all(same for _, same in tests)):
        raise SystemExit("docs/upstream.md: something is not as it was without the patch")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "pretrain_gpt.py").exists():
        raise SystemExit("usage: make upstream MEGATRON=folder (a checkout of NVIDIA/Megatron-LM)")
    main(Path(sys.argv[1]).resolve())
