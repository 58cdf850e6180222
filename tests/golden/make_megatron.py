"""Write megatron.json: Megatron-Core's index arrays from plain loops, independent of mixcore.

Run by hand (`python tests/golden/make_megatron.py`); a changed byte is a release note. The loops
are written from the published rule (megatron/core/datasets/helpers.cpp) and use nothing but Python
and numpy (for the Dirichlet weights and the 32-bit rounding).
"""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np


def blend(weights, size):
    """Draw the largest weight * max(i, 1) - count, the first of equals; return the domains."""
    counts = [0] * len(weights)
    drawn = []
    for i in range(size):
        best, best_error = None, None
        for d, weight in enumerate(weights):
            product = weight * max(float(i), 1.0)
            error = product - float(counts[d])
            if best is None or error > best_error:
                best, best_error = d, error
        drawn.append(best)
        counts[best] += 1
    return drawn


def exhaust(sizes):
    """The same in proportion to sizes, without the domains that are used up."""
    total = sum(sizes)
    left = list(range(len(sizes)))
    counts = [0] * len(sizes)
    drawn = []
    while left:
        best, best_error = None, None
        for d in left:
            error = (sizes[d] / float(total)) * max(float(len(drawn)), 1.0) - float(counts[d])
            if best is None or error > best_error:
                best, best_error = d, error
        drawn.append(best)
        counts[best] += 1
        if counts[best] == sizes[best]:
            left.remove(best)
    return drawn


def sample_rows(case):
    """Row k: where the last token of sample k - 1 lies, found by writing every token down."""
    extra, seq = case["extra"], case["seq_length"]
    tokens = case["num_epochs"] * case["tokens_per_epoch"] - extra
    if case["drop_last"]:
        samples = tokens // seq
    else:
        rounded = Fraction(float(np.float32(tokens) / np.float32(seq)))
        samples = -(-rounded.numerator // rounded.denominator)
    order = case["document_idx"]
    stream = [(j, o) for j, d in enumerate(order) for o in range(case["sizes"][d])]
    rows = [[0, 0]]
    for k in range(1, samples + 1):
        token = k * seq + extra - 1
        if token < len(stream):
            place, offset = stream[token]
            rows.append([place, offset + 1 - extra])
        else:
            rows.append([len(order) - 1, case["sizes"][order[-1]] - extra])
    return rows


def main():
    rng = np.random.default_rng(20260101)
    weights = {
        "tenths": ([0.1, 0.2, 0.7], 12),
        "round": ([0.1, 0.2, 0.3, 0.4], 2000),
        "ten tenths": ([0.1] * 10, 1000),
        "thirds": ([1 / 3] * 3, 500),
        "sevenths": ([1 / 7, 2 / 7, 4 / 7], 1000),
        "dirichlet": (rng.dirichlet(np.ones(22)).tolist(), 2000),
        "dirichlet, sparse": (rng.dirichlet(np.full(100, 0.2)).tolist(), 2000),
        "one big, 99 tiny": ([0.9] + [0.1 / 99] * 99, 2000),
        "zeros": ([0.0, 0.5, 0.0, 0.5], 200),
        "epsilon": ([1.0, 1e-9, 1.0, 1.0], 300),
        "not normalised": ([3.0, 5.0, 1.0], 300),
    }
    sizes = [[1], [1, 3], [10, 20, 70], [1, 1, 1, 1], [300, 1, 1, 50]]
    sizes.append(rng.integers(1, 30, size=90).tolist())
    samples = []
    for num, epochs, seq, drop, extra in [
        (12, 1, 4, True, 1),
        (12, 1, 4, False, 1),
        (12, 2, 7, True, 0),
        (12, 2, 7, False, 0),
        (30, 3, 64, True, 1),
        (30, 3, 64, False, 1),
        (30, 1, 1, True, 1),
    ]:
        lengths = rng.integers(0, 40, size=num)
        lengths[rng.integers(0, num, size=3)] = 0
        order = np.concatenate([rng.permutation(num) for _ in range(epochs)])
        case = {"sizes": lengths.tolist(), "document_idx": order.tolist(), "seq_length": seq}
        case |= {"num_epochs": epochs, "tokens_per_epoch": int(lengths.sum())}
        case |= {"drop_last": drop, "extra": extra}
        samples.append(case)
    samples.append(samples[0] | {"tokens_per_epoch": samples[0]["tokens_per_epoch"] + 50})
    golden = {
        "blend": [
            {"name": n, "weights": [w.hex() for w in ws], "size": s, "drawn": blend(ws, s)}
            for n, (ws, s) in weights.items()
        ],
        "exhaust": [{"sizes": s, "drawn": exhaust(s)} for s in sizes],
        "sample_idx": [case | {"rows": sample_rows(case)} for case in samples],
    }
    text = json.dumps(golden, separators=(",", ":")).replace('{"', '\n{"')
    Path(__file__).with_name("megatron.json").write_text(text.strip() + "\n")


if __name__ == "__main__":
    main()
