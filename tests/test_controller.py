"""The controller: one decision on every rank, at the declared step, and nothing lost on resume."""

import itertools
import json
import threading

import numpy as np
import pytest

import mixcore
from mixcore.controller import default_lag
from mixcore.guards import Floor, MaxChange, RepeatCap
from mixcore.methods.base import Method, carried, log, softmax

NUM, BATCH = 4, 64


class Hedge(Method):
    """A dynamic method whose weights depend on every window so far: p ∝ p exp(loss / 10)."""

    name = "hedge"
    family = "dynamic adaptive"
    needs = ("loss_sum", "tokens")
    update_every = 5
    paper = "none"
    state_fields = ("last",)

    def __init__(self, domains, **options):
        super().__init__(domains, **options)
        self.last = np.zeros(len(self.domains))
        self.seen = []

    def _update(self, signals):
        self.seen.append(signals)
        self.last = carried(signals.loss, self.last)
        return softmax(log(self._weights) + self.last / 10)


def make(order="balanced", method=None, **options):
    """A controller of its own ledger."""
    domains = [mixcore.Domain(f"d{i}", 10_000) for i in range(NUM)]
    ledger = mixcore.Ledger(domains, [4, 3, 2, 1], batch_size=BATCH, seed=7, order=order)
    return mixcore.Controller(ledger, method or Hedge(domains), **options)


def losses_of(positions, domains):
    """Losses as a function of the sample alone: whoever sees it, measures the same."""
    tokens = 5 + positions % 7
    losses = (1 + domains + np.sin(positions)) * tokens
    return losses.astype(np.float32), tokens


def train(controller, start, steps, rank=0, world_size=1, shuffle=None):
    """Steps of a job with `world_size` ranks, this one being `rank`."""
    sampler = mixcore.Sampler(controller.ledger)
    made = []
    for step in range(start, start + steps):
        positions = np.arange(step * BATCH, (step + 1) * BATCH)[rank::world_size]
        if shuffle is not None:
            shuffle.shuffle(positions)
        controller.ledger.mark_fetched((step + 1) * BATCH)
        domains = sampler.at(positions).domain
        losses, tokens = losses_of(positions, domains)
        for part in np.array_split(np.arange(len(positions)), 2):  # two micro-batches
            controller.observe(domains[part], losses[part], tokens[part])
        made.append(controller.step((step + 1) * BATCH))
    return made


