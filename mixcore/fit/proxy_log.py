"""DoReMi and DoGE from the log of a proxy run: the rule is replayed, its mean is the answer."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixcore.domains import Domain
from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit.base import Fit, Fitter
from mixcore.fit.propose import within
from mixcore.fit.runs import INFO, Runs
from mixcore.fit.table import Floats, Table, read_table
from mixcore.fit.task import Task
from mixcore.methods import method
from mixcore.methods.base import choice, normalise, number
from mixcore.signals import Signals

WEIGHT, EXCESS, LOSS, REFERENCE = "weight/", "excess/", "loss/", "reference/"
TARGET, DOT = "grad_target/", "grad_dot/"
SETTLED = 0.05  # largest change of the mean over the last tenth that goes unmentioned


@dataclass(frozen=True)
class ProxyLog:
    """What a proxy run logged: a table, its domains, the columns' prefix."""

    table: Table
    domains: tuple[str, ...]
    kind: str

    def rows(self, prefix: str) -> Floats:
        """float64[steps, D]; NaN where a cell is empty: the domain was absent."""
        columns = [self.table.columns[prefix + d] for d in self.domains]
        filled = [["nan" if not cell.strip() else cell for cell in cells] for cells in columns]
        try:
            return np.array(filled, dtype=np.float64).T
        except ValueError:
            # For its message.
            for d in self.domains:
                self.table.floats(prefix + d)
            raise


