"""What the demo is going to do, fixed before it starts and kept in `plan.json`.

>>> plan = make_plan(["python", "licence"], fast=True)
>>> plan.steps, plan.kill_step, plan.checkpoint_every
(60, 28, 10)
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steering import options

from mixcore.controller import default_lag

# Weights at the start, after 35% and from 70% of the steps on; in between they move on a line.
WEIGHTS: dict[str, tuple[float, float, float]] = {
    "python": (0.10, 0.30, 0.14),
    "cpp": (0.08, 0.20, 0.10),
    "unicode": (0.22, 0.05, 0.03),
    "messages": (0.20, 0.08, 0.08),
    "reference": (0.10, 0.10, 0.25),
    "web": (0.12, 0.09, 0.12),
    "readme": (0.12, 0.10, 0.18),
    "licence": (0.06, 0.08, 0.10),
}
KNOTS = (0.0, 0.35, 0.70)


@dataclass(frozen=True)
class Plan:
    """All numbers of one demo run. Steps are optimizer steps, weights are lists over `domains`."""

    domains: list[str]
    anchors: list[tuple[int, list[float]]]  # (step, weights)
    every: int  # steps between two evaluations of the line through the anchors
    steps: int
    kill_step: int
    live_step: int  # a live decision takes effect at about this step
    checkpoint_every: int
    fast: bool
    batch_size: int = 32
    length: int = 64
    seed: int = 20_26
    vocab: int = 2048
    width: int = 128
    layers: int = 4
    heads: int = 4
    learning_rate: float = 3e-3
    scale: float = 1.0  # of the byte caps
    workers: int = 1  # DataLoader workers of each rank
    method: str | None = None  # steers the run in place of anchors and live decision
    method_options: dict[str, Any] = field(default_factory=dict)
    update_every: int = 0  # steps between two updates of the method
    lag_steps: int = 0  # steps from a decision to its effect

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read what `save` wrote."""
        facts = json.loads(path.read_text())
        facts["anchors"] = [(step, weights) for step, weights in facts["anchors"]]
        return cls(**facts)


def make_plan(
    domains: list[str], fast: bool = False, steps: int | None = None, method: str | None = None
) -> Plan:
    """Return the plan for these domains; `fast` is the half-minute version for smoke tests.

    With `method` the weights are equal at first, and what they become is the method's affair.
    """
    steps = steps or (60 if fast else 1200)
    checkpoint_every = max(2, steps // (6 if fast else 24))
    kill_step = int(0.48 * steps)
    if kill_step % checkpoint_every < 2:  # some steps must be lost, or there is nothing to replay
        kill_step += checkpoint_every // 2
    anchors = []
    for knot, column in zip(KNOTS, range(3), strict=True):
        weights = [WEIGHTS[name][column] for name in domains]
        anchors.append((int(knot * steps), [w / sum(weights) for w in weights]))
    more: dict[str, Any] = {"scale": 0.1, "width": 64, "layers": 2} if fast else {}
    if method is not None:
        anchors = [(0, [1 / len(domains)] * len(domains))]
        # The lag must do for the size that fetches furthest ahead: one micro-batch a step.
        more |= {"workers": 2, "lag_steps": default_lag(num_workers=2)}
        every = 3 if fast else 10
        chosen = options(method, len(domains), steps, every)
        more |= {"method": method, "method_options": chosen, "update_every": every}
    return Plan(
        domains=list(domains),
        anchors=anchors,
        every=max(1, steps // 120),
        steps=steps,
        kill_step=kill_step,
        live_step=int(0.8 * steps),
        checkpoint_every=checkpoint_every,
        fast=fast,
        **more,
    )