class Ring:
    """Reduction and broadcast between threads, adding up in another order each time."""

    def __init__(self, world_size, seed=0):
        self.world_size = world_size
        self.slots = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=20)
        self.random = np.random.default_rng(seed)
        self.order = np.arange(world_size)

    def share(self, rank, value):
        self.slots[rank] = value
        if self.barrier.wait() == 0:
            self.order = self.random.permutation(self.world_size)
        self.barrier.wait()
        values = [self.slots[r] for r in self.order]
        self.barrier.wait()
        return values

    def options(self, rank):
        def reduce(array):
            values = self.share(rank, array.copy())
            return sum(values[1:], values[0])

        def broadcast(data):
            return next(v for v in self.share(rank, data) if v is not None)

        return {
            "rank": rank,
            "world_size": self.world_size,
            "reduce": reduce,
            "broadcast": broadcast,
        }

    def run(self, function):
        """function(rank) on all ranks; their results or what they raised."""
        results = [None] * self.world_size

        def body(rank):
            try:
                results[rank] = function(rank)
            except Exception as e:
                results[rank] = e

        threads = [threading.Thread(target=body, args=(r,)) for r in range(self.world_size)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        return results


# One rank ----------------------------------------------------------------------------------------


def test_decides_at_every_multiple_and_takes_effect_after_the_lag():
    controller = make(update_every=5, lag_steps=3)
    made = train(controller, 0, 20)
    wanted = [(s + 3) * BATCH if s % 5 == 0 else None for s in range(1, 21)]
    assert made == wanted
    assert [p.start for p in controller.ledger.pieces] == [0] + [w for w in wanted if w]
    # d3 has the highest loss: its weight grows with every decision
    weights = [(p.shares / 2.0**62)[3] for p in controller.ledger.pieces]
    assert weights[1:] == sorted(weights[1:])


def test_update_every_is_the_methods_own_by_default():
    assert make().update_every == 5
    assert make().lag_steps == 1
    assert make(num_workers=3, prefetch_factor=4, micro_batches=5).lag_steps == 4
    assert default_lag(4, 2, 4) == 3
    assert default_lag(0) == 1


def test_signals_are_those_of_the_window():
    controller = make(update_every=4, lag_steps=2)
    sampler = mixcore.Sampler(controller.ledger)
    train(controller, 0, 12)
    for i, s in enumerate(controller.method.seen):
        positions = np.arange(i * 4 * BATCH, (i + 1) * 4 * BATCH)
        domains = sampler.at(positions).domain
        losses, tokens = losses_of(positions, domains)
        assert s.step == 4 * (i + 1)
        assert s.draws.tolist() == np.bincount(domains, minlength=NUM).tolist()
        assert s.total_draws.tolist() == sampler.counts((i + 1) * 4 * BATCH).tolist()
        assert s.tokens.tolist() == np.bincount(domains, tokens, NUM).tolist()
        assert s.loss_sum == pytest.approx(np.bincount(domains, losses, NUM), abs=1e-4)
        last = controller.ledger.weights_at((i + 1) * 4 * BATCH - 1)
        assert s.weights.tolist() == last.tolist()


def test_what_is_recorded(tmp_path):
    path = tmp_path / "log" / "decisions.jsonl"
    controller = make(update_every=5, lag_steps=1, log=path)
    train(controller, 0, 10)
    decision = controller.ledger.decisions[1]
    assert decision.author == "mixcore.hedge"
    assert decision.reason.startswith(
        "hedge at step 5: d3 0.1>0.2862 (loss 3.895), d0 0.4>0.2142 ("
    )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in lines] == [5, 10]
    first = lines[0]
    assert first["position"] == 5 * BATCH
    assert first["effective"] == 6 * BATCH
    assert first["before"] == [0.4, 0.3, 0.2, 0.1]
    assert first["weights"] == first["proposed"]
    assert first["weights"] == pytest.approx(controller.ledger.weights_at(6 * BATCH))
    assert first["loss"] == controller.method.seen[0].loss.tolist()
    assert lines[1]["digest"] == controller.ledger.digest
    assert lines[1]["decided"] is True


def test_the_reason_stays_short_and_survives_the_file(tmp_path):
    domains = [mixcore.Domain(f"d{i}", 10) for i in range(300)]
    ledger = mixcore.Ledger(domains, np.ones(300), batch_size=BATCH)
    controller = mixcore.Controller(ledger, Hedge(domains), 1)
    controller.observe([7], [9.0], [1])
    controller.step(BATCH)
    reason = ledger.decisions[-1].reason
    assert "d7 0.003333>" in reason
    assert reason.endswith("and 292 more")
    assert len(reason) < 400
    ledger.save(tmp_path / "ledger.json")
    assert mixcore.Ledger.load(tmp_path / "ledger.json").decisions[-1].reason == reason


def test_no_change_is_no_decision(tmp_path):
    domains = [mixcore.Domain("a", 10), mixcore.Domain("b", 10)]
    plan = mixcore.method("schedule", domains=domains, points=[(0, [1, 1]), (3, [2, 1])])
    ledger = mixcore.Ledger(domains, [1, 1], batch_size=8)
    controller = mixcore.Controller(ledger, plan, 1, lag_steps=2, log=tmp_path / "log")
    assert [controller.step(8 * i) for i in range(1, 6)] == [None, None, 40, None, None]
    lines = [json.loads(x) for x in (tmp_path / "log").read_text().splitlines()]
    assert [r["decided"] for r in lines] == [False, False, True, False, False]


def test_an_absent_domain_and_a_loss_that_is_not_finite(tmp_path):
    controller = make(update_every=1, log=tmp_path / "log")
    controller.observe([0, 1, 1], [3.0, np.nan, 2.0], [2, 2, 2])
    controller.step(BATCH)
    loss = controller.method.seen[0].loss
    assert loss[:2].tolist() == [1.5, 1.0]
    assert np.isnan(loss[2:]).all()
    record = json.loads((tmp_path / "log").read_text())
    assert record["loss"] == [1.5, 1.0, None, None]
    assert record["dropped"] == [0, 1, 0, 0]


