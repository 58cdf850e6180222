"""Ledgers with all that a history can hold, for comparing one way to the picks with another."""

import numpy as np

import mixcore


def random_history(seed):
    """Changes of weights, batch sizes and domains; pauses, caps, tiny weights, an open end."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 40))
    domains = [domain(rng, i) for i in range(num)]
    ledger = mixcore.Ledger(domains, weights_of(rng, num), batch_size=batch_of(rng), seed=seed)
    for _ in range(int(rng.integers(0, 12))):
        position = ledger.pieces[-1].start + int(rng.integers(1, 2_000))
        add = [domain(rng, num)] if rng.random() < 0.2 else []
        num += len(add)
        size = batch_of(rng) if rng.random() < 0.5 else None
        try:
            ledger.append(position, weights_of(rng, num), add=add, batch_size=size)
        except mixcore.LedgerError:  # the run ends before, or all that is asked for is used up
            num -= len(add)
    return ledger


def domain(rng, number):
    size = None if rng.random() < 0.1 else int(rng.integers(1, 2_000))
    cap = None if size is None or rng.random() < 0.7 else float(rng.uniform(0.5, 3))
    return mixcore.Domain(f"d{number}", size, None if cap is None or cap * size < 1 else cap)


def weights_of(rng, num):
    weights = rng.dirichlet(np.full(num, 0.5)) + 1e-9
    weights[rng.random(num) < 0.2] = 0.0
    weights[int(rng.integers(num))] += 1e-7
    return weights


def batch_of(rng):
    return int(rng.choice([1, 2, 3, 7, 64, 100, 129, 1_000]))


def end_of(ledger, most):
    """Where the run ends, or `most`."""
    end = ledger.end(most)
    return most if end is None else end[0]
