"""Plans over stages: pretraining, annealing, continued training, with one ledger handed on.

`pipeline.yaml`:

    params: 1_000_000_000          # optional: FLOPs of the stages
    stages:
      - {name: pretrain, mix: pretrain.yaml}
      - {name: anneal, mix: anneal.yaml}

Each `mix` is an ordinary configuration with train_samples. While tokens_per_sample stays, all
stages are one ledger: a stage is a decision at the position where it begins, so that draws, epochs
and caps go on through all of them. Where tokens_per_sample changes, samples are other samples: a
new ledger begins, and what its domains have left of their caps is carried over in tokens.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from mixcore import costs
from mixcore._layers import file_layer, merge
from mixcore.config import Config, load_config
from mixcore.domains import Domain
from mixcore.errors import ArgumentError, LedgerError
from mixcore.ledger import Ledger
from mixcore.methods.base import number
from mixcore.sampler import Sampler
from mixcore.schedule import Point, Schedule


@dataclass(frozen=True)
class Stage:
    """One stage: its name and its configuration, with train_samples."""

    name: str
    config: Config


@dataclass(frozen=True)
class Pipeline:
    """Stages in order; build one with `load_pipeline`."""

    file: Path
    stages: tuple[Stage, ...]
    params: float | None = None


@dataclass(frozen=True, eq=False)
class Handover:
    """A ledger that is ready for a stage.

    Attributes:
        ledger: With the stage's decision.
        start: Position at which the stage begins in that ledger.
        end: Position at which it ends.
        fresh: Whether the ledger begins with this stage.
        used_tokens: Domain -> tokens drawn in all stages before; what caps are counted with.
    """

    ledger: Ledger
    start: int
    end: int
    fresh: bool
    used_tokens: dict[str, int]


def load_pipeline(path: str | os.PathLike[str]) -> Pipeline:
    """Read a `pipeline.yaml` and all configurations that it names.

    Raises:
        ArgumentError: A wrong key or value, or stages that do not fit together.
    """
    file = Path(path)
    merged, check, _ = merge([file_layer(file)])
    body = check.mapping("", merged, ("stages", "params")) or {}
    entries = check.sequence("stages", body.get("stages")) if body else []
    stages: list[Stage] = []
    for i, entry in enumerate(entries):
        where = f"stages[{i}]"
        one = check.mapping(where, entry, ("name", "mix")) or {}
        name, mix = one.get("name"), one.get("mix")
        if not isinstance(name, str) or not name or not isinstance(mix, str) or not mix:
            check.add(where, f"{where} needs a name and a mix, got {entry!r}")
        elif name in [s.name for s in stages]:
            check.add(where, f"{where}.name is {name!r}, as is that of an earlier stage")
        else:
            found = check.call(f"{where}.mix", lambda _, mix=mix: load_config(file.parent / mix))
            if found is not None:
                stages.append(Stage(name, found))
    params = body.get("params")
    if params is not None:
        params = check.call("params", lambda p: number(p, params, 0, above=True))
    check.raise_found(str(file))
    for stage in stages:
        if stage.config.train_samples is None:
            raise ArgumentError(f"{file}: stage {stage.name!r} needs train_samples in its mix")
    for before, stage in pairwise(stages):
        _check_pair(before, stage)
    _check_domains(stages)
    return Pipeline(file, tuple(stages), params)


def _check_pair(before: Stage, stage: Stage) -> None:
    for key in ("seed", "order", "on_cap"):
        old, new = getattr(before.config, key), getattr(stage.config, key)
        if old != new:
            raise ArgumentError(
                f"stage {stage.name!r} has {key} {new!r}, stage {before.name!r} {old!r}: one run "
                f"has one {key}"
            )


def _check_domains(stages: Sequence[Stage]) -> None:
    known: dict[str, tuple[Domain, Stage]] = {}
    for stage in stages:
        for d in stage.config.domains:
            first, where = known.setdefault(d.name, (d, stage))
            same_cut = where.config.tokens_per_sample == stage.config.tokens_per_sample
            if d.max_epochs != first.max_epochs or (same_cut and d.size != first.size):
                raise ArgumentError(
                    f"domain {d.name!r} has size {d.size} and max_epochs {d.max_epochs} in stage "
                    f"{stage.name!r}, {first.size} and {first.max_epochs} in {where.name!r}: a cap "
                    f"counts over all stages, so both must be the same"
                )


def begin(stage: Stage) -> Handover:
    """The first stage's ledger."""
    assert stage.config.train_samples is not None
    ledger = stage.config.ledger()
    return Handover(ledger, 0, _end(ledger, 0, stage), True, {})


