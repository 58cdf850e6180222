"""`mixcore bench`: how fast this machine draws, measured side by side in one process."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from mixcore import _core
from mixcore.cli import show
from mixcore.domains import Domain
from mixcore.ledger import Ledger
from mixcore.sampler import Sampler

BATCH = 1024
PAIR = ("domain", "draw")


@dataclass(frozen=True)
class Row:
    """One measure: median, least and most of `repeats` timings, each divided by `count`."""

    measure: str
    domains: int
    unit: str
    median: float
    least: float
    most: float
    count: int
    repeats: int


def weights_of(num_domains: int) -> npt.NDArray[np.float64]:
    """Dirichlet weights, the same in every run."""
    return np.random.default_rng(num_domains).dirichlet(np.ones(num_domains))


def ledger_of(num_domains: int) -> Ledger:
    """A ledger of order balanced with such weights."""
    domains = [Domain(f"d{i}", size=1_000_003) for i in range(num_domains)]
    return Ledger(domains, weights_of(num_domains), batch_size=BATCH, seed=1)


def side_by_side(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each call, in turn, so that a slow moment of the machine hits all of them.

    Every function is called once before, unmeasured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            result = function()
            taken = time.perf_counter() - start
            del result  # outside of the measurement, and before the next function allocates
            if turn:
                seconds[name].append(taken)
    return seconds


def row(measure: str, domains: int, unit: str, seconds: Sequence[float], count: int) -> Row:
    """Summarise timings of one measure; unit "ns" or "ms"."""
    scale = {"ns": 1e9, "ms": 1e3}[unit] / count
    low, high = min(seconds) * scale, max(seconds) * scale
    middle = statistics.median(seconds) * scale
    return Row(measure, domains, unit, middle, low, high, count, len(seconds))


def bulk(num_domains: int, positions: int, repeats: int) -> list[Row]:
    """Nanoseconds a sample: `picks`, numpy's fill of the same arrays, and the greedy builder."""
    sampler = Sampler(ledger_of(num_domains))
    functions: dict[str, Callable[[], object]] = {
        "picks": lambda: sampler.picks(0, positions, threads=1, fields=PAIR),
        "numpy fill": lambda: (np.full(positions, 1, np.int32), np.full(positions, 1, np.int64)),
    }
    counts = dict.fromkeys(functions, positions)
    greedy = getattr(_core, "greedy_plain", None)
    if greedy is not None:
        # Its time a sample does not depend on the number of samples; this many take about 0.2 s.
        size = counts["greedy, plain loop"] = min(positions, max(1, 100_000_000 // num_domains))
        weights = weights_of(num_domains)
        functions["greedy, plain loop"] = lambda: greedy(weights, size)
    taken = side_by_side(functions, repeats)
    return [row(name, num_domains, "ns", s, counts[name]) for name, s in taken.items()]


def look_up(num_domains: int, positions: int, repeats: int) -> list[Row]:
    """Nanoseconds a look-up: one `at` call over random positions below 10^12."""
    sampler = Sampler(ledger_of(num_domains))
    where = np.random.default_rng(0).integers(0, 10**12, positions)
    taken = side_by_side({"at": lambda: sampler.at(where, fields=PAIR)}, repeats)
    return [row("at", num_domains, "ns", taken["at"], positions)]


def change(num_domains: int, repeats: int) -> list[Row]:
    """Milliseconds: `append` at 10^12 and later, no file attached, and the first batch after it."""
    ledger = ledger_of(num_domains)
    sampler = Sampler(ledger)
    fresh = iter(np.random.default_rng(1).dirichlet(np.ones(num_domains), repeats + 1))

    def once() -> None:
        position = max(10**12, ledger.pieces[-1].start + BATCH)
        sampler.picks(ledger.append(position, next(fresh)), BATCH, threads=1)

    taken = side_by_side({"append": once}, repeats)
    return [row("append and first batch", num_domains, "ms", taken["append"], 1)]


def run(positions: int, repeats: int) -> Iterator[list[Row]]:
    """All measures, one after another."""
    for num_domains in (32, 256, 2048):
        yield bulk(num_domains, positions, repeats)
    for num_domains in (22, 1000):
        yield look_up(num_domains, min(positions, 1_000_000), repeats)
    yield change(2048, repeats)


@click.command("bench", epilog="\b\nExample:\n  mixcore bench --repeats 9")
@click.option("--positions", type=click.IntRange(1, 10**9), default=10_000_000, show_default=True)
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(positions: int, repeats: int, json_: bool) -> None:
    """Measure picks, look-ups and weight changes on this machine, one thread, order balanced."""
    rows: list[Row] = []
    with show.progress() as bar:
        for made in bar.track(run(positions, repeats), total=6, description="measuring"):
            rows += made
    if json_:
        facts: dict[str, Any] = {"rows": [asdict(r) for r in rows]}
        show.as_json(facts)
        return
    columns = ["measure", "domains", "median", "least", "most"]
    cells = [
        [r.measure, str(r.domains)] + [f"{x:.4g} {r.unit}" for x in (r.median, r.least, r.most)]
        for r in rows
    ]
    out = show.console()
    title = f"Time a sample, a look-up, a change (of {repeats} repeats)"
    out.print(show.table(title, columns, cells))
    if not any(r.measure.startswith("greedy") for r in rows):
        out.print("note: this build has no plain greedy builder to compare with")
