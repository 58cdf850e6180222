"""The slow twins of `mixcore.megatron_arrays`: the same rules in plain Python, step by step."""

import math
from collections.abc import Sequence

import numpy as np


def greedy(
    weights: Sequence[float],
    n: int,
    *,
    debts: Sequence[float] | None = None,
    start: int = 0,
    counts: Sequence[int] | None = None,
) -> tuple[list[int], list[int]]:
    """Return the domains of steps `start` to `start + n`, and their counts before each draw.

    >>> greedy([0.1, 0.2, 0.7], 6)
    ([2, 1, 2, 0, 2, 2], [0, 0, 1, 0, 2, 3])
    """
    drawn = [0] * len(weights) if counts is None else list(counts)
    domains, before = [], []
    for i in range(start, start + n):
        errors = [w * float(max(i, 1)) - float(c) for w, c in zip(weights, drawn, strict=True)]
        if debts is not None:
            errors = [e + debt for e, debt in zip(errors, debts, strict=True)]
        best = errors.index(max(errors))
        domains.append(best)
        before.append(drawn[best])
        drawn[best] += 1
    return domains, before


def build_blending_indices(weights: Sequence[float], size: int) -> tuple[list[int], list[int]]:
    """Blend by weight: `greedy` from the beginning."""
    return greedy(weights, size)


def build_exhaustive_blending_indices(sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Blend in proportion to the sizes; a domain leaves once its count reaches its size.

    >>> build_exhaustive_blending_indices([1, 3])
    ([1, 0, 1, 1], [0, 0, 1, 2])
    """
    total = sum(sizes)
    weights = [size / float(total) for size in sizes]
    counts = [0] * len(sizes)
    domains, before = [], []
    for i in range(total):
        unspent = [d for d in range(len(sizes)) if counts[d] < sizes[d]]
        best = max(unspent, key=lambda d: weights[d] * float(max(i, 1)) - float(counts[d]))
        domains.append(best)
        before.append(counts[best])
        counts[best] += 1
    return domains, before


def num_samples(tokens: int, seq_length: int, drop_last_partial_sequence: bool) -> int:
    """Return how many samples `tokens` give; rounding up goes through a 32-bit float."""
    if drop_last_partial_sequence:
        return tokens // seq_length
    return math.ceil(np.float32(tokens) / np.float32(seq_length))


def build_sample_idx(
    sizes: Sequence[int],
    document_idx: Sequence[int],
    seq_length: int,
    num_epochs: int,
    tokens_per_epoch: int,
    drop_last_partial_sequence: bool = True,
    add_extra_token_to_sequence: int = 1,
) -> list[list[int]]:
    """Walk the documents token count by token count; a row is [place in document_idx, offset].

    >>> build_sample_idx([5, 0, 7], [2, 1, 0], 4, 1, 12)
    [[0, 0], [0, 4], [2, 1]]
    """
    extra = add_extra_token_to_sequence
    tokens = num_epochs * tokens_per_epoch - extra
    place, offset = 0, 0
    rows = [[place, offset]]
    for _ in range(num_samples(tokens, seq_length, drop_last_partial_sequence)):
        wanted = seq_length + extra
        while wanted > 0:
            length = sizes[document_idx[place]] - offset
            if length >= wanted:
                offset += wanted - extra
                break
            if place == len(document_idx) - 1:
                offset = sizes[document_idx[place]] - extra
                break
            wanted -= length
            place += 1
            offset = 0
        rows.append([place, offset])
    return rows
