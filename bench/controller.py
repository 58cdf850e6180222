"""Measures what steering a run costs; prints the rows, and appends them to bench/results.csv.

    python bench/controller.py [--only overhead] [--repeats 7] [--no-write]

`overhead`: observe and step of a controller with 32 domains and update_every 10, a decision and
its line in the ledger's file (fsynced) included, for every training step of the demo's full-size
model, against that step, on one rank. `ranks`: the same on two ranks that talk over gloo, one core
each, every rank with half of the batch; a training step ends with a barrier, as with the reduction
of gradients. `mixer`: what DeepSpeed's, Transformers' and Lightning's adapters call, on one rank.
`decisions`: one update of each method that looks at losses, at 1,000 domains; and, for ODM, all of
a decision: signals, guards, reason, shares, append. ADO's refit is a row of its own, for one
domain and without a limit: it may run in a thread (fit_lag).
"""

import itertools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the demo does: before torch is imported

import torch
from run import compare, main_of

import mixcore
from mixcore.distributed import torch_broadcast, torch_reduce
from mixcore.trainers.mixer import Mixer

sys.path.append(str(Path(__file__).parents[1] / "examples" / "demo"))  # behind: it has a run.py too

from model import GPT, sample_losses
from plan import make_plan

WINDOW = 10  # update_every
START = 20_000  # steps, so that ODM no longer explores alone: its weights change every time
MICRO_BATCH = 16
LOSS_BASED: dict[str, tuple[str, dict[str, Any]]] = {
    "odm, paper": ("odm", {}),
    "odm, code": ("odm", {"variant": "code"}),
    "odm, exp3": ("odm", {"variant": "exp3"}),
    "loss_proportional": ("loss_proportional", {}),
    "toremi": ("toremi", {"variant": "code"}),
    "doremi": ("doremi", {}),
    "skillit": ("skillit", {}),
    "aioli": ("aioli", {"update_steps": 10_000}),
    "sheared": ("sheared", {}),
    "velocitune": ("velocitune", {}),
}


def domains_of(number: int) -> list[mixcore.Domain]:
    """Domains that no benchmark uses up."""
    return [mixcore.Domain(f"d{i}", size=1_000_003) for i in range(number)]