def hand_over(
    ledger: Ledger, position: int, stage: Stage, used_tokens: dict[str, int] | None = None
) -> Handover:
    """Go on with a stage where another has ended; what was drawn there stays counted.

    Example:
        >>> ledger = Ledger.load("pretrain.json")
        >>> ready = hand_over(ledger, consumed, pipeline.stages[1])
        >>> ready.ledger.save("pretrain.json")    # the same file goes on, unless ready.fresh

    Args:
        ledger: As it came out of the stage before, live decisions included.
        position: Samples consumed, a batch boundary.
        stage: The next one.
        used_tokens: Tokens drawn per domain in ledgers before this one (`Handover.used_tokens`).

    Raises:
        LedgerError: The stage contradicts the ledger; the ledger is as it was.
        ArgumentError: A domain that the stage asks for is used up, or position is no boundary.
    """
    config = stage.config
    first, size = ledger.batch_at(position)
    if first != position:
        raise ArgumentError(
            f"position must be a batch boundary, got {position}; the batch there is "
            f"[{first}, {first + size})"
        )
    for key in ("seed", "order", "on_cap"):
        if getattr(ledger, key) != getattr(config, key):
            raise LedgerError(
                f"the ledger has {key} {getattr(ledger, key)!r}, stage {stage.name!r} "
                f"{getattr(config, key)!r}"
            )
    if ledger.tokens_per_sample == config.tokens_per_sample:
        _append(ledger, position, stage)
        used = dict(used_tokens or {})
        return Handover(ledger, position, _end(ledger, position, stage), False, used)
    if ledger.tokens_per_sample is None or config.tokens_per_sample is None:
        raise LedgerError(f"stage {stage.name!r}: tokens_per_sample must be known on both sides")
    used = dict(used_tokens or {})
    counts = Sampler(ledger).counts(position).tolist()
    for d, n in zip(ledger.domains, counts, strict=False):
        used[d.name] = used.get(d.name, 0) + n * ledger.tokens_per_sample
    made = _fresh(config, stage, used)
    return Handover(made, 0, _end(made, 0, stage), True, used)


def _append(ledger: Ledger, position: int, stage: Stage) -> None:
    config = stage.config
    known = {d.name: d for d in ledger.domains}
    for d in config.domains:
        old = known.get(d.name)
        if old is not None and (old.size, old.cap) != (d.size, d.cap):
            raise LedgerError(
                f"domain {d.name!r} has size {old.size} and cap {old.cap} in the ledger, "
                f"{d.size} and {d.cap} in stage {stage.name!r}"
            )
    added = tuple(d for d in config.domains if d.name not in known)
    names = [*known, *(d.name for d in added)]
    mine = [d.name for d in config.domains]

    def over_all(weights: Any) -> list[float]:
        pairs = weights if isinstance(weights, dict) else dict(zip(mine, weights, strict=True))
        return [float(pairs.get(name, 0.0)) for name in names]

    schedule, weights = config.schedule, config.weights
    if schedule is not None:
        per = config.tokens_per_sample if schedule.unit == "tokens" else 1
        points = tuple(
            Point(
                p.at + position * (per or 1),
                None if p.weights is None else over_all(p.weights),
                p.batch_size,
            )
            for p in schedule.points
        )
        weights = weights or schedule.points[0].weights  # type: ignore[assignment]
        schedule = Schedule(schedule.kind, points, schedule.unit, schedule.every)
    ledger.append(
        position,
        over_all(weights),
        batch_size=config.batch_size,
        add=added,
        schedule=schedule,
        reason=f"stage {stage.name}",
        author="pipeline",
        replace_future=True,  # a schedule of the stage before ends with it
    )


