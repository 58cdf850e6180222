"""`mixcore plan`: what a `mix.yaml` amounts to, before the run. Exact: counted, never estimated."""

from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.progress import Progress
from rich.text import Text

from mixcore._checks import MAX_POSITION
from mixcore.cli import plan_megatron, show
from mixcore.config import Config, load_config
from mixcore.errors import ArgumentError, CapError
from mixcore.ledger import Ledger
from mixcore.sampler import Sampler
from mixcore.segment import Segment, segments

CHUNK = 1 << 20  # positions that a sequential order is walked through at a time
LEAF = 1 << 14  # positions that are searched by looking at all of them; more for many domains
SHOWN = 8  # names or weights in one line of text
GOOD_EPOCHS = 4  # Muennighoff et al. 2023, "Scaling Data-Constrained Language Models"


@click.command(
    "plan",
    epilog="\b\nExample:\n  mixcore plan mix.yaml --train-samples 10000000\n"
    "  mixcore plan --megatron -- --data-path 0.7 web 0.3 code --train-iters 1000 ...",
)
@click.argument("mix_yaml", nargs=-1, type=click.UNPROCESSED, metavar="MIX_YAML")
@click.option(
    "--megatron",
    is_flag=True,
    help="Instead of a mix.yaml, after --: the arguments of a Megatron-LM training script.",
)
@click.option(
    "--train-samples",
    type=click.IntRange(1, MAX_POSITION - 1),
    help="Length of the run in samples; instead of the one in the file.",
)
@click.option(
    "--segments",
    "limit",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Show at most so many segments.",
)
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
@click.pass_context
def command(
    context: click.Context,
    mix_yaml: tuple[str, ...],
    megatron: bool,
    train_samples: int | None,
    limit: int,
    json_: bool,
) -> None:
    """Show what a mix.yaml amounts to, per domain and exactly, and refuse what cannot work.

    With --megatron: what a Megatron-LM command line amounts to, with --mix flags or without.
    """
    if megatron:
        config, ledger = plan_megatron.ledger_of(mix_yaml)
    else:
        config = load_config(_only_file(context, mix_yaml))
        ledger = config.ledger()
    with show.progress() as bar:
        facts = plan_facts(config, ledger, train_samples, limit, bar)
    if megatron:
        facts["file"] = "Megatron command line"
    if json_:
        show.as_json(facts)
    else:
        _print(facts)


def _only_file(context: click.Context, words: tuple[str, ...]) -> str:
    """The one file that is named, checked as click checks an argument."""
    argument = next(p for p in context.command.params if p.name == "mix_yaml")
    if not words:
        raise click.MissingParameter(ctx=context, param=argument)
    if len(words) > 1:
        raise click.UsageError(f"Got unexpected extra arguments ({' '.join(words[1:])})")
    file = click.Path(exists=True, dir_okay=False).convert(words[0], argument, context)
    return str(file)


def plan_facts(
    config: Config, ledger: Ledger, train_samples: int | None, limit: int, bar: Progress
) -> dict[str, Any]:
    """The facts that `mixcore plan` prints.

    Positions: `first_epoch_ends` is that of the last sample of epoch 0, `cap_reached` the first
    one at which the domain is no longer drawn.

    Raises:
        ArgumentError: No length, or a length that the run cannot have.
    """
    train_samples = train_samples or config.train_samples
    if train_samples is None:
        raise ArgumentError(
            f"train_samples is neither in {config.file} nor given with --train-samples"
        )
    sampler = Sampler(ledger)
    end, batch_size = ledger.batch_at(train_samples)
    if end == 0:
        raise ArgumentError(
            f"train_samples must be at least batch_size ({batch_size}), got {train_samples}"
        )
    if ledger.order == "balanced":
        _check_end(ledger, end, train_samples)
        epoch_ends = _search(sampler, end, bar)
    else:
        epoch_ends = _walk(sampler, end, train_samples, bar)
    counts = sampler.counts(end)
    caps = dict((name, p) for p, name in ledger.cap_events(end))
    spans = _Spans(ledger, end, limit)
    tokens = config.tokens_per_sample

    def moment(position: int | None) -> dict[str, int] | None:
        if position is None:
            return None
        return {"step": ledger.step_of_position(position), "position": position}

    domains = [
        {
            "name": d.name,
            "size": d.size,
            "cap": d.cap,
            "weight": float(spans.first.weights[i]),
            "achieved": int(counts[i]) / end,
            "samples": int(counts[i]),
            "tokens": None if tokens is None else int(counts[i]) * tokens,
            "epochs": None if d.size is None else int(counts[i]) / d.size,
            "first_epoch_ends": moment(epoch_ends.get(i)),
            "cap_reached": moment(caps.get(d.name)),
        }
        for i, d in enumerate(ledger.domains)
    ]
    return {
        "file": str(config.file),
        "order": ledger.order,
        "seed": ledger.seed,
        "on_cap": ledger.on_cap,
        "train_samples": train_samples,
        "samples": end,
        "steps": ledger.step_of_position(end),
        "tokens": None if tokens is None else end * tokens,
        "deviation_bound": spans.bound,
        "memory_bytes": ledger.memory_bytes,
        "domains": domains,
        "num_segments": spans.count,
        "segments": spans.shown,
        "notes": _notes(ledger, domains, spans, train_samples, end),
    }


