"""Two ranks with two workers each, weights that change all the time, SIGKILL, resume: nothing lost.

The ledger file goes on until the crash; the checkpoint is older. What counts is the last line that
the run's own log has for each position.
"""

import json
import os
import signal

import numpy as np
import pytest
from controlled import BATCH, Hedge, Positions, losses_of, make

import mixcore

STEPS, CHECKPOINT_EVERY, KILL_AFTER = 60, 7, 26
MICRO = 16
OPTIONS = {"update_every": 3, "lag_steps": 4}


def train(rank, folder, store, kill_after):
    """One rank's life, up to the end or to SIGKILL."""
    import torch
    import torch.distributed as dist

    from mixcore.distributed import torch_broadcast, torch_reduce

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    checkpoint, consumed, state = folder / "checkpoint.json", 0, None
    ledger = make().ledger
    if checkpoint.exists():
        saved = json.loads(checkpoint.read_text())
        consumed, state = saved["consumed"], saved["controller"]
        ledger = mixcore.Ledger.load(folder / "ledger.json")
    dist.barrier()  # all have read the file before rank 0 writes to it
    if rank == 0:
        ledger.attach(folder / "ledger.json")
    controller = mixcore.Controller(
        ledger,
        Hedge(ledger.domains),
        **OPTIONS,
        rank=rank,
        world_size=2,
        reduce=torch_reduce(),
        broadcast=torch_broadcast(),
    )
    if state:
        controller.load_state_dict(state)
    batches = mixcore.MixBatchSampler(
        ledger, MICRO, rank=rank, world_size=2, position=consumed, end=STEPS * BATCH
    )
    loader = torch.utils.data.DataLoader(
        Positions(), batch_sampler=batches, num_workers=2, prefetch_factor=3
    )
    with open(folder / f"seen.{rank}", "a", buffering=1) as log:
        for positions, domains in loader:
            log.write(json.dumps([positions.tolist(), domains.tolist()]) + "\n")
            losses, tokens = losses_of(positions.numpy(), domains.numpy())
            controller.observe(domains, losses, tokens)
            consumed += 2 * MICRO
            if consumed % BATCH:
                continue
            controller.step(consumed)
            step = consumed // BATCH
            if step % CHECKPOINT_EVERY == 0:
                state = controller.state_dict()
                if rank == 0:
                    new = folder / "checkpoint.new"
                    new.write_text(json.dumps({"consumed": consumed, "controller": state}))
                    new.replace(checkpoint)
            if step == kill_after:
                dist.barrier()
                os.kill(os.getpid(), signal.SIGKILL)
    dist.destroy_process_group()


def test_killed_and_resumed(tmp_path):
    multiprocessing = pytest.importorskip("torch.multiprocessing").get_context("spawn")
    for life, kill_after in enumerate([KILL_AFTER, None]):
        store = tmp_path / f"store.{life}"
        processes = [
            multiprocessing.Process(target=train, args=(r, tmp_path, store, kill_after))
            for r in range(2)
        ]
        for p in processes:
            p.start()
        for p in processes:
            p.join(60)
            assert p.exitcode == (0 if kill_after is None else -signal.SIGKILL)
        if kill_after:
            resumed_from = json.loads((tmp_path / "checkpoint.json").read_text())["consumed"]
            went_on = mixcore.Ledger.load(tmp_path / "ledger.json")
            # the crash left decisions on disk that the checkpoint does not know
            assert resumed_from == 21 * BATCH
            assert went_on.decisions[-1].reason.startswith("hedge at step 24")
    seen = {}
    lines = [x for r in range(2) for x in (tmp_path / f"seen.{r}").read_text().splitlines()]
    for line in lines:
        seen |= dict(zip(*json.loads(line), strict=True))
    ledger = mixcore.Ledger.load(tmp_path / "ledger.json")
    wanted = mixcore.Sampler(ledger).picks(0, STEPS * BATCH).domain
    assert [seen[i] for i in range(STEPS * BATCH)] == wanted.tolist()
    assert len(seen) == STEPS * BATCH
    assert sum(len(json.loads(line)[0]) for line in lines) == (STEPS + KILL_AFTER - 21) * BATCH

    alone = make(**OPTIONS)  # one rank, no loader, never killed
    sampler = mixcore.Sampler(alone.ledger)
    for step in range(STEPS):
        positions = np.arange(step * BATCH, (step + 1) * BATCH)
        domains = sampler.at(positions).domain
        alone.observe(domains, *losses_of(positions, domains))
        alone.step((step + 1) * BATCH)
    assert ledger.digest == alone.ledger.digest
    assert len(alone.ledger.pieces) == 1 + STEPS // 3