@pytest.mark.parametrize("order", ["balanced", "megatron", "random"])
def test_every_order(order):
    controller = make(order, update_every=3, lag_steps=1)
    train(controller, 0, 9)
    assert len(controller.ledger.decisions) == 4
    again = mixcore.Ledger.from_bytes(controller.ledger.to_bytes())
    assert again.digest == controller.ledger.digest


def test_a_batch_size_that_grows():
    controller = make(update_every=2, lag_steps=3)
    controller.ledger.append(4 * BATCH, batch_size=2 * BATCH)
    positions = [BATCH, 2 * BATCH]
    for p in positions:
        controller.observe([0], [1.0], [1])
        made = controller.step(p)
    # steps 3 and 4 are of 64, step 5 of 128 samples
    assert made == 4 * BATCH + 2 * BATCH
    with pytest.raises(ValueError, match=f"position must be {3 * BATCH}"):
        controller.step(4 * BATCH)


def test_nothing_is_decided_past_the_end():
    controller = make(update_every=1, lag_steps=3, train_samples=5 * BATCH)
    assert train(controller, 0, 5) == [4 * BATCH, None, None, None, None]
    domains = [mixcore.Domain("a", 300, max_epochs=1), mixcore.Domain("b", 10_000)]
    ledger = mixcore.Ledger(domains, [1, 0], batch_size=BATCH, on_cap="stop")
    controller = mixcore.Controller(ledger, Hedge(domains), 1, lag_steps=3)
    controller.observe([0], [1.0], [1])
    assert ledger.end()[0] == 256
    assert controller.step(BATCH) is None


# Guards ------------------------------------------------------------------------------------------


def test_guards(tmp_path):
    guards = (Floor(0.05), MaxChange(0.01))
    controller = make(update_every=5, lag_steps=1, guards=guards, log=tmp_path / "log")
    train(controller, 0, 10)
    pieces = [p.shares / 2.0**62 for p in controller.ledger.pieces]
    for before, after in itertools.pairwise(pieces):
        assert np.abs(np.log(after / before)).max() <= 0.01 + 1e-9
    record = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert set(record["guards"]) == {"Floor", "MaxChange"}
    assert record["weights"] == record["guards"]["MaxChange"]
    assert record["proposed"] != record["weights"]


def test_repeat_cap_over_a_run():
    """A method that wants the small domain only gets all of its epochs, and no more."""
    domains = [mixcore.Domain("small", 500), mixcore.Domain("large", 10**6)]
    ledger = mixcore.Ledger(domains, [0.1, 0.9], batch_size=BATCH)
    plan = mixcore.method("schedule", domains=domains, points=[(0, [1, 0])])
    steps = 500
    controller = mixcore.Controller(
        ledger, plan, 10, guards=[RepeatCap(2)], train_samples=steps * BATCH
    )
    for i in range(1, steps + 1):
        controller.step(i * BATCH)
    drawn = mixcore.Sampler(ledger).counts(steps * BATCH)
    assert 990 <= drawn[0] <= 1_001


# External ----------------------------------------------------------------------------------------


def test_external_decisions_carry_author_and_reason(tmp_path):
    path = tmp_path / "ask.json"
    domains = [mixcore.Domain("a", 10), mixcore.Domain("b", 10)]
    ledger = mixcore.Ledger(domains, [3, 1], batch_size=8)
    method = mixcore.method("external", domains=domains, path=path)
    controller = mixcore.Controller(ledger, method, lag_steps=2)
    made = []
    for i in range(1, 7):
        if i == 3:
            request = {"weights": {"a": 1, "b": 4}, "author": "ana", "reason": "more b"}
            path.write_text(json.dumps(request))
        made.append(controller.step(8 * i))
    assert made == [None, None, 40, None, None, None]
    decision = ledger.decisions[-1]
    assert decision.author == "ana"
    assert decision.reason.startswith("more b; external at step 3: a 0.75>0.2")
    assert ledger.weights_at(40) == pytest.approx([0.2, 0.8])


# The lag -----------------------------------------------------------------------------------------