def _check_end(ledger: Ledger, end: int, train_samples: int) -> None:
    found = ledger.end(end)
    if found is None or found[0] >= end:
        return
    position, name = found
    cap = {d.name: d.cap for d in ledger.domains}.get(name)
    who = f"domain {name!r} reaches its cap of {cap:,} samples" if name else "every cap is reached"
    raise ArgumentError(
        f"the run would end at step {ledger.step_of_position(position)} (position {position}), "
        f"before train_samples ({train_samples}): {who} (on_cap: {ledger.on_cap})"
    )


def _last_new(sampler: Sampler) -> npt.NDArray[np.int64]:
    """The draw that ends each domain's first epoch; -1 for open-ended ones."""
    return np.array([(d.size or 0) - 1 for d in sampler.ledger.domains], dtype=np.int64)


def _look(sampler: Sampler, start: int, stop: int, last: npt.NDArray[np.int64]) -> dict[int, int]:
    """First epochs that end at positions start to stop - 1: domain -> position of the last sample.

    In order balanced a batch draws its samples in an order of its own, so that the last draw of an
    epoch need not be at its last position: both are in the same batch.
    """
    p = sampler.picks(start, stop - start, fields=("domain", "draw"))
    found = {}
    for i in np.flatnonzero(p.draw == last[p.domain]).tolist():
        d = int(p.domain[i])
        first, size = sampler.ledger.batch_at(start + i)
        batch = slice(i, first + size - start)
        later = np.flatnonzero((p.domain[batch] == d) & (p.draw[batch] <= last[d]))
        found[d] = start + i + int(later[-1])
    return found


def _search(sampler: Sampler, end: int, bar: Progress) -> dict[int, int]:
    """First epochs that end before `end`, by bisection: order balanced counts at any position."""
    last = _last_new(sampler)
    leaf = max(LEAF, 16 * len(last))  # about as dear as one count of all domains
    task = bar.add_task("first epochs", total=end)
    found: dict[int, int] = {}
    todo = [(0, end, np.flatnonzero((last >= 0) & (sampler.counts(end) > last)))]
    while todo:
        start, stop, wanted = todo.pop()
        if len(wanted) and stop - start > leaf:
            middle = (start + stop) // 2
            before = sampler.counts(middle)[wanted] > last[wanted]
            todo += [(start, middle, wanted[before]), (middle, stop, wanted[~before])]
            continue
        if len(wanted):
            first = sampler.ledger.batch_at(start)[0]
            final, size = sampler.ledger.batch_at(stop - 1)
            found |= _look(sampler, first, final + size, last)  # whole batches
        bar.advance(task, stop - start)
    return found


def _walk(sampler: Sampler, end: int, train_samples: int, bar: Progress) -> dict[int, int]:
    """The same for the sequential orders: every position once, from the first on."""
    last = _last_new(sampler)
    found: dict[int, int] = {}
    task = bar.add_task(f"order {sampler.ledger.order}", total=end)
    for start in range(0, end, CHUNK):
        stop = min(start + CHUNK, end)
        try:
            found |= _look(sampler, start, stop, last)
        except CapError:
            _check_end(sampler.ledger, end, train_samples)
            raise
        bar.update(task, completed=stop)
    return found


