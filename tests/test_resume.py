"""Take the state, advance past it, build anew, restore: the joined run is the uninterrupted one.

Both loader classes, with and without workers; the ranks of a data-parallel run are simulated in one
process. The uninterrupted run is asked of the ledger alone, so no loader vouches for another.
"""

import copy
import itertools

import pytest

from mixcore import Domain, Ledger, LedgerError, MixBatchSampler, MixDataset, Sampler, piecewise

torch = pytest.importorskip("torch")
stateful = pytest.importorskip("torchdata.stateful_dataloader")
pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes"),
]

DOMAINS = [Domain("web", 50), Domain("code", 21), Domain("math", 7)]
DATASETS = {d.name: [1000 * i + s for s in range(d.size)] for i, d in enumerate(DOMAINS)}
FIELDS = ("position", "domain", "draw", "epoch", "sample", "tokens")
END = 192
PLAIN, STATEFUL = torch.utils.data.DataLoader, stateful.StatefulDataLoader


def make():
    """Weights change at 64 and batches grow at 96: both in the middle of what follows."""
    schedule = piecewise([(64, [1, 1, 8]), (96, None, 32)])
    return Ledger(DOMAINS, [6, 3, 1], batch_size=16, seed=9, schedule=schedule)


def expected(ledger, start=0, stop=END):
    p = Sampler(ledger).picks(start, stop - start)
    columns = [range(start, stop), p.domain, p.draw, p.epoch, p.sample]
    columns.append([1000 * d + s for d, s in zip(p.domain, p.sample, strict=True)])
    return [tuple(map(int, row)) for row in zip(*columns, strict=True)]


class Run:
    """One rank's sampler and loader, built from scratch around a ledger of its own."""

    def __init__(self, kind, ledger, micro, rank=0, world=1, workers=0, **options):
        self.ledger = Ledger.from_bytes(ledger.to_bytes())
        self.batches = MixBatchSampler(self.ledger, micro, rank=rank, world_size=world, end=END)
        if workers:
            options = {"prefetch_factor": 3, **options}
        self.loader = kind(
            MixDataset(self.ledger, DATASETS),
            batch_sampler=self.batches,
            num_workers=workers,
            **options,
        )

    def __iter__(self):
        for batch in self.loader:
            yield list(zip(*(batch[f].tolist() for f in FIELDS), strict=True))


def start(kind, ledger, micro, world, workers, **options):
    return [Run(kind, ledger, micro, r, world, workers, **options) for r in range(world)]


def advance(runs, count):
    """Take `count` micro-batches of each rank; iterators, and the samples in order of position."""
    iterators = [iter(run) for run in runs]
    got = [sample for it in iterators for _ in range(count) for sample in next(it)]
    return iterators, sorted(got)


def finish(iterators):
    return sorted(itertools.chain.from_iterable(b for it in iterators for b in it))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(
    ("workers", "options"), [(0, {}), (1, {}), (3, {}), (3, {"persistent_workers": True})]
)
def test_stateful_loader(workers, world, options):
    """`loader.load_state_dict`, at a place inside a global batch, whatever was prefetched."""
    ledger, micro = make(), 2
    taken = 52 // (micro * world) + 1
    runs = start(STATEFUL, ledger, micro, world, workers, **options)
    iterators, before = advance(runs, taken)
    states = [copy.deepcopy(run.loader.state_dict()) for run in runs]
    for it in iterators:
        next(it), next(it)  # past it
    again = start(STATEFUL, ledger, micro, world, workers, **options)
    for run, state in zip(again, states, strict=True):
        run.loader.load_state_dict(state)
    iterators, middle = advance(again, 3)
    assert before + middle + finish(iterators) == expected(ledger)
    del iterators
    if world == 1 and not options:  # the same loader again, after its iterator
        again[0].loader.load_state_dict(states[0])
        assert before + finish(again) == expected(ledger)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(
    ("workers", "options"), [(0, {}), (1, {}), (3, {}), (3, {"persistent_workers": True})]
)
def test_plain_loader(workers, world, options):
    """`state_dict(consumed)`: the trainer says what it has seen."""
    ledger, micro = make(), 4
    runs = start(PLAIN, ledger, micro, world, workers, **options)
    taken = 48 // (micro * world)
    iterators, before = advance(runs, taken)
    states = [run.batches.state_dict(48) for run in runs]
    for run in runs:
        assert run.batches.position >= 48 + micro * world * (3 * workers - 1)
    for it in iterators:
        next(it), next(it)
    again = start(PLAIN, ledger, micro, world, workers, **options)
    for run, state in zip(again, states, strict=True):
        run.batches.load_state_dict(state)
    assert before + finish(again) == expected(ledger)
    for run in runs:  # the old loaders, told to go back (persistent workers included)
        run.batches.seek(48)
    assert before + finish(runs) == expected(ledger)


