"""Measures what README quotes and appends the rows to bench/results.csv.

    make bench            (or: python bench/run.py --only picks --repeats 7)

Every ratio compares calls made in turn in one process; the baselines are the project's own plain
loop of Megatron's greedy blend and of its sample index, compiled with the same flags, and numpy's
fill of arrays of the same size. Run it on a quiet machine: it says so if the machine is not.
"""

import argparse
import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import mixcore
from mixcore import _core
from mixcore.cli.bench import BATCH, PAIR, ledger_of, side_by_side, weights_of

RESULTS = Path(__file__).parent / "results.csv"
FIELDS = [
    "date",
    "commit",
    "machine",
    "cores",
    "load",
    "versions",
    "measure",
    "domains",
    "unit",
    "median",
    "least",
    "most",
    "baseline",
    "baseline_median",
    "ratio",
    "ratio_least",
    "ratio_most",
    "must",
    "aim",
    "repeats",
]
POSITIONS = 10_000_000


def compare(
    measure: str,
    domains: int | str,
    functions: dict[str, Callable[[], object]],
    counts: dict[str, int],
    repeats: int,
    *,
    must: float,
    aim: float,
    slower: bool = True,
    unit: str = "ns",
) -> dict[str, object]:
    """One row: the first function against the second, if there is one.

    `slower`: the baseline is expected to take longer (ratio = baseline / ours); else ratio = ours /
    baseline. Without a baseline `must` and `aim` are in the row's own unit.
    """
    taken = side_by_side(functions, repeats)
    scale = {"ns": 1e9, "us": 1e6, "ms": 1e3}[unit]
    each = {name: [s * scale / counts[name] for s in seconds] for name, seconds in taken.items()}
    ours, *baseline = each
    row: dict[str, object] = {
        "measure": measure,
        "domains": domains,
        "unit": unit,
        "median": statistics.median(each[ours]),
        "least": min(each[ours]),
        "most": max(each[ours]),
        "must": must,
        "aim": aim,
        "repeats": repeats,
    }
    if baseline:
        pairs = zip(each[ours], each[baseline[0]], strict=True)
        ratios = [b / a if slower else a / b for a, b in pairs]
        row |= {
            "baseline": baseline[0],
            "baseline_median": statistics.median(each[baseline[0]]),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        }
    return row


