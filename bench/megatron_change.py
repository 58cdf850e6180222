"""A change of the weights at half-run, four ways, by real runs of Megatron: what is read again.

    python bench/megatron_change.py [--folder runs] [--no-write]

Weights .5/.3/.2 become .2/.3/.5 after 100 of 200 iterations of 32 samples. Every run is one of
`megatron.training` on the CPU, through the harness of tests/megatron_lm; what its rank fetched is
told apart by its tokens. The order a domain is read in comes from Megatron's own index arrays, or,
for order balanced, is worked out from the ledger. Prints a table and writes
docs/megatron_change.csv. About one minute.
"""

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "megatron_lm"))

from megatron_expected import StockOrder, expected_balanced, ledger_of
from megatron_runs import SEQUENCE, Corpus, Result, core, train

import mixcore
from mixcore import Sampler
from mixcore.indexed_writer import IndexedWriter

OUT = Path(__file__).parents[1] / "docs" / "megatron_change.csv"
VERSION = "0.19.2"
BATCH, ITERATIONS, CHANGE = 32, 200, 100
SAMPLES, HALF = BATCH * ITERATIONS, BATCH * CHANGE
BEFORE, AFTER = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)
TOKENS, VOCABULARY = 60_000, 512  # a domain's tokens: more than a run reads, so no epoch ends

Order = Callable[[int], list[bytes]]  # domain -> its samples, in its own order


def write_corpus(folder: Path) -> Corpus:
    """Three domains of random tokens, in documents of 10 to 60."""
    folder.mkdir()
    random = np.random.default_rng(0)
    prefixes = [str(folder / f"domain{d}") for d in range(len(BEFORE))]
    for prefix in prefixes:
        left = TOKENS
        with IndexedWriter(prefix, np.uint16) as writer:
            while left:
                length = min(int(random.integers(10, 61)), left)
                writer.add_document(random.integers(0, VOCABULARY, length))
                left -= length
    return Corpus(tuple(prefixes), (0, VOCABULARY))  # starts: only the vocabulary's size is asked


@dataclass
class Read:
    """What was fetched: tokens and domain of each position of the first and of the second half."""

    tokens: np.ndarray
    domain: np.ndarray

    @classmethod
    def of(cls, *runs: Result) -> "Read":
        """Runs that went on from each other."""
        tokens = np.concatenate([run.positions() for run in runs])
        assert tokens.shape == (SAMPLES, SEQUENCE), tokens.shape
        return cls(tokens, np.concatenate([run.positions("dataset_id") for run in runs]))

    def half(self, number: int, domain: int) -> list[bytes]:
        """Samples of one domain in one half."""
        part = slice(number * HALF, (number + 1) * HALF)
        return samples_of(self.tokens[part][self.domain[part] == domain])


def samples_of(rows: np.ndarray) -> list[bytes]:
    """What tells samples apart: their tokens."""
    return [row.astype(np.int64).tobytes() for row in rows]


def measured(way: str, read: Read, order: Order) -> list[dict[str, object]]:
    """Rows of the table, one a domain.

    `skipped`: samples that the domain's order has before the last one read, and that nobody read.
    """
    rows: list[dict[str, object]] = []
    for domain in range(len(BEFORE)):
        first, second = read.half(0, domain), read.half(1, domain)
        own = order(domain)
        place = {sample: i for i, sample in enumerate(own)}
        assert len(place) == len(own), "two samples have the same tokens"
        seen = set(first)
        repeated = sum(sample in seen for sample in second)
        read_at = {place[sample] for sample in first + second}
        rows.append(
            {
                "way": way,
                "domain": domain,
                "first_half": len(first),
                "second_half": len(second),
                "repeated": repeated,
                "repeated_percent": f"{100 * repeated / len(second):.4g}",
                "skipped": max(read_at) + 1 - len(read_at),
            }
        )
    return rows