def _fresh(config: Config, stage: Stage, used: dict[str, int]) -> Ledger:
    """A ledger whose caps are what earlier stages have left of them."""
    tokens = config.tokens_per_sample or 1
    domains = []
    for d, weight in zip(
        config.domains, config.weights or [1.0] * len(config.domains), strict=True
    ):
        if d.cap is None or d.size is None:
            domains.append(d)
            continue
        left = (d.cap * tokens - used.get(d.name, 0)) // tokens
        if left < 1 and (weight or config.schedule is not None or config.method is not None):
            raise ArgumentError(
                f"stage {stage.name!r} asks for domain {d.name!r}, which has nothing left of its "
                f"{d.max_epochs} epochs: {used[d.name]:,} of {d.cap * tokens:,} tokens are drawn"
            )
        # Half a sample more, so that rounding to a whole number of samples gives `left`.
        epochs = (left + 0.5) / d.size if left >= 1 else 1 / d.size
        domains.append(Domain(d.name, d.size, epochs))
    return replace(config, domains=tuple(domains)).ledger()


def _end(ledger: Ledger, start: int, stage: Stage) -> int:
    samples = stage.config.train_samples
    assert samples is not None
    return ledger.batch_at(start + samples)[0]


def pipeline_facts(pipeline: Pipeline) -> dict[str, Any]:
    """What all stages amount to: draws, tokens, epochs over all, caps reached, FLOPs.

    Raises:
        ArgumentError: A stage cannot be run to its end.
    """
    stages: list[dict[str, Any]] = []
    totals: dict[str, dict[str, float]] = {}
    state: Handover | None = None
    for stage in pipeline.stages:
        if state is None:
            state = begin(stage)
        else:
            state = hand_over(state.ledger, state.end, stage, state.used_tokens)
        ledger = state.ledger
        found = ledger.end(state.end)
        if found is not None and found[0] < state.end:
            who = f"domain {found[1]!r} reaches its cap" if found[1] else "every cap is reached"
            raise ArgumentError(
                f"stage {stage.name!r} would end at position {found[0]}, before {state.end}: {who}"
            )
        sampler = Sampler(ledger)
        drawn = sampler.counts(state.end)
        drawn[: len(ledger.domains)] -= sampler.counts(state.start)
        tokens = stage.config.tokens_per_sample
        samples = state.end - state.start
        spent = None
        if pipeline.params is not None and tokens is not None:
            spent = costs.flops("train", pipeline.params, samples * tokens)
        reached = {name: p for p, name in ledger.cap_events(state.end) if p > state.start}
        domains = []
        for d, n in zip(ledger.domains, drawn.tolist(), strict=True):
            total = totals.setdefault(d.name, {"epochs": 0.0, "tokens": 0})
            epochs = None if d.size is None else n / d.size
            total["epochs"] += epochs or 0.0
            total["tokens"] += n * (tokens or 0)
            domains.append(
                {
                    "name": d.name,
                    "samples": n,
                    "epochs": epochs,
                    "epochs_so_far": None if d.size is None else total["epochs"],
                    "cap_reached": reached.get(d.name),
                }
            )
        stages.append(
            {
                "name": stage.name,
                "start": state.start,
                "end": state.end,
                "new_ledger": state.fresh,
                "samples": samples,
                "tokens": None if tokens is None else samples * tokens,
                "flops": spent,
                "domains": domains,
            }
        )
    return {
        "file": str(pipeline.file),
        "params": pipeline.params,
        "stages": stages,
        "totals": totals,
    }