def test_a_lag_too_short_is_refused():
    controller = make(update_every=1, lag_steps=1)
    controller.observe([0], [1.0], [1])
    controller.ledger.mark_fetched(4 * BATCH)
    message = (
        f"lag_steps=1 is too short: what is decided after step 1 would take effect at position "
        f"{2 * BATCH}, but rank 0 has already fetched the positions below {4 * BATCH}; this needs "
        f"lag_steps >= 3"
    )
    with pytest.raises(mixcore.LedgerError, match=message):
        controller.step(BATCH)
    assert len(controller.ledger.decisions) == 1
    right = make(update_every=1, lag_steps=3)
    right.observe([0], [1.0], [1])
    right.ledger.mark_fetched(4 * BATCH)
    assert right.step(BATCH) == 4 * BATCH


# Ranks -------------------------------------------------------------------------------------------


def test_four_ranks_agree_bit_for_bit_whatever_the_order():
    alone = make(update_every=5, lag_steps=2)
    train(alone, 0, 30)
    for seed in range(3):
        ring = Ring(4, seed)

        def body(rank, ring=ring, seed=seed):
            # other initial weights of the method: only rank 0's may count
            domains = [mixcore.Domain(f"d{i}", 10_000) for i in range(NUM)]
            method = Hedge(domains, initial=None if rank == 0 else [1, 2, 3, 4])
            controller = make(update_every=5, lag_steps=2, method=method, **ring.options(rank))
            train(controller, 0, 30, rank, 4, np.random.default_rng([seed, rank]))
            return controller.ledger

        ledgers = ring.run(body)
        assert all(x.to_bytes() == alone.ledger.to_bytes() for x in ledgers), ledgers


def test_a_rank_with_another_ledger_stops_all_with_both_digests():
    ring = Ring(4)
    digests = {}

    def body(rank):
        controller = make(update_every=5, lag_steps=1, **ring.options(rank))
        if rank == 2:
            controller.ledger.append(100 * BATCH, [1, 1, 1, 1])
        digests[rank] = controller.ledger.digest
        train(controller, 0, 5, rank, 4)

    errors = ring.run(body)
    for e in errors:
        assert isinstance(e, mixcore.LedgerError)
        assert digests[0] in str(e)
        assert digests[2] in str(e)
        assert "rank 2" in str(e)


def test_the_rank_that_has_fetched_furthest_sets_the_lag():
    ring = Ring(3)

    def body(rank):
        controller = make(update_every=2, lag_steps=1, **ring.options(rank))
        if rank == 1:
            controller.ledger.mark_fetched(5 * BATCH)
        train(controller, 0, 2, rank, 3)

    for e in ring.run(body):
        assert isinstance(e, mixcore.LedgerError)
        assert "lag_steps=1 is too short" in str(e)
        assert "rank 1 has already fetched the positions below 320" in str(e)


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_rank_stops_all(failing):
    ring = Ring(3)

    def answer(rank):
        if rank == failing:
            raise OSError("no such evaluation")
        return [1.0] * NUM

    def body(rank):
        supply = {"val_loss": lambda: answer(rank)}
        controller = make(update_every=2, supply=supply, **ring.options(rank))
        train(controller, 0, 2, rank, 3)

    errors = ring.run(body)
    assert isinstance(errors[failing], OSError)
    for e in errors[:failing] + errors[failing + 1 :]:
        assert isinstance(e, mixcore.LedgerError)
        assert f"rank {failing} failed at step 2" in str(e)


def test_what_the_method_refuses_on_rank_0_stops_all():
    ring = Ring(2)

    def body(rank):
        controller = make(update_every=1, **ring.options(rank))
        controller.step(BATCH)  # nothing was observed

    errors = ring.run(body)
    assert "nothing was observed from position 0 to 64" in str(errors[0])
    assert isinstance(errors[1], mixcore.LedgerError)
    assert "rank 0 failed at step 1: ArgumentError: nothing was observed" in str(errors[1])


def test_an_append_that_fails_on_one_rank_stops_all():
    ring = Ring(2)

    def body(rank):
        controller = make(update_every=1, **ring.options(rank))
        if rank == 1:
            controller._append = lambda *_: (_ for _ in ()).throw(OSError("disk full"))
        train(controller, 0, 1, rank, 2)

    errors = ring.run(body)
    assert str(errors[1]) == "disk full"
    assert "rank 1 failed at step 1" in str(errors[0])


