"""Prove from a run's own logs that no sample was lost or repeated, whatever happened on the way.

The sampler is never asked: what was trained on is what the trainer wrote down while it trained.

    $ python examples/demo/proof.py demo-out/log
    PASS  every position exactly once: 38,400 positions, 0 ... 38,399
    ...

Exit code 1 if anything fails.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import decisions
import numpy as np
from history import COLUMNS, Check, History, LogError, Samples, in_force, read
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

ALLOWED = 4.0  # samples between a domain's count and its ideal, over any history of changes


def check_all(history: History, ledger: Path) -> list[Check]:
    """Run every check; none stops the others. A steered run has decisions to prove, too."""
    checks = (positions, slices, draws, epochs, content, replay, shares)
    more = decisions.check_all(history, ledger) if history.method else []
    return [*(check(history) for check in checks), *more]


def positions(history: History) -> Check:
    """The effective history holds every position of the run exactly once."""
    batch, steps = int(history.start["batch_size"]), int(history.start["steps"])
    seen = history.effective.position
    inside = seen[(seen >= 0) & (seen < batch * steps)]
    times = np.bincount(inside, minlength=batch * steps)
    lost, repeated = np.flatnonzero(times == 0), np.flatnonzero(times > 1)
    misplaced = np.flatnonzero(seen // batch != history.effective.step)
    ok = not (len(lost) or len(repeated) or len(misplaced))
    detail = f"{len(seen):,} positions, 0 ... {batch * steps - 1:,}"
    if not ok:
        detail = (
            f"lost {some(lost)}; repeated {some(repeated)}; in a wrong step {some(seen[misplaced])}"
        )
    return Check("every position exactly once", ok, detail)


def slices(history: History) -> Check:
    """In every step of every attempt the ranks' slices are disjoint, equal, and fill the batch."""
    batch, bad = int(history.start["batch_size"]), []
    worlds = []
    for attempt in history.attempts:
        worlds.append(attempt.world)
        steps: dict[int, list[set[int]]] = {}
        for lines in attempt.ranks.values():
            for line in lines:
                steps.setdefault(line["step"], []).append(set(line["position"]))
        for step, parts in steps.items():
            # The last step before a kill may be missing on some ranks: it is no history.
            whole = len(parts) == attempt.world or step == attempt.last_step
            fair = all(len(part) == batch // attempt.world for part in parts)
            if not whole or not fair or len(set().union(*parts)) != sum(map(len, parts)):
                bad.append(f"attempt {attempt.number} step {step}")
    detail = " then ".join(f"{world} rank{'s' * (world > 1)}" for world in worlds)
    return Check("slices of the ranks disjoint", not bad, f"bad: {bad[:3]}" if bad else detail)


def draws(history: History) -> Check:
    """At every batch boundary each domain's draws so far are exactly 0 ... n-1."""
    bad = []
    for d, name in enumerate(history.names):
        mine = of_domain(history, d)
        # Sorted by step, then draw: the sequence is 0, 1, 2 ... only if every prefix is complete.
        order = np.lexsort((mine.draw, mine.step))
        wrong = np.flatnonzero(mine.draw[order] != np.arange(len(order)))
        if len(wrong):
            first = order[wrong[0]]
            bad.append(
                f"{name}: draw {mine.draw[first]} at position {mine.position[first]},"
                f" where {wrong[0]} is due"
            )
    known = np.isin(history.effective.domain, np.arange(len(history.names)))
    if not known.all():
        bad.append(f"unknown domain number at position {some(history.effective.position[~known])}")
    detail = f"0 ... n-1 in {len(history.names)} domains at {history.start['steps']:,} boundaries"
    return Check("draws without gap or repeat", not bad, "; ".join(bad) or detail)


def epochs(history: History) -> Check:
    """Within an epoch a sample comes once at most; every epoch but the last is complete."""
    bad, complete = [], 0
    for d, (name, size) in enumerate(zip(history.names, history.sizes, strict=True)):
        mine = of_domain(history, d)
        if np.any(mine.epoch != mine.draw // size):
            bad.append(f"{name}: epoch is not draw // {size}")
        if np.any((mine.sample < 0) | (mine.sample >= size)):
            bad.append(f"{name}: sample outside 0 ... {size - 1}")
            continue
        last = int(mine.epoch.max(initial=0))
        for epoch in range(last + 1):
            times = np.bincount(mine.sample[mine.epoch == epoch], minlength=size)
            lost, repeated = np.flatnonzero(times == 0), np.flatnonzero(times > 1)
            complete += epoch < last
            if len(repeated) or (epoch < last and len(lost)):
                bad.append(f"{name} epoch {epoch}: repeated {some(repeated)}, lost {some(lost)}")
    detail = f"{complete} complete epochs hold each of their samples once"
    return Check("epochs complete, no repeats", not bad, "; ".join(bad[:3]) or detail)


def content(history: History) -> Check:
    """A sample number stands for the same tokens in every epoch and every attempt (CRC-32)."""
    rows = history.everything
    known: dict[tuple[int, int], int] = {}
    bad, again = [], 0
    for key, crc in zip(zip(rows.domain, rows.sample, strict=True), rows.crc, strict=True):
        if key not in known:
            known[key] = crc
        elif known[key] == crc:
            again += 1
        else:
            bad.append(f"domain {key[0]} sample {key[1]}")
    detail = f"{len(known):,} samples, {again:,} seen again, with the same tokens"
    return Check("tokens behind a sample fixed", not bad, f"differ: {bad[:3]}" if bad else detail)


def replay(history: History) -> Check:
    """What was trained on twice, before the kill and after it, was the same to the last bit.

    Where a method made a decision anew and the losses led it elsewhere, the positions from there on
    are rightly not the same, and are not compared.
    """
    rows = history.everything
    order = np.lexsort((rows.attempt, rows.position))
    rows = rows.select(order)
    twice = np.flatnonzero(rows.position[1:] == rows.position[:-1])
    parts = parting(history)
    keys = zip(rows.attempt[twice].tolist(), rows.attempt[twice + 1].tolist(), strict=True)
    limit = np.array([parts[key] for key in keys], np.int64)
    apart = int((rows.position[twice] >= limit).sum())
    twice = twice[rows.position[twice] < limit]
    differ = np.zeros(len(twice), bool)
    for name in COLUMNS:
        column = getattr(rows, name)
        differ |= column[twice] != column[twice + 1]
    bad = rows.position[twice[differ]]
    resumed = len(history.attempts) > 1
    detail = f"{len(np.unique(rows.position[twice])):,} positions trained on before and after"
    if apart:
        detail += f", {apart:,} after a decision that came out otherwise"
    if not resumed:
        detail = "no attempt was resumed"
    if len(bad):
        detail = f"differs at position {some(bad)}"
    return Check("replayed = trained before", not len(bad) and (resumed or not len(twice)), detail)


def parting(history: History) -> dict[tuple[int, int], int]:
    """Return the first position at which two attempts' decisions differ, by their numbers.

    An attempt with itself parts at no position: 2^62.
    """
    parts = {}
    for i, a in enumerate(history.attempts):
        for b in history.attempts[i:]:
            parts[a.number, b.number] = 1 << 62
            if history.method is None:  # nothing is decided anew
                continue
            ours, theirs = in_force(a.record), in_force(b.record)
            ends = {line["at"] for line in (*ours, *theirs)}
            odd = [at for at in sorted(ends) if weights_at(ours, at) != weights_at(theirs, at)]
            if odd:
                parts[a.number, b.number] = odd[0]
    return parts


def weights_at(lines: list[dict[str, Any]], position: int) -> list[float] | None:
    """Return the last weights decided for a position or one before it, None: those of the start."""
    return next((x["weights"] for x in reversed(lines) if x["at"] <= position), None)


def shares(history: History) -> Check:
    """The counts follow the plan, computed here in floats from the schedule, at every boundary."""
    ideal = np.cumsum(planned(history), axis=0) * history.start["batch_size"]
    off = np.abs(achieved(history) - ideal)
    step, domain = np.unravel_index(off.argmax(), off.shape)
    detail = f"off by at most {off.max():.2f} samples (allowed {ALLOWED:g}): "
    detail += f"{history.names[domain]}, step {step}"
    name = f"achieved shares = {word(history)}"
    return Check(name, bool(off.max() <= ALLOWED), detail)


def planned(history: History) -> NDArray[np.float64]:
    """Return the weights that the schedule and the live decisions ask for, [steps, domains].

    From each anchor the schedule goes on a line to the next, in stairs of `every` steps.
    """
    start = history.start
    at = np.array([step for step, _ in start["anchors"]])
    weights = np.array([weights for _, weights in start["anchors"]], float)
    steps = np.arange(int(start["steps"]))
    anchor = at[np.searchsorted(at, steps, side="right") - 1]
    evaluated = anchor + (steps - anchor) // start["every"] * start["every"]
    plan = np.stack([np.interp(evaluated, at, column) for column in weights.T], axis=1)
    for decision in history.decisions:
        plan[decision["at"] // start["batch_size"] :] = decision["weights"]
    return plan / plan.sum(axis=1, keepdims=True)


def word(history: History) -> str:
    """Say whose the weights are: of a plan made before the run, or decided in it."""
    return "decided" if history.method else "planned"


def achieved(history: History) -> NDArray[np.int64]:
    """Return the samples of each domain up to and with each step, [steps, domains]."""
    counts = np.zeros((int(history.start["steps"]), len(history.names)), np.int64)
    rows = history.effective
    inside = (rows.step < len(counts)) & (rows.domain >= 0) & (rows.domain < len(history.names))
    np.add.at(counts, (rows.step[inside], rows.domain[inside]), 1)
    return counts.cumsum(axis=0)


def of_domain(history: History, domain: int) -> Samples:
    """Return the effective samples of one domain."""
    return history.effective.select(history.effective.domain == domain)


def some(values: NDArray[np.int64]) -> str:
    """Name the first of some numbers, and how many there are."""
    if not len(values):
        return "none"
    return f"{', '.join(map(str, values[:3]))}{' ...' if len(values) > 3 else ''} ({len(values)})"


def notes(history: History) -> Iterator[str]:
    """Say what else happened: where each attempt began and ended, what was put aside."""
    for attempt in history.attempts:
        line = f"attempt {attempt.number}: steps {attempt.first_step} ... {attempt.last_step} "
        line += f"in {attempt.world} rank{'s' * (attempt.world > 1)}"
        yield line + (f", {attempt.torn} unfinished line put aside" if attempt.torn else "")
    if history.method:
        yield (
            f"{history.method}: {len(history.record)} decisions on the record, "
            f"{len(history.decisions)} came into force, every one with its reason in ledger.json"
        )
        return
    for decision in history.decisions:
        yield f"live decision at position {decision['at']:,}: {decision['reason']}"


def table(history: History) -> Table:
    """Build the table of domains: size, samples, epochs, shares, loss."""
    counts = achieved(history)[-1]
    total = int(history.start["batch_size"]) * int(history.start["steps"])
    plan = planned(history).mean(axis=0)
    part = max(1, len(history.tokens) // 20)
    result = Table(
        title="What the model was trained on",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in (
        "domain",
        "size",
        "samples",
        "epochs",
        word(history),
        "achieved",
        "off by",
        "loss",
    ):
        result.add_column(column, justify="left" if column == "domain" else "right", no_wrap=True)
    for d, name in enumerate(history.names):
        first, last = loss(history, d, slice(0, part)), loss(history, d, slice(-part, None))
        size = history.sizes[d]
        result.add_row(
            *(name, f"{size:,}", f"{counts[d]:,}", f"{counts[d] / size:.2f}"),
            *(f"{plan[d]:.2%}", f"{counts[d] / total:.2%}", f"{counts[d] - plan[d] * total:+.2f}"),
            f"{first:.2f} -> {last:.2f}",
        )
    return result


def loss(history: History, domain: int, steps: slice) -> float:
    """Return a domain's mean loss per token over some steps, NaN where it was not drawn."""
    tokens = history.tokens[steps, domain].sum()
    return float(history.loss_sum[steps, domain].sum() / tokens) if tokens else float("nan")


def prove(folder: Path, console: Console) -> bool:
    """Print table and verdicts for the logs in `folder`; return whether everything holds."""
    try:
        history = read(folder)
    except LogError as error:
        console.print(f"[bold red]FAIL[/]  logs readable: {error}", soft_wrap=True)
        return False
    console.print(table(history))
    for note in notes(history):
        console.print(f"      {note}", highlight=False, soft_wrap=True)
    checks = check_all(history, folder.parent / "ledger.json")
    for check in checks:
        verdict = "[bold green]PASS[/]" if check.ok else "[bold red]FAIL[/]"
        console.print(f"{verdict}  {check.name}: {check.detail}", soft_wrap=True, highlight=False)
    return all(check.ok for check in checks)


def main() -> int:
    """Run the proof on a folder of logs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="folder with attempt-*-rank-*.jsonl")
    return 0 if prove(parser.parse_args().log, Console()) else 1


if __name__ == "__main__":
    sys.exit(main())