class _Spans:
    """One pass over the segments below `end`: the first few, and what is said of all of them."""

    def __init__(self, ledger: Ledger, end: int, limit: int) -> None:
        names = [d.name for d in ledger.domains]
        self.first = ledger.explain(0)
        self.count = 0
        self.bound: float | None = None
        self.shown: list[dict[str, Any]] = []
        self.expected = np.zeros(len(names))  # samples by the weights alone
        for s in segments(ledger, end):
            self.count += 1
            if s.bound is not None:
                self.bound = max(self.bound or 0.0, s.bound)
            stop = end if s.end is None else min(s.end, end)
            self.expected += s.weights * (stop - s.start)
            if self.count <= limit:
                self.shown.append(self._facts(ledger, s, stop, names))

    @staticmethod
    def _facts(ledger: Ledger, s: Segment, stop: int, names: list[str]) -> dict[str, Any]:
        return {
            "start": s.start,
            "end": stop,
            "step": ledger.step_of_position(s.start),
            "batch_size": s.batch_size,
            "kind": s.kind,
            "decision": s.decision,
            "bound": s.bound,
            "weights": dict(zip(names, s.weights.tolist(), strict=False)),
        }


def _notes(
    ledger: Ledger, domains: list[dict[str, Any]], spans: _Spans, train_samples: int, end: int
) -> list[str]:
    """What a user should know, though nothing of it hinders the run."""
    notes = []
    if end < train_samples:
        notes.append(
            f"batch_size does not divide train_samples: the last {train_samples - end:,} samples "
            "are no full batch and are left out"
        )
    paused, tiny, repeated = [], [], []
    for d, expected in zip(domains, spans.expected.tolist(), strict=True):
        if d["samples"] == 0 and expected == 0:
            paused.append(d["name"])
        elif d["samples"] == 0:
            tiny.append(f"{d['name']} ({expected:.2g} of one)")
        elif d["epochs"] is not None and d["epochs"] > GOOD_EPOCHS:
            repeated.append(f"{d['name']} ({d['epochs']:.1f})")
    for names, what in (
        (paused, "no sample, because the weight is 0 throughout"),
        (tiny, "no sample, because the weight is too small for this length"),
        (
            repeated,
            f"more than {GOOD_EPOCHS} epochs; up to about {GOOD_EPOCHS} are nearly as good as new "
            "data (Muennighoff et al. 2023)",
        ),
    ):
        if names:
            notes.append(f"{what}: {_some(names)}")
    last = ledger.pieces[-1].start
    if last >= end:
        notes.append(f"the schedule goes on to position {last:,}, where the run has ended")
    return notes


def _some(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _print(facts: dict[str, Any]) -> None:
    out = show.console()
    number = show.number
    bound = facts["deviation_bound"]
    lines = [
        f"{facts['file']}: order {facts['order']}, seed {facts['seed']}, on_cap {facts['on_cap']}",
        f"{number(facts['steps'])} steps, {number(facts['samples'])} samples"
        + ("" if facts["tokens"] is None else f", {number(facts['tokens'])} tokens"),
        f"{number(facts['memory_bytes'])} bytes held"
        + (
            ""
            if bound is None
            else f"; while weights stay, counts are within {bound:.2f} of their ideal"
        ),
    ]
    out.print(Text("\n".join(lines)))
    columns = ["domain", "size", "weight", "achieved", "samples", "tokens", "epochs", "data ends"]
    rows = []
    for d in facts["domains"]:
        epochs = "-" if d["epochs"] is None else f"{d['epochs']:.3f}"
        numbers = [number(d[key]) for key in ("size", "weight", "achieved", "samples", "tokens")]
        rows.append([d["name"], *numbers, epochs, _ends(d)])
    out.print(show.table("Domains", columns, rows))
    rows = []
    for s in facts["segments"]:
        weights = [f"{name} {w:.4g}" for name, w in s["weights"].items()]
        numbers = [number(s[key]) for key in ("step", "start", "end", "batch_size", "bound")]
        rows.append([s["kind"], *numbers, _some(weights)])
    if rows:
        hidden = facts["num_segments"] - len(rows)
        title = "Segments" + (f" (the first {len(rows)}; {hidden:,} more)" if hidden else "")
        columns = ["kind", "from step", "position", "to", "batch size", "bound", "weights"]
        out.print(show.table(title, columns, rows))
    for note in facts["notes"]:
        out.print(Text(f"note: {note}"))


def _ends(domain: dict[str, Any]) -> str:
    """Where the domain's cap or its first epoch ends, for people."""
    for key, what in (("cap_reached", "cap"), ("first_epoch_ends", "epoch 1")):
        if domain[key] is not None:
            return f"{what}: step {domain[key]['step']:,}, position {domain[key]['position']:,}"
    return "-"
