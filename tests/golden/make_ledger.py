"""Writes the ledger files and picks that every later version must reproduce.

Run it only to add a case: a difference in a file that exists already is a broken promise, or a
release note. The picks are computed by the slow twin, not by the native core.
"""

import json
from pathlib import Path

import mixcore
from mixcore import reference
from mixcore.domains import stream_key

HERE = Path(__file__).parent
END = 6_000


def build(order: str) -> mixcore.Ledger:
    """One history with everything in it: add, pause, batch size, schedule, cap."""
    cap = None if order == "megatron" else 2.5
    domains = [
        mixcore.Domain("web", 1_000),
        mixcore.Domain("code", 77, max_epochs=cap),
        mixcore.Domain("wiki", 250),
    ]
    ledger = mixcore.Ledger(domains, [0.7, 0.2, 0.1], batch_size=48, seed=2026, order=order)
    ledger.append(1_000, [0.5, 0.5, 0.0], reason="pause wiki", author="golden")
    ledger.append(
        2_000, {"web": 1, "code": 1, "wiki": 1, "math": 1e-3}, add=[mixcore.Domain("math", None)]
    )
    schedule = mixcore.linear([(3_000, [4, 3, 2, 1]), (5_000, [1, 2, 3, 4])], every=7)
    ledger.append(2_500, batch_size=60, schedule=schedule)
    return ledger


for order in ("balanced", "megatron", "random"):
    ledger = build(order)
    path = HERE / f"ledger_{order}.json"
    path.write_bytes(ledger.to_bytes())  # `save` would add checkpoints
    specs = [reference.DomainSpec(d.key(2026), d.size or 0, d.cap) for d in ledger.domains]
    pieces = [
        reference.PieceSpec(
            p.start, p.batch_size, p.shares.tolist(), [] if p.floats is None else p.floats.tolist()
        )
        for p in ledger.pieces
    ]
    key = stream_key(2026, "order", order)
    picks = reference.Run(order, key, specs, pieces).picks(END)
    positions = list(range(0, END, 13))
    answer = {
        name: [picks[i][k] for i in positions] for k, name in enumerate(mixcore.sampler.FIELDS)
    }
    counts = [sum(p[0] == d for p in picks) for d in range(len(specs))]
    answer |= {"digest": ledger.digest, "positions": positions, "end": END, "counts": counts}
    (HERE / f"picks_{order}.json").write_text(json.dumps(answer))
