"""Makes a run's ledger: from a command line, from our own checkpoint, or from a stock one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_patch.request import ABSENT, Request, built_by_megatron
from megatron_patch.state import NOTES
from mixcore import Domain, Ledger
from mixcore.decision import Decision
from mixcore.errors import ArgumentError, LedgerError
from mixcore.schedule import ResolvedSchedule, Step
from mixcore.trainers.settings import KnownDomain, Settings, load_settings

AUTHOR = "megatron command line"


def settings_for(args: Any, request: Request) -> Settings:
    """Flags and `mix.yaml`, with the domains and batch sizes that Megatron's own flags name.

    Raises:
        ArgumentError: Everything wrong with them, in one message.
    """
    given = {
        "batch_size": request.batch_sizes[0][1],
        "train_samples": request.train_samples,
        "tokens_per_sample": request.seq_length,
    }
    settings = load_settings(args, given=given, domains=_known(request))
    config = settings.config
    if config.seed not in (0, request.seed):
        raise ArgumentError(f"seed is {config.seed}, but --seed is {request.seed}: leave it out")
    points = () if config.schedule is None else config.schedule.points
    if any(p.batch_size is not None for p in points):
        raise ArgumentError("schedule: batch sizes are Megatron's: use --step-batch-size-schedule")
    return settings


def new_ledger(request: Request, settings: Settings) -> Ledger:
    """The ledger of a run that begins now."""
    config = settings.config
    pinned = config.order == "megatron"
    notes: dict[str, Any] = {"prefixes": dict(zip(request.names, request.prefixes, strict=True))}
    if pinned:
        sizes = zip(request.names, built_by_megatron(request), strict=True)
        notes["built"] = {name: list(asdict(built).values()) for name, built in sizes}
    ledger = Ledger(
        config.domains,
        config.weights,
        batch_size=request.batch_sizes[0][1],
        seed=request.seed,
        order=config.order,
        on_cap=config.on_cap,
        tokens_per_sample=request.seq_length,
        schedule=config.schedule,
        notes={NOTES: notes},
    )
    if pinned and config.schedule is None:
        if request.weights is None:
            _normalise_once(ledger, [b[2] for b in notes["built"].values()], config.weights)
        elif request.weights == config.weights:
            _decide_by(ledger, request.blended())
    _decide_batch_sizes(ledger, request, settings)
    return ledger


def _normalise_once(ledger: Ledger, sizes: list[int], weights: tuple[float, ...] | None) -> None:
    """Without weights Megatron divides the sizes by their sum once, not twice: the last bit."""
    if weights is None or any(s != w for s, w in zip(sizes, weights, strict=True)):
        return  # mix.yaml has weights
    floats = np.array(sizes, dtype=np.float64)
    _decide_by(ledger, floats / np.sum(floats))


def _decide_by(ledger: Ledger, floats: npt.NDArray[np.float64] | None) -> None:
    if floats is not None:
        ledger._append_shares(0, ledger.piece_at(0).shares, floats, replace_future=True)


def _decide_batch_sizes(ledger: Ledger, request: Request, settings: Settings) -> None:
    """Put Megatron's step batch sizes, all known now, into the ledger.

    Raises:
        ArgumentError: They change among changes of the weights that are known as well, but not as
            single points.
    """
    if len(request.batch_sizes) == 1:
        return
    pieces = ledger.pieces
    steps = [Step(p.start, p.shares, p.floats, None) for p in pieces]
    steps += [Step(at, None, None, size) for at, size in request.batch_sizes[1:]]
    schedule = settings.config.schedule
    if schedule is not None and schedule.kind == "linear":
        raise ArgumentError(
            "schedule: a linear schedule cannot be combined with --step-batch-size-schedule; "
            "use a piecewise one, or the method 'schedule'"
        )
    merged: dict[int, Step] = {}
    for step in sorted(steps, key=lambda s: s.position):
        before = merged.get(step.position)
        if before is not None:
            shares = step.shares if step.shares is not None else before.shares
            floats = step.floats if step.floats is not None else before.floats
            size = step.batch_size or before.batch_size
            step = Step(step.position, shares, floats, size)
        merged[step.position] = step
    first = merged.pop(0)
    plan = ResolvedSchedule("piecewise", 1, tuple(merged.values()))
    ledger._commit(
        Decision(
            0,
            first.shares,
            first.floats,
            request.batch_sizes[0][1],
            schedule=plan,
            replace_future=True,
            reason="--step-batch-size-schedule",
            author=AUTHOR,
        )
    )


def adopted_ledger(saved: Request, request: Request, settings: Settings, consumed: int) -> Ledger:
    """The ledger of a run that stock Megatron has trained up to `consumed` samples.

    It begins at 0 with the blend that the checkpoint's own arguments name, in order `megatron`, and
    decides the present command line's weights at `consumed`.

    Raises:
        ArgumentError: Another order is asked for, or something differs that Megatron's own order of
            samples depends on.
    """
    config = settings.config
    if config.order != "megatron":
        raise ArgumentError(
            f"the checkpoint was written without --mix flags, so the run's order is Megatron's: "
            f"use --mix-order megatron, got {config.order!r}"
        )
    for flag in ("seed", "seq_length", "split"):
        before, now = getattr(saved, flag), getattr(request, flag)
        if before != now:
            raise ArgumentError(
                f"--{flag.replace('_', '-')} was {before} in the checkpoint and is {now} now: the "
                f"samples already trained on could not be told from the others"
            )
    begun = load_settings(
        None,
        given={"batch_size": _batch_size(saved, consumed), "tokens_per_sample": saved.seq_length},
        section={"order": "megatron"},
        domains=_known(saved),
    )
    first = replace(saved, batch_sizes=((0, begun.config.batch_size),))
    ledger = new_ledger(first, begun)
    continue_with(ledger, request, settings, consumed, None)
    return ledger


def _known(request: Request) -> list[KnownDomain]:
    """The corpora as domains; without weights in proportion to their sizes, as Megatron does."""
    weights = request.weights or [float(c.samples) for c in request.corpora]
    both = zip(request.corpora, weights, strict=True)
    return [KnownDomain(c.name, c.samples, w) for c, w in both]


def _batch_size(saved: Request, consumed: int) -> int:
    """A batch size whose boundaries hold `consumed`; the picks of order megatron do not care."""
    return math.gcd(saved.batch_sizes[-1][1], consumed) if consumed else saved.batch_sizes[0][1]


def continue_with(
    ledger: Ledger,
    request: Request,
    settings: Settings,
    consumed: int,
    before: Mapping[str, Any] | None,
) -> None:
    """Decide at `consumed` what the present command line asks for and the last one did not.

    Args:
        ledger: The run's, as of the checkpoint.
        request: Of the present command line.
        settings: Likewise.
        consumed: Samples trained on.
        before: `asked` of the last command line; None: unknown, the weights in force count.

    Raises:
        LedgerError, ArgumentError: What is asked for contradicts the run.
    """
    config = settings.config
    _check_same_run(ledger, request, settings)
    now = asked(request, settings)
    names = {d.name for d in ledger.domains}
    added = [d for d in config.domains if d.name not in names]
    wanted = [p for p in request.batch_sizes if p[0] <= consumed][-1][1]
    size = wanted if ledger.batch_at(consumed)[1] != wanted else None
    plan = [p for p in request.batch_sizes if p[0] > consumed]
    changed = before is None or any(before[k] != now[k] for k in ("weights", "schedule"))
    if before is not None and before["batch_sizes"] == now["batch_sizes"]:
        size, plan = None, []
    if changed or added:
        _decide_weights(ledger, request, settings, consumed, added)
    if size is not None or plan:
        _decide_sizes(ledger, consumed, size, plan)


def _decide_sizes(
    ledger: Ledger, consumed: int, size: int | None, plan: Sequence[tuple[int, int]]
) -> None:
    """Append batch sizes from `consumed` on; weights decided for later stay, from the next batch.

    Args:
        ledger: The run's.
        consumed: Where the change is.
        size: Samples a step from there on; None: as before.
        plan: (position, samples a step) of later changes, instead of those decided before.
    """
    current, *later = ledger.pieces_from(consumed)
    steps = [Step(at, None, None, n) for at, n in plan]
    for before, piece in zip([current, *later], later, strict=False):
        if not np.array_equal(before.shares, piece.shares):
            steps.append(Step(piece.start, piece.shares, piece.floats, None))
    steps.sort(key=lambda step: step.position)
    ledger._commit(
        Decision(
            consumed,
            current.shares,
            current.floats,
            size,
            schedule=ResolvedSchedule("piecewise", 1, tuple(steps)) if steps else None,
            replace_future=True,
            reason="batch size of the resumed run",
            author=AUTHOR,
        )
    )


def _decide_weights(
    ledger: Ledger,
    request: Request,
    settings: Settings,
    consumed: int,
    added: Sequence[Domain],
) -> None:
    """Append the weights (and the schedule from here on) of the present command line."""
    config = settings.config
    fresh = new_ledger(request, settings)  # what a run with this command line would do from here on
    place = {d.name: i for i, d in enumerate(config.domains)}
    names = [d.name for d in ledger.domains] + [d.name for d in added]

    def spread(piece: Any) -> tuple[Any, Any]:
        shares = np.zeros(len(names), np.uint64)
        floats = None if piece.floats is None else np.zeros(len(names))
        for number, name in enumerate(names):
            if name in place:
                shares[number] = piece.shares[place[name]]
                if floats is not None:
                    floats[number] = piece.floats[place[name]]
        return shares, floats

    first, *later = fresh.pieces_from(consumed)
    changes = [
        Step(p.start, *spread(p), None)
        for before, p in zip([first, *later], later, strict=False)
        if not np.array_equal(before.shares, p.shares)
    ]
    shares, floats = spread(first)
    current = ledger.piece_at(consumed)
    future = [p for p in ledger.pieces if p.start > consumed]
    same = np.array_equal(shares[: len(current.shares)], current.shares) and not added
    if same and not changes and not future:
        return
    ledger._commit(
        Decision(
            consumed,
            shares,
            floats,
            add=tuple(added),
            schedule=ResolvedSchedule("piecewise", 1, tuple(changes)) if changes else None,
            replace_future=bool(future),
            reason="weights of the resumed run",
            author=AUTHOR,
        )
    )
    notes = ledger.notes[NOTES]
    for corpus in request.corpora:
        notes["prefixes"][corpus.name] = corpus.prefix
        if "built" in notes:
            notes["built"].setdefault(corpus.name, list(asdict(ABSENT).values()))


def _check_same_run(ledger: Ledger, request: Request, settings: Settings) -> None:
    order = settings.config.order
    if ledger.order != order:
        raise ArgumentError(
            f"the run has the order {ledger.order!r}, which cannot change: got --mix-order {order}"
        )
    if ledger.seed != request.seed:
        raise ArgumentError(f"the run has --seed {ledger.seed}, got {request.seed}")
    if ledger.tokens_per_sample != request.seq_length:
        raise ArgumentError(
            f"the run has --seq-length {ledger.tokens_per_sample}, got {request.seq_length}"
        )
    known = {d.name: d for d in ledger.domains}
    for domain in settings.config.domains:
        mine = known.get(domain.name)
        if mine is not None and mine != domain:
            raise LedgerError(
                f"domain {domain.name!r} was {mine} when the run began and is {domain} now: its "
                f"files or caps have changed"
            )


def asked(request: Request, settings: Settings) -> dict[str, Any]:
    """What a command line says of the mixture, in plain values: to see at a resume what changed."""
    config = settings.config
    schedule = None
    if config.schedule is not None:
        points = [[p.at, _plain(p.weights)] for p in config.schedule.points]
        schedule = [config.schedule.kind, config.schedule.unit, config.schedule.every, points]
    weights = None if config.weights is None else list(config.weights)
    return {
        "weights": [request.names, weights],
        "schedule": schedule,
        "batch_sizes": [list(p) for p in request.batch_sizes],
    }


def _plain(weights: Any) -> Any:
    if weights is None or isinstance(weights, Mapping):
        return None if weights is None else dict(weights)
    return [float(w) for w in weights]
