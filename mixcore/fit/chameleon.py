"""Chameleon: kernel ridge leverage scores of the domains' mean embeddings."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixcore.errors import ArgumentError
from mixcore.fit import register
from mixcore.fit.base import Fit, Fitter
from mixcore.fit.propose import within
from mixcore.fit.runs import Runs
from mixcore.fit.table import Floats, read_table
from mixcore.fit.task import Task
from mixcore.methods.base import choice, number, softmax

COORDINATE = "x/"


@dataclass(frozen=True)
class Embeddings:
    """Mean embeddings, float64[D, E], of named domains."""

    file: str
    domains: tuple[str, ...]
    means: Floats


@register
class Chameleon(Fitter):
    """Weights from how much of a domain the others already span.

    K = centred linear kernel of the domains' mean embeddings; S = diag(K (K + lambda D I)^-1),
    scaled to sum 1. "pretrain": p = softmax(1 / S / 5), typical domains up; "finetune":
    p = softmax(S / 0.2), distinctive ones up. As in the authors' code.

    Reads a CSV, one row a sample or a domain: `domain`, `x/<k>` (the embedding; the paper takes the
    mean over tokens of the middle layer of an 82M proxy, 2048 samples of 512 tokens a domain). Rows
    of one domain are averaged. New domains need embeddings only, no training.

    The softmax of 1 / S is sharp: a domain whose mean lies at the centre of all has S near 0 and
    takes everything. That is noted when it happens.

    Args:
        mode: "pretrain" or "finetune".
        regularisation: lambda (10 in the code).
        temperature: None: 5 for pretrain, 0.2 for finetune.
    """

    name = "chameleon"
    paper = "Xie et al. 2025, 2505.24844"
    reads = "embeddings of samples or domains (CSV: domain, x/<k>)"
    tractable = "drops the upper level: leverage of embeddings stands in for the validation loss"

    def __init__(
        self,
        *,
        mode: str = "pretrain",
        regularisation: float = 10.0,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.mode = choice("mode", mode, ("pretrain", "finetune"))
        self.regularisation = number("regularisation", regularisation, 0, above=True)
        default = 5.0 if mode == "pretrain" else 0.2
        self.temperature = (
            default if temperature is None else number("temperature", temperature, 0, above=True)
        )

    def read(self, path: str | os.PathLike[str]) -> Embeddings:
        """Read the embeddings."""
        table = read_table(path)
        table.unknown(("domain",), (COORDINATE,))
        if "domain" not in table.columns or not table.names(COORDINATE):
            raise ArgumentError(f"{table.file} must have the columns domain and x/NAME")
        rows = table.matrix(COORDINATE)
        labels = np.array([cell.strip() for cell in table.columns["domain"]])
        domains = tuple(dict.fromkeys(labels.tolist()))
        means = np.stack([rows[labels == d].mean(axis=0) for d in domains])
        return Embeddings(table.file, domains, means)

    def fit(self, data: Embeddings, task: Task, judges: Mapping[str, Runs]) -> Fit:
        """The weights."""
        self.notes = list(task.notes)
        if task.target:
            raise ArgumentError("chameleon takes no target: it reads embeddings only")
        scores = leverage(data.means, self.regularisation)
        if scores.sum() <= 0:
            raise ArgumentError(f"{data.file}: all domains have the same mean embedding")
        scores = scores / scores.sum()
        # As in the authors' code, 1e-12 keeps 1 / S finite.
        logits = 1 / (scores + 1e-12) if self.mode == "pretrain" else scores
        weights = softmax(logits / self.temperature)
        if weights.max() > 0.95 and len(weights) > 1:
            self.notes.append(
                f"{data.domains[int(weights.argmax())]!r} takes {weights.max():.1%}: the softmax "
                "is sharp here; a higher temperature spreads it"
            )
        return Fit(
            method=self.name,
            task=task,
            weights=within(weights, task.most),
            parameters={"leverage": dict(zip(data.domains, scores.tolist(), strict=True))},
            notes=(*self.notes, "no outcome was looked at: nothing says how good this mixture is"),
        )


def leverage(means: Floats, regularisation: float) -> Floats:
    """diag(K (K + lambda D I)^-1) of the centred linear kernel, float64[D], >= 0."""
    num = len(means)
    centred = means - means.mean(axis=0)
    kernel = centred @ centred.T
    scores = np.diagonal(np.linalg.solve(kernel + regularisation * num * np.eye(num), kernel))
    return np.asarray(np.maximum(scores, 0.0))