SHAPES = [(2, 1, 0), (4, 4, 1), (1, 2, 3), (8, 2, 0), (2, 4, 3)]  # micro, world, workers


@pytest.mark.parametrize("kind", [PLAIN, STATEFUL])
@pytest.mark.parametrize(("old", "new"), list(itertools.pairwise([*SHAPES, SHAPES[0]])))
def test_another_shape(kind, old, new):
    """World size, workers and micro-batch change; any rank's state serves every new rank."""
    ledger, consumed = make(), 80
    runs = start(kind, ledger, *old)
    iterators, before = advance(runs, consumed // (old[0] * old[1]))
    assert before == expected(ledger, 0, consumed)
    last = runs[-1]
    if kind is PLAIN:
        state = last.batches.state_dict(consumed)
    else:
        state = copy.deepcopy(last.loader.state_dict())
    for it in iterators:
        next(it)
    again = start(kind, ledger, *new)
    for run in again:
        run.batches.load_state_dict(state)
    assert before + finish(again) == expected(ledger)


@pytest.mark.parametrize("workers", [0, 3])
def test_a_loaders_state_of_another_shape_is_refused(workers):
    ledger = make()
    run = Run(STATEFUL, ledger, 2, 0, 2, workers)
    advance([run], 4)
    state = run.loader.state_dict()
    other = Run(STATEFUL, ledger, 4, 0, 2, workers)
    other.loader.load_state_dict(state)
    with pytest.raises(ValueError, match=r"got 2 \* 2 for 4 \* 2: hand the state to MixBatchSampl"):
        next(iter(other))
    other = Run(STATEFUL, ledger, 4, 0, 1, workers)  # 4 * 1 is as much as 2 * 2
    other.loader.load_state_dict(state)
    assert finish([other]) == expected(ledger, 16)


@pytest.mark.parametrize("every", [2, 5, 100])
@pytest.mark.parametrize("taken", [0, 1, 9, 10])
def test_rare_snapshots(every, taken):
    """The loader's state is then older than what was consumed, and says by how many batches."""
    ledger = make()
    run = Run(STATEFUL, ledger, 2, workers=2, snapshot_every_n_steps=every)
    iterators, before = advance([run], taken)
    state = copy.deepcopy(run.loader.state_dict())
    del iterators
    same = Run(STATEFUL, ledger, 2, workers=2, snapshot_every_n_steps=every)
    same.loader.load_state_dict(state)
    assert before + finish([same]) == expected(ledger)
    other = start(STATEFUL, ledger, 1, 2, 0)
    for run in other:
        run.batches.load_state_dict(state)
    assert before + finish(other) == expected(ledger)


@pytest.mark.parametrize("workers", [0, 3])
def test_before_the_first_batch_and_after_the_last(workers):
    ledger = make()
    run = Run(STATEFUL, ledger, 4, workers=workers)
    state = copy.deepcopy(run.loader.state_dict())
    assert finish([run]) == expected(ledger)
    again = Run(STATEFUL, ledger, 4, workers=workers)
    again.loader.load_state_dict(state)
    assert finish([again]) == expected(ledger)
    ended = Run(STATEFUL, ledger, 4, workers=workers)
    ended.loader.load_state_dict(again.loader.state_dict())
    assert finish([ended]) == []


# Decisions while loaders prefetch


def play(runs, plan, steps):
    """Train `steps` global batches in lockstep; before step k, decide plan[k] at `fetched`."""
    iterators, got, position, changes = [iter(run) for run in runs], [], 0, []
    for step in range(steps):
        if step in plan:
            fetched = max(run.ledger.fetched for run in runs)
            for run in runs:
                if run.ledger.fetched > position:
                    with pytest.raises(LedgerError, match="already been fetched"):
                        run.ledger.append(position, plan[step])
                assert run.ledger.append(fetched, plan[step]) == fetched
            changes.append(fetched)
        size = runs[0].ledger.batch_at(position)[1]
        for run, it in zip(runs, iterators, strict=True):
            for _ in range(size // (run.batches.micro_batch_size * run.batches.world_size)):
                got += next(it)
        position += size
    return sorted(got), changes


@pytest.mark.parametrize("kind", [PLAIN, STATEFUL])
@pytest.mark.parametrize(
    ("world", "workers", "options"),
    [
        (1, 0, {}),
        (4, 0, {}),
        (1, 3, {}),
        (4, 1, {}),
        (2, 2, {"persistent_workers": True}),
        (2, 1, {"prefetch_factor": 7}),
    ],
)
def test_changes_show_at_their_positions_on_every_rank(kind, world, workers, options):
    ledger = Ledger(DOMAINS, [1, 1, 0], batch_size=8, seed=2)
    runs = start(kind, ledger, 2, world, workers, **options)
    got, changes = play(runs, {3: [0, 0, 1], 9: [1, 0, 0]}, 20)
    first, second = changes
    # Fetched but not trained on: never changed any more.
    ahead = options.get("prefetch_factor", 3) * workers * 2 * world
    assert first >= 24 + ahead // 8 * 8
    assert first < second < 160
    for run in runs:
        assert run.ledger.digest_at(160) == runs[0].ledger.digest_at(160)
        assert got == expected(run.ledger, 0, 160)
    assert {s[1] for s in got[:first]} == {0, 1}
    assert {s[1] for s in got[first:second]} == {2}
    assert {s[1] for s in got[second:]} == {0}


def test_a_decision_not_yet_in_force_survives():
    ledger = make()
    runs = start(STATEFUL, ledger, 4, 2, 2)
    iterators, before = advance(runs, 4)
    for run in runs:
        run.ledger.append(128, [0, 1, 0], reason="later")
    state, saved = copy.deepcopy(runs[0].loader.state_dict()), runs[0].ledger.to_bytes()
    for it in iterators:
        next(it)
    final = Ledger.from_bytes(saved)
    again = start(STATEFUL, final, 2, 4, 0)
    for run in again:
        run.batches.load_state_dict(state)
    joined = before + finish(again)
    assert joined == expected(final)
    assert {s[1] for s in joined[128:]} == {1}
    assert expected(ledger)[:128] == joined[:128]


def test_the_state_of_another_run_is_refused_by_the_loader():
    run = Run(STATEFUL, make(), 4)
    advance([run], 8)
    other = Run(STATEFUL, Ledger(DOMAINS, [1, 1, 1], batch_size=16), 4)
    other.loader.load_state_dict(run.loader.state_dict())
    with pytest.raises(LedgerError, match="the state at position 32 is of another ledger"):
        next(iter(other))


def test_spawned_workers():
    ledger = make()
    run = Run(STATEFUL, ledger, 16, workers=1, multiprocessing_context="spawn")
    assert finish([run]) == expected(ledger)