def megatron_order(run: Result, corpus: Corpus) -> Order:
    """From the index arrays in a run's cache."""

    def order(domain: int) -> list[bytes]:
        prefix = corpus.prefixes[domain]
        descriptions = (run.folder / "cache").glob("*-GPTDataset-train-description.txt")
        found = [json.loads(path.read_text()) for path in descriptions]
        (size,) = [d["num_samples"] for d in found if d["dataset_path"] == prefix]
        arrays = StockOrder(run.folder / "cache", prefix, size, SEQUENCE)
        return samples_of(np.stack([arrays[draw] for draw in range(len(arrays))]))

    return order


def balanced_order(folder: Path, corpus: Corpus) -> Order:
    """From the ledger, for twice the length of the run; read without Megatron."""
    ledger = ledger_of(folder)
    picks = Sampler(ledger).picks(0, 2 * SAMPLES)
    rows = expected_balanced(ledger, corpus, 2 * SAMPLES, SEQUENCE)

    def order(domain: int) -> list[bytes]:
        mine = picks.domain == domain
        draws = np.argsort(picks.draw[mine])
        return samples_of(rows[mine][draws][: ledger.domains[domain].size])

    return order


def runs(folder: Path) -> list[dict[str, object]]:
    """All of them, one after the other."""
    corpus = write_corpus(folder / "data")

    def go(name: str, weights: tuple[float, ...], *flags: str, patched: bool = False) -> Result:
        print(f"{name} ...", file=sys.stderr, flush=True)
        length = ["--train-samples", str(SAMPLES), "--lr-decay-samples", str(SAMPLES)]
        return train(
            folder / name,
            corpus,
            iterations=None,
            weights=weights,
            flags=[*length, "--save-interval", "1000", *flags],
            micro_batch=BATCH,
            global_batch=BATCH,
            patched=patched,
            megatron=core(VERSION),
        )

    def kept(name: str) -> str:
        return str(folder / f"{name}-checkpoint")

    def stock(name: str, weights: tuple[float, ...], load: str, *flags: str) -> Result:
        return go(name, weights, "--load", kept(load), "--save", kept(name), *flags)

    table = []
    first = stock("stock-1", BEFORE, "stock-1", "--exit-interval", str(CHANGE))
    second = stock("stock-2", AFTER, "stock-1")
    read = Read.of(first, second)
    table += measured("resume with the new weights", read, megatron_order(second, corpus))

    transition = ["--phase-transition-iterations", str(CHANGE)]
    one = stock("phase-1", BEFORE, "phase-1", *transition)
    two = stock("phase-2", AFTER, "phase-1", *transition)
    order = megatron_order(two, corpus)
    table += measured("--phase-transition-iterations", Read.of(one, two), order)

    config = folder / "mix.yaml"
    points = [
        {"at": at, "weights": {f"domain{i}": w for i, w in enumerate(weights)}}
        for at, weights in ((0, BEFORE), (HALF, AFTER))
    ]
    config.write_text(json.dumps({"schedule": points}))  # JSON is YAML
    mixed = ["--mix-config", str(config), "--save", kept("live")]
    live = go("live", BEFORE, *mixed, patched=True)
    order = balanced_order(Path(kept("live")), corpus)
    table += measured("megatron_patch, live", Read.of(live), order)

    adopt = ["--load", kept("stock-1"), "--save", kept("adopted"), "--mix-order", "megatron"]
    adopted = go("adopted", AFTER, *adopt, patched=True)
    order = megatron_order(adopted, corpus)
    table += measured("megatron_patch, stock checkpoint", Read.of(first, adopted), order)
    return table


def show(table: list[dict[str, object]]) -> None:
    """The table as README has it."""
    print("| way | repeated in the second half, domain 0 / 1 / 2 | skipped samples |")
    print("|---|---|---|")
    for way in dict.fromkeys(row["way"] for row in table):
        rows = [row for row in table if row["way"] == way]
        repeated = " / ".join(str(row["repeated_percent"]) for row in rows)
        skipped = " / ".join(str(row["skipped"]) for row in rows)
        print(f"| {way} | {repeated} % | {skipped} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="keep the runs here; must not be there yet")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True)
        table = runs(options.folder.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            table = runs(Path(folder))
    show(table)
    if options.no_write:
        return
    versions = {"megatron_core": VERSION, "mixcore": mixcore.__version__}
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*table[0], *versions], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | versions for row in table)


if __name__ == "__main__":
    main()
