"""What a fit is asked for: the target, and the limits on the mixture that answers it."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore import _checks
from mixcore._problems import closest
from mixcore._yaml import parse
from mixcore.config import load_config
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.fit.runs import LOSS, METRIC, Runs
from mixcore.fit.table import Floats, some
from mixcore.methods.base import normalise, number


@dataclass(frozen=True)
class Corpus:
    """How much there is of each domain.

    Attributes:
        sizes: Name -> tokens; inf for an open-ended domain.
        max_epochs: Name -> most epochs, where a `mix.yaml` says so.
        budget: Tokens of the run, where a `mix.yaml` says so.
        mix: The `mix.yaml` as read, or None.
    """

    sizes: dict[str, float]
    max_epochs: dict[str, float] = field(default_factory=dict)
    budget: float | None = None
    mix: dict[str, Any] | None = None


def read_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Read sizes: a `mix.yaml` (with tokens_per_sample), or a YAML mapping `name: tokens`.

    Raises:
        ArgumentError: It is neither; the message has the line and the key.
        OSError: It cannot be read.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(f"path must be a str or a Path, got {path!r}")
    value, lines, twice = parse(Path(path).read_bytes(), str(path))
    if isinstance(value, dict) and isinstance(value.get("domains"), list):
        return _of_mix(Path(path), value)
    if twice:
        raise ArgumentError(f"{path}: line {twice[0][0]}: {twice[0][1]}")
    if not isinstance(value, dict) or not value:
        raise ArgumentError(f"{path} must be a mix.yaml or map each domain's name to its tokens")
    sizes = {}
    for name, tokens in value.items():
        where = f"{path}: line {lines.get(str(name), 0)}: tokens of domain {name!r}"
        sizes[str(name)] = number(where, tokens, 0, above=True)
    return Corpus(sizes)


def _of_mix(path: Path, value: dict[str, Any]) -> Corpus:
    config = load_config(path)
    tokens = config.tokens_per_sample
    if tokens is None:
        raise ArgumentError(
            f"{path} must have tokens_per_sample: sizes are in samples, a fit needs tokens"
        )
    listed = [d.get("name") for d in value["domains"]]
    if listed != [d.name for d in config.domains]:
        raise ArgumentError(
            f"{path} has nested domains; a fit needs a flat list, or a YAML mapping of sizes"
        )
    return Corpus(
        {d.name: math.inf if d.size is None else float(d.size * tokens) for d in config.domains},
        {d.name: float(d.max_epochs) for d in config.domains if d.max_epochs is not None},
        None if config.train_samples is None else float(config.train_samples * tokens),
        value,
    )


@dataclass(frozen=True)
class Task:
    """What is asked for; build one with `make_task`.

    Attributes:
        domains: Names, D of them.
        target: Column -> coefficient in the objective, which is to be as small as possible: > 0
            for a loss, < 0 for a metric, magnitudes sum to 1.
        prior: float64[D], sum 1.
        sizes: float64[D] in tokens, or None.
        max_epochs: float64[D], inf where there is no cap.
        budget: Tokens of the run that the mixture is for, or None.
        seed: Of folds, bootstrap and simulated mixtures.
        notes: What the caller should know.
    """

    domains: tuple[str, ...]
    target: dict[str, float]
    prior: Floats
    sizes: Floats | None = None
    max_epochs: Floats | None = None
    budget: float | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def most(self) -> Floats:
        """float64[D]: the largest weight of each domain that the caps allow."""
        if self.sizes is None or self.budget is None or self.max_epochs is None:
            return np.ones(len(self.domains))
        with np.errstate(invalid="ignore"):
            room = np.where(np.isinf(self.max_epochs), np.inf, self.max_epochs * self.sizes)
        return np.minimum(room / self.budget, 1.0)

    def on(self, places: npt.NDArray[np.int64]) -> "Task":
        """The task for some of the domains alone.

        Raises:
            ArgumentError: Their caps leave the budget unspent.
        """
        prior = self.prior[places]
        made = replace(
            self,
            domains=tuple(self.domains[i] for i in places),
            prior=normalise(prior if prior.any() else np.ones(len(places))),
            sizes=None if self.sizes is None else self.sizes[places],
            max_epochs=None if self.max_epochs is None else self.max_epochs[places],
        )
        if made.most.sum() < 1:
            raise ArgumentError(f"the caps of {some(made.domains)} alone leave the budget unspent")
        return made

    def epochs(self, weights: Floats) -> Floats | None:
        """float64[D]: passes over each domain in the run; None without sizes and a budget."""
        if self.sizes is None or self.budget is None:
            return None
        return weights * self.budget / self.sizes

    def objective(self, outcomes: Mapping[str, Floats]) -> Floats:
        """The objective of each run, from its outcomes (or predictions of them)."""
        total: Floats = sum(
            (c * outcomes[column] for column, c in self.target.items()), start=np.zeros(())
        )
        return total


def make_task(
    domains: Sequence[str],
    target: Mapping[str, float] | Sequence[str] | str = (),
    *,
    prior: Mapping[str, float] | Sequence[float] | Floats | None = None,
    corpus: Corpus | None = None,
    cap: float | None = None,
    budget: float | None = None,
    seed: int = 0,
) -> Task:
    """Check what is asked for.

    Args:
        domains: Names, in the order of the runs.
        target: Outcome columns to be made good, alike or with weights: `"loss/web"`,
            `["loss/web", "loss/code"]`, `{"loss/web": 2, "metric/qa": 1}`. Weights are > 0 for
            either kind: a metric counts with its sign turned.
        prior: Where the search begins, and what KL is taken to; None: in proportion to the
            corpus, or uniform without one.
        corpus: Sizes in tokens.
        cap: Most epochs of any one domain; needs corpus and budget.
        budget: Tokens of the run; None: that of the corpus.
        seed: Of folds, bootstrap and simulated mixtures.

    Raises:
        ValueError, TypeError: A bad argument, or caps that leave the budget unspent.
    """
    notes = []
    names = tuple(domains)
    goal = _target(target)
    sizes = epochs = None
    if corpus is not None:
        _same_names(names, corpus)
        sizes = np.array([corpus.sizes[d] for d in names])
        budget = corpus.budget if budget is None else budget
        epochs = np.array([corpus.max_epochs.get(d, math.inf) for d in names])
    if budget is not None:
        budget = number("budget", budget, 0, above=True)
    if cap is not None:
        if sizes is None or epochs is None or budget is None:
            lacks = "sizes (a prior file)" if sizes is None else "a budget"
            raise ArgumentError(f"cap={cap!r} needs {lacks}: epochs are weight x budget / size")
        epochs = np.minimum(epochs, number("cap", cap, 0, above=True))
    if prior is not None:
        base = normalise(_checks.weights("prior", prior, names))
    elif sizes is not None and np.isfinite(sizes).all():
        base = normalise(sizes)
    else:
        base = np.full(len(names), 1 / len(names))
        notes.append("no sizes of all domains were given: the prior is uniform")
    seed = _checks.integer("seed", seed, 0, (1 << 63) - 1)
    task = Task(names, goal, base, sizes, epochs, budget, seed, tuple(notes))
    room = float(task.most.sum())
    if room < 1:
        raise ArgumentError(
            f"budget={budget:g} cannot be spent: the caps allow {room:.3g} of it (raise the cap)"
        )
    return task


def _target(target: object) -> dict[str, float]:
    if isinstance(target, str):
        target = [target]
    if isinstance(target, Mapping):
        given = {str(k): number(f"target[{k!r}]", v, 0, above=True) for k, v in target.items()}
    elif isinstance(target, Sequence):
        given = dict.fromkeys((str(t) for t in target), 1.0)
        if len(given) != len(target):
            raise ArgumentError(f"target names a column twice: {list(target)}")
    else:
        raise ArgumentTypeError(f"target must be columns or a mapping of them, got {target!r}")
    for column in given:
        if not column.startswith((LOSS, METRIC)):
            raise ArgumentError(f"target must be columns loss/NAME or metric/NAME, got {column!r}")
    total = sum(given.values())
    return {c: (w if c.startswith(LOSS) else -w) / total for c, w in given.items()}


def _same_names(names: tuple[str, ...], corpus: Corpus) -> None:
    for d in names:
        if d not in corpus.sizes:
            raise ArgumentError(f"the sizes lack the domain {d!r}{closest(d, list(corpus.sizes))}")
    for d in corpus.sizes:
        if d not in names:
            raise ArgumentError(
                f"the sizes have a domain {d!r} that the runs have not{closest(d, names)}"
            )


def check_target(task: Task, runs: Runs) -> None:
    """Refuse a task without a target, or with a column that the runs lack."""
    if not task.target:
        raise ArgumentError(f"target is missing; {runs.file} has: {', '.join(runs.outcomes)}")
    for column in task.target:
        runs.outcome(column)
