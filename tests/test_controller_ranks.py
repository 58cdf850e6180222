"""The controller with several ranks, workers that prefetch, and real processes."""

import numpy as np
import pytest
from controlled import BATCH, NUM, Hedge, Positions, Ring, domains_of, losses_of, make, train

import mixcore
from mixcore.controller import default_lag

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


def test_a_rank_with_other_domains_stops_all():
    ring = Ring(3)

    def body(rank):
        domains = domains_of(5 if rank == 1 else 4)
        ledger = mixcore.Ledger(domains, np.ones(len(domains)), batch_size=BATCH)
        controller = mixcore.Controller(ledger, Hedge(domains), 2, **ring.options(rank))
        train(controller, 0, 2, rank, 3)

    for e in ring.run(body):
        assert isinstance(e, mixcore.LedgerError)
        assert "ranks disagree at step 2: the ledger of rank 0 has the digest" in str(e)


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


# A loader, and real processes --------------------------------------------------------------------


def looped(num_workers, steps, lag_steps, every=2, micro=16):
    """Train through a DataLoader, with a weight change every `every` steps."""
    torch = pytest.importorskip("torch")
    controller = make(update_every=every, lag_steps=lag_steps, train_samples=(steps + 1) * BATCH)
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


@pytest.mark.parametrize("every", [1, 3])
def test_through_a_loader_with_workers(every):
    lag = default_lag(2, 4, BATCH // 16)
    assert lag == 3
    seen, ledger = looped(2, 60, lag, every)
    assert len(ledger.decisions) == 1 + (60 - lag) // every
    assert [p for p, _ in seen] == list(range(60 * BATCH))
    wanted = mixcore.Sampler(ledger).picks(0, 60 * BATCH).domain.tolist()
    assert [d for _, d in seen] == wanted  # nothing was handed out under weights since replaced
    alone, other = looped(0, 60, lag, every)
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
