"""`mixcore explain`: what one step of a run sees, under which segment, decided by whom and why."""

from typing import Any

import click
from rich.text import Text

from mixcore._checks import MAX_POSITION
from mixcore.cli import show
from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.ledger import Ledger
from mixcore.sampler import FIELDS, Sampler

KINDS = {
    "piece": "as decided",
    "cap": "the batch that draws exactly what a capped domain has left",
    "redistributed": "as decided, without the domains that are used up",
}


@click.command(
    "explain",
    epilog="\b\nExample:\n  mixcore explain ledger.json --step 1000\n"
    "  mixcore explain ledger.json --position 512000 --json",
)
@click.argument("ledger_file", metavar="LEDGER", type=click.Path(exists=True, dir_okay=False))
@click.option("--step", type=click.IntRange(0, MAX_POSITION), help="Step, counted from 0.")
@click.option("--position", type=click.IntRange(0, MAX_POSITION - 1), help="Any position in it.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Show at most so many of the step's samples.",
)
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(
    ledger_file: str, step: int | None, position: int | None, limit: int, json_: bool
) -> None:
    """Show which domains and samples a step sees, and which decision says so."""
    facts = explain_facts(Ledger.load(ledger_file), step, position, limit)
    if json_:
        show.as_json({"file": ledger_file} | facts)
    else:
        _print(ledger_file, facts)


def explain_facts(
    ledger: Ledger, step: int | None, position: int | None, limit: int
) -> dict[str, Any]:
    """The facts that `mixcore explain` prints.

    Raises:
        ArgumentError: Not exactly one of step and position.
        CapError: The run ends before that step.
    """
    if (step is None) == (position is None):
        raise ArgumentError(f"give --step or --position, got step={step}, position={position}")
    asked = position
    if step is not None:
        position = ledger.position_of_step(step)
    assert position is not None
    first, batch_size = ledger.batch_at(position)
    sampler = Sampler(ledger)
    after = sampler.counts(first + batch_size)  # first of all: beyond the end it says so
    before = sampler.counts(first)
    segment = ledger.explain(first)
    decision = ledger.decisions[segment.decision]
    used_up = [name for p, name in ledger.cap_events(first) if p <= first]
    return {
        "step": ledger.step_of_position(first),
        "position": first,
        "batch_size": batch_size,
        "order": ledger.order,
        "seed": ledger.seed,
        "segment": {
            "start": segment.start,
            "end": segment.end,
            "first_step": ledger.step_of_position(segment.start),
            "kind": segment.kind,
            "bound": segment.bound,
        },
        "decision": {
            "number": segment.decision,
            "position": decision.position,
            "author": decision.author,
            "reason": decision.reason,
            "scheduled": decision.schedule is not None
            and ledger.piece_at(first).start >= decision.schedule.steps[0].position,
        },
        "domains": [
            {
                "name": d.name,
                "weight": weight,
                "in_step": int(after[i] - before[i]),
                "before": int(before[i]),
                "epoch": _epoch(d, int(before[i])),
                "used_up": d.name in used_up,
            }
            for i, (d, weight) in enumerate(
                zip(ledger.domains, segment.weights.tolist(), strict=False)
            )
        ],
        "asked": None if asked is None else _samples(sampler, asked, 1)[0],
        "samples": _samples(sampler, first, min(limit, batch_size)),
    }


def _epoch(domain: Domain, draw: int) -> int | None:
    """The epoch of a draw; None where there is none, past the cap."""
    if domain.cap is not None and draw >= domain.cap:
        return None
    return 0 if domain.size is None else draw // domain.size


def _samples(sampler: Sampler, start: int, count: int) -> list[dict[str, Any]]:
    p = sampler.picks(start, count)
    names = [d.name for d in sampler.ledger.domains]
    columns = [getattr(p, f).tolist() for f in FIELDS]
    return [
        {"position": start + i, "domain": names[d], "draw": draw, "epoch": epoch, "sample": sample}
        for i, (d, draw, epoch, sample) in enumerate(zip(*columns, strict=True))
    ]


def _print(file: str, facts: dict[str, Any]) -> None:
    out, number = show.console(), show.number
    segment, decision = facts["segment"], facts["decision"]
    first, size = facts["position"], facts["batch_size"]
    to = "on" if segment["end"] is None else f"to {segment['end'] - 1:,}"
    by = f" by {decision['author']}" if decision["author"] else ""
    planned = ", its schedule" if decision["scheduled"] else ""
    lines = [
        f"{file}: order {facts['order']}, seed {facts['seed']}",
        f"step {facts['step']:,}: positions {first:,} to {first + size - 1:,} ({size:,} samples)",
        f"segment: positions {segment['start']:,} {to}, from step {segment['first_step']:,}: "
        + KINDS[segment["kind"]],
        f"decision {decision['number']}, at position {decision['position']:,}{by}{planned}: "
        + (decision["reason"] or "no reason given"),
    ]
    if facts["asked"] is not None:
        lines.append("position {position:,}: {domain}, sample {sample:,}".format(**facts["asked"]))
    out.print(Text("\n".join(lines)))
    rows = [
        [
            d["name"] + (" (used up)" if d["used_up"] else ""),
            *(number(d[key]) for key in ("weight", "in_step", "before", "epoch")),
        ]
        for d in facts["domains"]
    ]
    out.print(show.table("Domains", ["domain", "weight", "in step", "before", "epoch"], rows))
    if facts["samples"]:
        title = f"Samples (the first {len(facts['samples'])} of {size:,})"
        keys = ("domain", "position", "draw", "epoch", "sample")
        rows = [[s["domain"], *(number(s[key]) for key in keys[1:])] for s in facts["samples"]]
        out.print(show.table(title, keys, rows))