def test_ranks_at_other_steps_are_found():
    ring = Ring(2)

    def body(rank):
        controller = make(update_every=5, **ring.options(rank))
        train(controller, 0, 5 if rank else 4, rank, 2)
        controller.state_dict()

    errors = ring.run(body)
    assert all("rank 0 is at step 4, rank 1 at step 5" in str(e) for e in errors)


# Resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 5, 8, 13])
def test_resume_in_the_middle_of_a_window_is_as_if_nothing_had_happened(at):
    """Steps 8 and 13: losses observed, not decided on; and changes decided, not yet in force."""
    whole, first = (make(update_every=5, lag_steps=7) for _ in range(2))
    train(whole, 0, 30)
    train(first, 0, at)
    state = json.loads(json.dumps(first.state_dict()))
    ledger = mixcore.Ledger.from_bytes(first.ledger.to_bytes())
    second = mixcore.Controller(ledger, Hedge(ledger.domains), 5, lag_steps=7)
    second.load_state_dict(state)
    assert second.state_dict() == state
    train(second, at, 30 - at)
    assert second.ledger.to_bytes() == whole.ledger.to_bytes()
    assert second.state_dict() == whole.state_dict()


def test_a_state_does_not_disturb_the_run():
    whole, other = (make(update_every=5) for _ in range(2))
    train(whole, 0, 12)
    for i in range(12):
        other.state_dict()
        train(other, i, 1)
    assert other.ledger.to_bytes() == whole.ledger.to_bytes()


@pytest.mark.parametrize("worlds", [(4, 2), (1, 4), (4, 1)])
def test_resume_with_another_number_of_ranks(worlds):
    whole = make(update_every=5, lag_steps=2)
    train(whole, 0, 30)
    before, after = worlds
    ring = Ring(before)

    def until(rank):
        controller = make(update_every=5, lag_steps=2, **ring.options(rank))
        train(controller, 0, 13, rank, before)
        return controller.state_dict(), controller.ledger.to_bytes()

    saved = ring.run(until)
    assert all(s == saved[0] for s in saved)
    state, data = saved[0]
    ring = Ring(after)

    def since(rank):
        ledger = mixcore.Ledger.from_bytes(data)
        method = Hedge(ledger.domains)
        controller = mixcore.Controller(ledger, method, 5, lag_steps=2, **ring.options(rank))
        controller.load_state_dict(state)
        train(controller, 13, 17, rank, after)
        return controller.ledger

    assert all(x.to_bytes() == whole.ledger.to_bytes() for x in ring.run(since))


def test_resume_with_a_ledger_file_that_went_on(tmp_path):
    """Checkpoint at step 13, killed at step 22: the decisions of steps 15 and 20 are on disk."""
    path = tmp_path / "ledger.json"
    whole, first = (make(update_every=5, lag_steps=2) for _ in range(2))
    train(whole, 0, 30)
    first.ledger.attach(path)
    train(first, 0, 13)
    state = first.state_dict()
    train(first, 13, 9)
    for attempt in range(2):  # a second crash at once
        ledger = mixcore.Ledger.load(path)
        ledger.attach(path)
        second = mixcore.Controller(ledger, Hedge(ledger.domains), 5, lag_steps=2)
        second.load_state_dict(state)
        assert ledger.decisions[-1].reason.startswith("resumed from step 13: what was decided")
        assert len(ledger.decisions) == 6 + attempt
    train(second, 13, 17)
    assert second.ledger.digest == whole.ledger.digest
    want, got = (mixcore.Sampler(c.ledger).picks(0, 30 * BATCH) for c in (whole, second))
    assert np.array_equal(want.domain, got.domain)
    assert np.array_equal(want.sample, got.sample)
    assert mixcore.Ledger.load(path).digest == whole.ledger.digest