class Replayed(Fitter):
    """A log replayed through the method of the same name, or its logged weights averaged."""

    prefixes: tuple[str, ...]

    def read(self, path: str | os.PathLike[str]) -> ProxyLog:
        """Read the log."""
        table = read_table(path)
        table.unknown(("step", "lr"), (*self.prefixes, INFO))
        for prefix in self.prefixes:
            names = table.names(prefix)
            if names:
                domains = names
                if prefix == DOT:
                    domains = tuple(dict.fromkeys(n.partition("|")[0] for n in names))
                return ProxyLog(table, domains, prefix)
        raise ArgumentError(f"{table.file} must have columns {' or '.join(self.prefixes)}NAME")

    def signals(self, data: ProxyLog) -> list[Signals]:
        """One a step."""
        raise NotImplementedError

    def options(self, data: ProxyLog) -> dict[str, Any]:
        """Of the method."""
        raise NotImplementedError

    def fit(self, data: ProxyLog, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """Replay the log; the answer is the mean of the weights over its steps."""
        self.notes = list(task.notes)
        if task.target:
            raise ArgumentError(f"{self.name} takes no target: the log is one of its objective")
        if data.kind == WEIGHT:
            path = data.rows(WEIGHT)
            if not np.isfinite(path).all() or (path < 0).any() or not path.any(axis=1).all():
                raise ArgumentError(f"{data.table.file}: logged weights must be >= 0, not all zero")
            path = path / path.sum(axis=1, keepdims=True)
        else:
            made = method(
                self.name, domains=[Domain(d, None) for d in data.domains], **self.options(data)
            )
            path = np.stack([made.update(s) for s in self.signals(data)])
        mean = np.cumsum(path, axis=0) / np.arange(1, len(path) + 1)[:, None]
        moved = float(
            np.abs(mean[-1] - mean[-max(len(path) // 10, 1) - 1 if len(path) > 1 else 0]).max()
        )
        if moved > SETTLED or len(path) < 10:
            self.notes.append(
                f"after {len(path)} steps the mean still moves (by {moved:.3f} in the last tenth)"
            )
        return Fit(
            method=self.name,
            task=task,
            weights=within(normalise(mean[-1]), task.most),
            parameters={"steps": len(path), "last_weights": path[-1].tolist()},
            notes=tuple(self.notes),
            extra={"path": path},
        )


@register
class DoReMi(Replayed):
    """The mean weight over the steps of a DoReMi proxy run.

    Reads a CSV, one row a step: `excess/<domain>`, the mean over the domain's tokens of
    max(loss - reference loss, 0) (the paper's, clipped per token); or `loss/<domain>` and
    `reference/<domain>`, domain means, whose difference is clipped as a whole (ports do that; it
    is not the same); or `weight/<domain>`, the weights that the proxy logged. An empty cell is a
    domain absent from that step: its last score stays. Rows are replayed through the method
    `doremi` in their order.

    Iterated DoReMi repeats until max |mean - reference weights| < 1e-3; give the mean as the next
    reference run's weights.

    Args:
        eta: Step size (paper 1).
        c: Uniform mixing (paper 1e-3).
        variant: "paper": the mean is over the updates; "code": the initial weights count too.
    """

    name = "doremi"
    paper = "Xie, Pham, Dong et al. 2023, 2305.10429"
    reads = "log of a proxy run (CSV: excess/<domain>, or loss/ and reference/, or weight/)"
    tractable = "replaces the upper level by the worst excess loss over a reference model"
    prefixes = (WEIGHT, EXCESS, LOSS, REFERENCE)

    def __init__(self, *, eta: float = 1.0, c: float = 1e-3, variant: str = "paper") -> None:
        super().__init__()
        self.eta = number("eta", eta, 0)
        self.c = number("c", c, 0, 1)
        self.variant = choice("variant", variant, ("paper", "code"))

    def options(self, data: ProxyLog) -> dict[str, Any]:
        """The clip follows from what was logged."""
        clip = "token" if data.kind == EXCESS else "mean"
        return {"eta": self.eta, "c": self.c, "clip": clip}

    def signals(self, data: ProxyLog) -> list[Signals]:
        """Excess losses, or losses of one token each beside their reference."""
        if data.kind == EXCESS:
            return [Signals(step=i, excess_loss=row) for i, row in enumerate(data.rows(EXCESS))]
        if set(data.table.names(REFERENCE)) != set(data.domains):
            raise ArgumentError(f"{data.table.file} must have reference/NAME for every loss/NAME")
        losses, reference = data.rows(LOSS), data.rows(REFERENCE)
        made = []
        for i, row in enumerate(losses):
            seen = ~np.isnan(row)
            made.append(
                Signals(
                    step=i,
                    loss_sum=np.where(seen, row, 0.0),
                    tokens=seen.astype(np.int64),
                    reference_loss=reference[i],
                )
            )
        return made

    def fit(self, data: ProxyLog, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """Replay; the code's mean counts the uniform start as one more step."""
        found = super().fit(data, task, judges)
        if self.variant == "code" and data.kind != WEIGHT:
            path = found.extra["path"]
            total = path.sum(axis=0) + 1 / path.shape[1]
            return replace(found, weights=within(normalise(total), task.most))
        return found


@register
class DoGE(Replayed):
    """The mean weight over the steps of a DoGE proxy run.

    Reads a CSV, one row a step: `grad_dot/<domain>|<domain>`, inner products of the domains'
    gradients (all pairs); or `grad_target/<domain>`, those with the target's gradient; or
    `weight/<domain>`, the weights that the proxy logged. `lr` is the learning rate of each step.
    Replayed through the method `doge`, whose variants say how paper and code differ: by the paper a
    domain's own gradient is left out of its score and negative alignment counts; in the code, which
    compares sets of tensors, it is never left out, and negative alignment is erased.

    Args:
        mu: 0.05 in the paper's out-of-domain runs and as the program's default, 0.01 in its main
            configuration.
        lr: Where the log has none.
        variant: "paper" or "code".
    """

    name = "doge"
    paper = "Fan, Pagliardini, Jaggi 2023, 2310.15393"
    reads = "log of a proxy run (CSV: grad_dot/<a>|<b>, or grad_target/<domain>, or weight/)"
    tractable = "one-step first-order hypergradient: the alignment of the domains' gradients"
    prefixes = (WEIGHT, TARGET, DOT)

    def __init__(self, *, mu: float = 0.05, lr: float = 5e-4, variant: str = "paper") -> None:
        super().__init__()
        self.mu = number("mu", mu, 0, above=True)
        self.lr = number("lr", lr, 0)
        self.variant = choice("variant", variant, ("paper", "code"))

    def options(self, data: ProxyLog) -> dict[str, Any]:
        """The target follows from what was logged; a log of products alone has no norms."""
        target = "in-domain" if data.kind == DOT else "out-of-domain"
        made: dict[str, Any] = {"mu": self.mu, "lr": self.lr, "variant": self.variant}
        if data.kind == TARGET and self.variant == "code":
            raise ArgumentError(
                f"{data.table.file} has grad_target/NAME alone; variant='code' divides by the "
                "domains' gradient norms and needs grad_dot/A|B, in domain"
            )
        return made | {"target": target}

    def signals(self, data: ProxyLog) -> list[Signals]:
        """Products, and the learning rate."""
        rates = None
        if "lr" in data.table.columns:
            rates = data.table.floats("lr", 0)
        made = []
        if data.kind == TARGET:
            values = data.rows(TARGET)
        else:
            num = len(data.domains)
            pairs = [f"{DOT}{a}|{b}" for a in data.domains for b in data.domains]
            lacking = [p for p in pairs if p not in data.table.columns]
            if lacking or len(data.table.names(DOT)) != len(pairs):
                lacks = lacking[0] if lacking else "no other"
                raise ArgumentError(f"{data.table.file} must have all pairs grad_dot/A|B: {lacks}")
            values = np.stack([data.table.floats(p) for p in pairs], axis=1).reshape(-1, num, num)
        for i, row in enumerate(values):
            given = {"grad_target": row} if data.kind == TARGET else {"grad_dot": row}
            extra = {} if rates is None else {"lr": float(rates[i])}
            made.append(Signals(step=i, extra=extra, **given))
        return made
