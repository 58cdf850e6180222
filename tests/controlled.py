"""Controlled runs for tests: a method, a job of any number of ranks, and how they talk."""

import threading

import numpy as np

import mixcore
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


class Positions:
    """A data set that hands the key's position and domain back."""

    def __len__(self):
        return 1 << 40

    def __getitem__(self, key):
        return key.position, key.domain


def domains_of(num=NUM):
    return [mixcore.Domain(f"d{i}", 10_000) for i in range(num)]