def train_step(world_size: int) -> tuple[Callable[[], object], int]:
    """One step of the demo's full-size model on one of some ranks, and the samples of all."""
    plan = make_plan(["web"])
    torch.manual_seed(plan.seed)
    model = GPT(plan.vocab, plan.width, plan.layers, plan.heads, plan.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate)
    tokens = torch.randint(plan.vocab, (plan.batch_size // world_size, plan.length + 1))

    def step() -> None:
        optimizer.zero_grad()
        for part in tokens.split(MICRO_BATCH):
            sample_losses(model, part).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if world_size > 1:
            torch.distributed.barrier()

    return step, plan.batch_size


def overhead(repeats: int) -> Iterator[dict[str, object]]:
    """A controller's part of a training step."""
    yield overhead_on(0, 1, repeats)


def ranks(repeats: int) -> Iterator[dict[str, object]]:
    """The same with two ranks in step."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        spawn = multiprocessing.get_context("spawn")
        other = spawn.Process(target=one_of_two, args=(1, store, repeats))
        other.start()
        yield one_of_two(0, store, repeats)
        other.join()
        assert other.exitcode == 0


def one_of_two(rank: int, store: str, repeats: int) -> dict[str, object]:
    """One rank of a pair; both make the same calls in the same order."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        return overhead_on(rank, 2, repeats)
    finally:
        torch.distributed.destroy_process_group()


def mixer(repeats: int) -> Iterator[dict[str, object]]:
    """`Mixer.observe` of every micro-batch and `Mixer.step`, as under another trainer."""
    step, batch = train_step(1)
    domains = domains_of(32)
    ledger = mixcore.Ledger(domains, [1] * 32, batch_size=batch, seed=1)
    datasets = {d.name: range(d.size or 0) for d in domains}
    method = mixcore.method("loss_proportional", domains=domains)
    steered = Mixer(ledger, datasets, method, WINDOW)
    steered.bind(micro_batch_size=MICRO_BATCH, micro_batches=batch // MICRO_BATCH)
    sampler = mixcore.Sampler(ledger)
    losses = torch.from_numpy(np.random.default_rng(0).uniform(100, 500, MICRO_BATCH))
    tokens = torch.full((MICRO_BATCH,), 64)

    def batches(first: int) -> list[dict[str, torch.Tensor]]:
        picks = sampler.picks(first, batch * WINDOW)
        made = zip(
            torch.arange(first, first + batch * WINDOW).split(MICRO_BATCH),
            torch.from_numpy(picks.domain.astype(np.int64)).split(MICRO_BATCH),
            strict=True,
        )
        return [{"position": p, "domain": d} for p, d in made]

    def steer() -> None:
        for number, part in enumerate(given.pop(), start=1):
            steered.observe(part, losses, tokens)
            if number % (batch // MICRO_BATCH) == 0:
                steered.step()

    def train() -> None:
        step()
        given.append(batches(steered.position))  # a loader's work, and not the mixer's

    given = [batches(0)]
    with tempfile.TemporaryDirectory() as folder:
        ledger.attach(Path(folder) / "ledger.json")
        yield compare(
            "mixer, a step of the demo",
            32,
            {"observe + step": steer, "training step": train},
            {"observe + step": WINDOW, "training step": 1},
            repeats,
            must=0.005,
            aim=0.002,
            slower=False,
            unit="us",
        )
    assert ledger.num_decisions > repeats, f"{ledger.num_decisions} decisions"


def overhead_on(rank: int, world_size: int, repeats: int) -> dict[str, object]:
    """The row of one rank."""
    step, batch = train_step(world_size)
    talk: dict[str, Any] = {}
    if world_size > 1:
        talk = {"rank": rank, "world_size": world_size}
        talk |= {"reduce": torch_reduce(), "broadcast": torch_broadcast()}
    domains = domains_of(32)
    with tempfile.TemporaryDirectory() as folder:
        ledger = mixcore.Ledger(domains, [1] * 32, batch_size=batch, seed=1)
        if rank == 0:
            ledger.attach(Path(folder) / "ledger.json")
        method = mixcore.method("odm", domains=domains)
        controller = mixcore.Controller(ledger, method, update_every=WINDOW, num_workers=2, **talk)
        random = np.random.default_rng(rank)
        parts = [
            (
                torch.from_numpy(random.integers(0, 32, MICRO_BATCH)),
                torch.from_numpy(random.uniform(100, 500, MICRO_BATCH).astype(np.float32)),
                torch.full((MICRO_BATCH,), 64),
            )
            for _ in range(batch // world_size // MICRO_BATCH)
        ]
        position = itertools.count((START + 1) * batch, batch)

        def steer() -> None:
            for _ in range(WINDOW):
                for part in parts:
                    controller.observe(*part)
                controller.step(next(position))

        where = "" if world_size == 1 else f", {world_size} ranks over gloo"
        row = compare(
            f"controller, a step of the demo{where}",
            32,
            {"observe + step": steer, "training step": step},
            {"observe + step": WINDOW, "training step": 1},
            repeats,
            must=0.005,
            aim=0.002,
            slower=False,
            unit="us",
        )
        made = len(ledger.decisions) - 1
        assert made == repeats + 1, f"{made} decisions for {repeats + 1} windows"
        return row


def signals(random: np.random.Generator, number: int, step: int) -> mixcore.Signals:
    """All that a method which looks at losses may need."""
    tokens = random.integers(1, 5_000, number)
    loss = random.uniform(1.5, 4.0, number)
    return mixcore.Signals(
        step=step,
        loss_sum=loss * tokens,
        tokens=tokens,
        draws=tokens // 50,
        total_draws=tokens * 10,
        weights=np.full(number, 1 / number),
        val_loss=loss,
        reference_loss=loss * 0.9,
        target_loss=loss * 0.8,
        excess_loss=loss * 0.1,
    )


def decisions(repeats: int, number: int = 1_000, times: int = 20) -> Iterator[dict[str, object]]:
    """Milliseconds a decision at 1,000 domains."""
    domains = domains_of(number)
    random = np.random.default_rng(0)
    for title, (name, options) in LOSS_BASED.items():
        method = mixcore.method(name, domains=domains, **options)
        yield updates(f"decision, {title}", method, random, times, repeats, first=1)
    yield from ado(domains, random, times, repeats)
    yield whole(domains, random, repeats)


def updates(
    measure: str,
    method: Any,
    random: np.random.Generator,
    times: int,
    repeats: int,
    first: int,
) -> dict[str, object]:
    """One row: `method.update` on signals that were made before."""
    number = len(method.domains)
    steps = range(first, first + (repeats + 1) * times)
    prepared = iter([signals(random, number, step) for step in steps])

    def update() -> None:
        for _ in range(times):
            method.update(next(prepared))

    return compare(
        measure, number, {"update": update}, {"update": times}, repeats, must=5, aim=1, unit="ms"
    )


def ado(
    domains: list[mixcore.Domain], random: np.random.Generator, times: int, repeats: int
) -> Iterator[dict[str, object]]:
    """ADO between two fits, with laws to follow; then the fit of one domain to 100 points."""
    options = {"start_step": 0, "ignore_steps": 0, "subsample": 1, "update_interval": 100_000}
    method = mixcore.method("ado", domains=domains, **options)
    method._laws = np.tile([1.0, 0.5, 0.3], (len(domains), 1))  # what a fit finds is no matter here
    yield updates("decision, ado", method, random, times, repeats, first=1)
    few = mixcore.method("ado", domains=domains[:4], **options)
    for step in range(1, 101):
        few.update(signals(random, 4, step))
    fit = compare(
        "ado, a fit of 100 points",
        1,
        {"fit": lambda: few._fit(100)},
        {"fit": 4},
        min(repeats, 3),
        must=0,
        aim=0,
        unit="ms",
    )
    yield fit | {"must": "-", "aim": "-"}


def whole(
    domains: list[mixcore.Domain], random: np.random.Generator, repeats: int
) -> dict[str, object]:
    """All of a controller's decision, the ledger in memory."""
    batch = 10 * len(domains)
    ledger = mixcore.Ledger(domains, [1] * len(domains), batch_size=batch, seed=1)
    method = mixcore.method("odm", domains=domains, variant="code")
    controller = mixcore.Controller(ledger, method, update_every=1)
    ids = np.arange(batch) % len(domains)
    position = itertools.count((START + 1) * batch, batch)

    def decide() -> None:
        controller.observe(ids, random.uniform(100, 500, batch), np.full(batch, 64))
        assert controller.step(next(position)) is not None

    return compare(
        "observe, decide and append, odm",
        len(domains),
        {"decide": decide},
        {"decide": 1},
        repeats,
        must=5,
        aim=3,
        unit="ms",
    )


PARTS = {f.__name__: f for f in (overhead, ranks, mixer, decisions)}


if __name__ == "__main__":
    main_of(__doc__, PARTS, repeats=7, versions=f"torch {torch.__version__}")