def picks(repeats: int) -> Iterator[dict[str, object]]:
    """Bulk (domain, draw) of order balanced against the greedy loop, and against a plain fill."""
    for domains, must, aim in ((32, 8, 15), (256, 45, 90), (2048, 150, 350)):
        sampler = mixcore.Sampler(ledger_of(domains))
        weights = weights_of(domains)
        size = min(POSITIONS, 200_000_000 // domains)
        yield compare(
            "picks",
            domains,
            {
                "picks": lambda s=sampler: s.picks(0, POSITIONS, threads=1, fields=PAIR),
                "greedy, plain loop": lambda w=weights, n=size: _core.greedy_plain(w, n),
            },
            {"picks": POSITIONS, "greedy, plain loop": size},
            repeats,
            must=must,
            aim=aim,
        )
        if domains > 256:
            continue
        yield compare(
            "picks against numpy fill",
            domains,
            {
                "picks": lambda s=sampler: s.picks(0, POSITIONS, threads=1, fields=PAIR),
                "numpy fill": lambda: (
                    np.full(POSITIONS, 1, np.int32),
                    np.full(POSITIONS, 1, np.int64),
                ),
            },
            {"picks": POSITIONS, "numpy fill": POSITIONS},
            repeats,
            must=6,
            aim=3,
            slower=False,
        )


def four_fields(repeats: int) -> Iterator[dict[str, object]]:
    """All four fields; two threads against one."""
    for domains in (32, 256, 2048):
        sampler = mixcore.Sampler(ledger_of(domains))
        yield compare(
            "picks, all four fields",
            domains,
            {"picks": lambda s=sampler: s.picks(0, POSITIONS, threads=1)},
            {"picks": POSITIONS},
            repeats,
            must=60,
            aim=15,
        )
        yield compare(
            "picks, two threads against one",
            domains,
            {
                "two": lambda s=sampler: s.picks(0, POSITIONS, threads=2, fields=PAIR),
                "one thread": lambda s=sampler: s.picks(0, POSITIONS, threads=1, fields=PAIR),
            },
            {"two": POSITIONS, "one thread": POSITIONS},
            repeats,
            must=1.5,
            aim=1.8,
        )


def megatron(repeats: int) -> Iterator[dict[str, object]]:
    """Order megatron, the same bytes, against the plain loop."""
    for domains, must, aim in ((32, 3, 8), (256, 8, 20), (2048, 20, 40)):
        shapes = {
            "dirichlet": weights_of(domains),
            "zipf": (1 / np.arange(1, domains + 1)) / (1 / np.arange(1, domains + 1)).sum(),
            "equal": np.full(domains, 1 / domains),
        }
        for shape, weights in shapes.items():
            size = min(POSITIONS, 200_000_000 // domains)
            yield compare(
                f"build_blending_indices, {shape}",
                domains,
                {
                    "fast": lambda w=weights, n=size: mixcore.build_blending_indices(w, n),
                    "greedy, plain loop": lambda w=weights, n=size: _core.greedy_plain(w, n),
                },
                {"fast": size, "greedy, plain loop": size},
                repeats,
                must=must,
                aim=aim,
            )


def change(repeats: int) -> Iterator[dict[str, object]]:
    """`append` at 10^12 and the first batch after it; fresh weights every time."""
    domains, times = 2048, 20
    ledger = ledger_of(domains)
    sampler = mixcore.Sampler(ledger)
    fresh = iter(np.random.default_rng(1).dirichlet(np.ones(domains), (repeats + 1) * times))

    def append() -> None:
        for _ in range(times):
            position = max(10**12, ledger.pieces[-1].start + 5 * BATCH)
            sampler.picks(ledger.append(position, next(fresh)), BATCH, threads=1)

    yield compare(
        "append at 10^12 and first batch",
        domains,
        {"append": append},
        {"append": times},
        repeats,
        must=5,
        aim=1,
        unit="ms",
    )


def look_up(repeats: int) -> Iterator[dict[str, object]]:
    """`at`: 10^6 random positions in one call, (domain, draw)."""
    for domains, must, aim in ((22, 0.2, 0.05), (1000, 0.5, 0.12)):
        sampler = mixcore.Sampler(ledger_of(domains))
        where = np.random.default_rng(0).integers(0, 10**12, 1_000_000)
        yield compare(
            "at, random positions",
            domains,
            {"at": lambda s=sampler, w=where: s.at(w, fields=PAIR)},
            {"at": len(where)},
            repeats,
            must=must,
            aim=aim,
            unit="us",
        )


def memory(repeats: int) -> Iterator[dict[str, object]]:
    """Bytes held per sample of the run: what grows between 10^3 and 10^7 picks."""
    ledger = ledger_of(2048)
    sampler = mixcore.Sampler(ledger)
    sampler.picks(0, 1_000)
    before = ledger.memory_bytes
    sampler.picks(0, POSITIONS)
    grown = (ledger.memory_bytes - before) / POSITIONS
    common = {"median": grown, "least": grown, "most": grown, "repeats": 1}
    yield {
        "measure": "memory a sample",
        "domains": 2048,
        "unit": "bytes",
        "must": 0,
        "aim": 0,
    } | common


def sample_idx(repeats: int) -> Iterator[dict[str, object]]:
    """Documents to samples: 10^7 log-normal documents, shuffled, sequences of 4,096 tokens."""
    rng = np.random.default_rng(0)
    num = 10_000_000
    sizes = np.maximum(rng.lognormal(6.7, 1.0, num), 1).astype(np.int32)
    order = rng.permutation(num).astype(np.int32)
    tokens = int(sizes.sum(dtype=np.int64))
    arguments = (sizes, order, 4096, 1, tokens)
    yield compare(
        "build_sample_idx, two threads",
        "",
        {
            "parallel": lambda: mixcore.build_sample_idx(*arguments, threads=2),
            "plain loop": lambda: _core.build_sample_idx(*arguments, True, 1, 32, 1, plain=True),
        },
        {"parallel": num, "plain loop": num},
        repeats,
        must=1.5,
        aim=3,
    )


PARTS = {f.__name__: f for f in (picks, four_fields, megatron, change, look_up, memory, sample_idx)}


def context() -> dict[str, object]:
    """What every row says of the machine and the versions."""
    root = Path(__file__).parent.parent
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(
            [part.strip() for part in line.split(":", 1)]
            for line in info.read_text().splitlines()
            if ":" in line
        )
        cpu = f"{lines.get('model name', cpu)} (family {lines.get('cpu family', '?')})"
    changed = [x for x in dirty.stdout.splitlines() if "bench/results.csv" not in x]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() + ("+" if changed else ""),
        "machine": cpu,
        "cores": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.2f}",
        "versions": f"mixcore {mixcore.__version__}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, {platform.python_compiler()}",
    }


def show(row: dict[str, object]) -> None:
    """Print a row: ratio or median, its spread, and the limits."""
    figure = row.get("ratio", row["median"])
    shown = f"{figure:8.4g}" + ("x" if "ratio" in row else f" {row['unit']}")
    spread = [row.get(f"ratio_{x}", row[x]) for x in ("least", "most")]
    print(
        f"{row['measure']:<36} {row['domains']:>5}  {shown:<14} "
        f"({spread[0]:.4g} to {spread[1]:.4g})  {row['median']:.4g} {row['unit']}"
        f"   must {row['must']}, aim {row['aim']}",
        flush=True,
    )


def write(rows: list[dict[str, object]]) -> None:
    """Append rows to results.csv."""
    fresh = not RESULTS.exists()
    with RESULTS.open("a", newline="") as f:
        writer = csv.DictWriter(f, FIELDS, restval="")
        if fresh:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def main_of(
    doc: str | None,
    parts: dict[str, Callable[[int], Iterator[dict[str, object]]]],
    *,
    repeats: int = 7,
    versions: str = "",
) -> None:
    """The command line of a benchmark: measures the parts, prints and appends their rows.

    Args:
        doc: Of the benchmark, for `--help`.
        parts: Name -> function of the number of repeats that yields rows.
        repeats: If not given on the command line.
        versions: Of what else takes part.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=parts, action="append", help="one part; may be repeated")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    about = context()
    if versions:
        about["versions"] = f"{about['versions']}, {versions}"
    if float(str(about["load"])) > 0.7:
        print(
            f"warning: the machine is busy (load {about['load']}); the figures will be noisy",
            file=sys.stderr,
        )
    rows = []
    for name in options.only or parts:
        for row in parts[name](options.repeats):
            rows.append(about | row)
            show(row)
    if not options.no_write:
        write(rows)


if __name__ == "__main__":
    main_of(__doc__, PARTS)
