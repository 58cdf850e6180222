"""Measures the CUDA sampler and appends the rows to bench/results.csv.

    python bench/bench_cuda.py                    the table: 10^9 picks, 10^6 random positions
    python bench/bench_cuda.py --strategies       both ways through the tree, to settle the default

Each figure is the median of timings between two CUDA events, after an unmeasured call; by turns
with it one CPU thread on a hundredth of the work, and right after it (both together would not fit)
a device-to-device copy that writes the same bytes. Without a GPU it says "not measured" and writes
nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from run import context, show, write

import mixcore
from mixcore import gpu
from mixcore.cli.bench import BATCH, ledger_of

PICKS = 1_000_000_000
LOOK_UPS = 1_000_000
CPU_PART = 100  # the CPU does one part in so many, and its time is scaled
MASKS = {"(domain, draw)": (3, 12, 40, 15), "all four fields": (15, 28, 80, 25)}
DOMAINS = (32, 256, 2048)


def on_gpu(function: Callable[[], object]) -> float:
    """Milliseconds between two events around a call."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = function()
    end.record()
    end.synchronize()
    del result
    return start.elapsed_time(end)


def on_cpu(function: Callable[[], object]) -> float:
    """Milliseconds of a call on the host."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def row(measure: str, domains: int, ours: list[float], other: str, theirs: list[float],
        must: float, aim: float) -> dict[str, object]:  # fmt: skip
    """A row of results.csv: ours in ms, and how many times as long the other took."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "measure": measure, "domains": domains, "unit": "ms",
        "median": statistics.median(ours), "least": min(ours), "most": max(ours),
        "baseline": other, "baseline_median": statistics.median(theirs),
        "ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios),
        "must": must, "aim": aim, "repeats": len(ours),
    }  # fmt: skip


def by_turns(functions: list[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Milliseconds of each, in turn; the first turn is not counted."""
    turns = [[f() for f in functions] for _ in range(repeats + 1)][1:]
    return [list(column) for column in zip(*turns, strict=True)]


def copies(size: int, repeats: int) -> list[float]:
    """Milliseconds of device-to-device copies that write so many bytes."""
    import torch

    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return by_turns([lambda: on_gpu(lambda: target.copy_(source))], repeats)[0]


def picks(repeats: int) -> Iterator[dict[str, object]]:
    """10^9 picks at once, beside one CPU thread and a copy of the same bytes."""
    import torch

    for domains in DOMAINS:
        sampler = mixcore.Sampler(ledger_of(domains))
        for name, (mask, size, must, aim) in MASKS.items():
            fields = [f for i, f in enumerate(mixcore.sampler.FIELDS) if mask >> i & 1]
            part = PICKS // CPU_PART

            def here(f=fields, s=sampler, n=part) -> object:
                return s.picks(0, n, threads=1, fields=f)

            def there(f=fields, s=sampler) -> object:
                return s.picks(0, PICKS, device="cuda", fields=f)

            ours, cpu = by_turns([lambda: on_gpu(there), lambda: on_cpu(here) * CPU_PART], repeats)
            measure = f"cuda picks, 10^9, {name}"
            yield row(measure, domains, ours, "one CPU thread", cpu, must, aim)
            copy = copies(PICKS * size, repeats)
            torch.cuda.empty_cache()
            measure = f"{measure}, against a copy"
            yield row(measure, domains, ours, "device-to-device copy", copy, must, aim)


def look_up(repeats: int) -> Iterator[dict[str, object]]:
    """10^6 random positions, all four fields."""
    import torch

    for domains in DOMAINS:
        sampler = mixcore.Sampler(ledger_of(domains))
        where = np.random.default_rng(0).integers(0, 10**12, LOOK_UPS)
        there = torch.from_numpy(where).cuda()
        plan = sampler._on("cuda")
        functions = [
            lambda p=plan, t=there: on_gpu(lambda: p.at(t, 15)),
            lambda s=sampler, w=where: on_cpu(lambda: s.at(w)),
        ]
        ours, cpu = by_turns(functions, repeats)
        yield row("cuda at, 10^6 random positions", domains, ours, "one CPU thread", cpu, 1, 1)


def strategies(repeats: int) -> Iterator[dict[str, object]]:
    """Both ways through the tree, a tenth of the picks, over threads and shared memory."""
    count = PICKS // 10
    for domains in DOMAINS:
        plan = mixcore.Sampler(ledger_of(domains))._on("cuda")
        for name, (mask, _, must, aim) in MASKS.items():
            tried = [
                {"strategy": s, "threads": t, "shared": k << 10}
                for s in ("walk", "search", "slots")
                for t in (256, 512)
                for k in (0, 48, 112, 224)
            ]
            functions = [
                lambda p=plan, m=mask, o=options: on_gpu(lambda: p.picks(0, count, m, **o))
                for options in [{}, *tried]
            ]
            default, *columns = by_turns(functions, repeats)
            for options, column in zip(tried, columns, strict=True):
                what = f"{options['strategy']}, {options['threads']} threads, {options['shared']} B"
                made = row(f"cuda, 10^8, {name}: {what}", domains, column, "default", default,
                           must / 10, aim / 10)  # fmt: skip
                yield made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--strategies", action="store_true", help="also what is to be settled")
    parser.add_argument("--commit", help="of a copy of the tree that has no history")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    why = gpu.trouble() or gpu.torch_trouble()
    if why is not None:
        print(f"not measured: no GPU ({why})")
        return
    import torch

    driver = gpu.extension().driver_version()
    about = context()
    about |= {
        "machine": f"{torch.cuda.get_device_name()}; {about['machine']}",
        "commit": options.commit or about["commit"],
        "versions": f"{about['versions']}, torch {torch.__version__}, driver CUDA "
        f"{gpu.shown(driver)}, batch {BATCH}",
    }
    parts = [look_up, picks] + ([strategies] if options.strategies else [])
    for part in parts:
        for made in part(options.repeats):
            show(made)
            if not options.no_write:
                write([about | made])  # at once: what was measured is kept if time runs out


if __name__ == "__main__":
    main()