def test_what_does_not_fit_is_refused():
    controller = make(update_every=5, lag_steps=2)
    train(controller, 0, 7)
    state = controller.state_dict()
    cases = [
        ({"format": "x"}, ValueError, "state must have the format 'mixcore.controller/1', got 'x'"),
        ({"lag_steps": 3}, ValueError, "lag_steps=3, this controller 2: give the controller lag"),
        ({"update_every": 6}, ValueError, "update_every=6"),
        ({"accumulated": [[1] * 5]}, ValueError, "must have the shape"),
        ({"position": -4}, ValueError, r"state\['position'\] must be in"),
        ({"ledger": {"decisions": 9, "digest": "ab"}}, mixcore.LedgerError, "has 2 decisions, the"),
        ({"ledger": {"decisions": 2, "digest": "ab"}}, mixcore.LedgerError, "of another run"),
        ({"method": {}}, ValueError, r"state\['format'\] must be"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            controller.load_state_dict(state | change)
    with pytest.raises(ValueError, match="state must have the format"):
        controller.load_state_dict(3)
    del state["since"]
    with pytest.raises(ValueError, match=r"state lacks \['since'\]"):
        controller.load_state_dict(state)


def test_what_cannot_be_undone_is_refused():
    controller = make(update_every=5, lag_steps=2)
    train(controller, 0, 7)
    state = controller.state_dict()
    controller.ledger.append(90 * BATCH, batch_size=2 * BATCH)
    with pytest.raises(mixcore.LedgerError, match="decided more than new weights"):
        controller.load_state_dict(state)


# A loader, and real processes --------------------------------------------------------------------


class Positions:
    """A data set that hands the key's position and domain back."""

    def __len__(self):
        return 1 << 40

    def __getitem__(self, key):
        return key.position, key.domain


def looped(num_workers, steps, lag_steps, every=2, micro=16):
    """Train through a DataLoader, with a weight change every `every` steps."""
    torch = pytest.importorskip("torch")
    controller = make(update_every=every, lag_steps=lag_steps)
    batches = mixcore.MixBatchSampler(controller.ledger, micro, end=steps * BATCH)
    options = {"prefetch_factor": 4} if num_workers else {}
    loader = torch.utils.data.DataLoader(
        Positions(), batch_sampler=batches, num_workers=num_workers, **options
    )
    seen, consumed = [], 0
    for positions, domains in loader:
        seen += zip(positions.tolist(), domains.tolist(), strict=True)
        losses, tokens = losses_of(positions.numpy(), domains.numpy())
        controller.observe(domains, torch.from_numpy(losses), tokens)
        consumed += len(positions)
        if consumed % BATCH == 0:
            controller.step(consumed)
    return seen, controller.ledger


def test_through_a_loader_with_workers():
    lag = default_lag(2, 4, BATCH // 16)
    assert lag == 3
    seen, ledger = looped(2, 60, lag)
    assert len(ledger.decisions) == 1 + 30
    assert [p for p, _ in seen] == list(range(60 * BATCH))
    wanted = mixcore.Sampler(ledger).picks(0, 60 * BATCH).domain.tolist()
    assert [d for _, d in seen] == wanted  # nothing was handed out under weights since replaced
    alone, other = looped(0, 60, lag)
    assert alone == seen  # the same lag: the number of workers does not matter
    assert other.digest == ledger.digest


def test_a_lag_too_short_for_the_loader_is_refused():
    with pytest.raises(mixcore.LedgerError, match=r"lag_steps=1 is too short.*lag_steps >= 2"):
        looped(2, 20, 1)


def gloo(rank, store, results):
    import torch.distributed as dist

    from mixcore.distributed import torch_broadcast, torch_reduce

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        controller = make(
            update_every=5,
            lag_steps=2,
            rank=rank,
            world_size=2,
            reduce=torch_reduce(),
            broadcast=torch_broadcast(),
        )
        train(controller, 0, 12, rank, 2)
        state = controller.state_dict()
        message = ""
        if rank:
            controller.ledger.append(100 * BATCH, [1, 1, 1, 1])
        try:
            train(controller, 12, 3, rank, 2)
        except mixcore.LedgerError as e:
            message = str(e)
        results.put((rank, controller.ledger.digest_at(50 * BATCH), state, message))
    finally:
        dist.destroy_process_group()


def test_two_processes_over_gloo(tmp_path):
    multiprocessing = pytest.importorskip("torch.multiprocessing").get_context("spawn")
    results = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=gloo, args=(r, tmp_path / "store", results))
        for r in range(2)
    ]
    for p in processes:
        p.start()
    answers = sorted(results.get(timeout=60) for _ in processes)
    for p in processes:
        p.join(30)
        assert p.exitcode == 0
    alone = make(update_every=5, lag_steps=2)
    train(alone, 0, 12)
    for _, digest, state, message in answers:
        assert digest == alone.ledger.digest
        assert state == alone.state_dict()
        assert "ranks disagree at step 15" in message


# Bad input ---------------------------------------------------------------------------------------


def test_positions():
    controller = make(update_every=5)
    with pytest.raises(
        ValueError, match=r"position must be at the end of a batch, got 65.*\[64, 128"
    ):
        controller.step(65)
    with pytest.raises(TypeError, match="position must be an integer"):
        controller.step(64.0)
    controller.step(64)
    for wrong in (64, 192, 100):
        with pytest.raises(ValueError, match=rf"position must be 128, .* \(64\), got {wrong}"):
            controller.step(wrong)
    late = make(update_every=5)  # a controller that joins a running job
    assert late.step(7 * BATCH) is None
    late.observe([0], [1.0], [1])
    assert [late.step(i * BATCH) for i in (8, 9, 10)] == [None, None, 11 * BATCH]
    assert late.method.seen[0].draws.sum() == 4 * BATCH


class NeedsGradients(Hedge):
    """Needs what nobody observes."""

    needs = ("loss_sum", "grad_dot")


def domains_of(num=NUM):
    return [mixcore.Domain(f"d{i}", 10_000) for i in range(num)]


def test_supplied_signals_arrive():
    method = NeedsGradients(domains_of())
    controller = make(
        method=method,
        update_every=1,
        supply={"grad_dot": lambda: np.eye(NUM), "extra": lambda: {"a": 1}},
    )
    train(controller, 0, 1)
    assert method.seen[0].grad_dot.tolist() == np.eye(NUM).tolist()
    assert method.seen[0].extra == {"a": 1}


def test_new_domains_need_a_new_controller():
    controller = make(update_every=2)
    train(controller, 0, 1)
    controller.ledger.append(50 * BATCH, [1] * 5, add=[mixcore.Domain("new", 10)])
    with pytest.raises(ValueError, match=r"is for the domains .*, the ledger has .*'new'"):
        train(controller, 1, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"update_every": 0}, ValueError, "update_every must be in"),
        ({"lag_steps": -1}, ValueError, "lag_steps must be in"),
        ({"num_workers": -1}, ValueError, "num_workers must be in"),
        ({"prefetch_factor": 0}, ValueError, "prefetch_factor must be in"),
        ({"micro_batches": 0}, ValueError, "micro_batches must be in"),
        ({"train_samples": 0}, ValueError, "train_samples must be in"),
        ({"rank": 1}, ValueError, r"rank must be in \[0, 0\], got 1"),
        ({"world_size": 2}, ValueError, "world_size=2 needs reduce and broadcast"),
        ({"log": 3}, TypeError, "log must be a str or a Path"),
        ({"guards": [3]}, TypeError, r"guards\[0\] must be callable, got 3"),
        ({"guards": [Floor(0.3)]}, ValueError, "floor must be at most 1 / 4"),
        ({"guards": [RepeatCap(4)]}, ValueError, "needs the controller's train_samples"),
        ({"supply": {"grad": lambda: 1}}, ValueError, "supply names 'grad'; known signals"),
        ({"supply": {"weights": lambda: 1}}, ValueError, "supply names 'weights'"),
        ({"supply": {"val_loss": [1]}}, TypeError, r"supply\['val_loss'\] must be callable"),
        ({"method": 3}, TypeError, "method must be one of mixcore.method"),
        (
            {"method": NeedsGradients(domains_of())},
            ValueError,
            r"needs the signal grad_dot, which nobody supplies: .*inner products",
        ),
        (
            {"method": mixcore.method("proportional", domains=domains_of())},
            ValueError,
            "'proportional' is static",
        ),
        (
            {"method": Hedge(domains_of(3))},
            ValueError,
            r"for the domains \['d0', 'd1', 'd2'\], the ledger has",
        ),
        (
            {"method": mixcore.method("schedule", domains=domains_of(), points=[(0, [1] * 4)])},
            ValueError,
            "update_every must be given",
        ),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_a_ledger_is_needed():
    with pytest.raises(TypeError, match=r"ledger must be a mixcore\.Ledger, got 3"):
        mixcore.Controller(3, Hedge(domains_of()))
