"""Mixtures found offline: `fit` over finished runs, and over what proxy models have left behind.

The registry is a dict and two functions, as that of the methods; a fit's file is imported when it
is asked for.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mixcore._registry import (
    check_new,
    check_options,
    class_of,
    described,
    options_of,
)
from mixcore.fit.base import Fit, Fitter
from mixcore.fit.runs import Runs, read_runs
from mixcore.fit.task import Corpus, make_task, read_corpus

__all__ = ["Fit", "Fitter", "FitterInfo", "fit", "fitter_class", "fitters", "register"]

F = TypeVar("F", bound=type[Fitter])

# Name -> the module that registers it; its class, once it is imported.
_FITTERS: dict[str, str | type[Fitter]] = {
    # regression over many runs
    "regmix": "mixcore.fit.regmix",
    "climb": "mixcore.fit.climb",
    "demix": "mixcore.fit.demix",
    # parametric laws
    "mixing_law": "mixcore.fit.mixing_law",
    "olmix": "mixcore.fit.olmix",
    "bimix": "mixcore.fit.bimix",
    "autoscale": "mixcore.fit.autoscale",
    "dcpt": "mixcore.fit.dcpt",
    "cmr": "mixcore.fit.cmr",
    "apple_law": "mixcore.fit.apple_law",
    # one proxy model a domain
    "mde": "mixcore.fit.mde",
    "mixmin": "mixcore.fit.mixmin",
    "utilimax": "mixcore.fit.utilimax",
    # one proxy model, its embeddings or its log
    "chameleon": "mixcore.fit.chameleon",
    "doremi": "mixcore.fit.proxy_log",
    "doge": "mixcore.fit.proxy_log",
}


@dataclass(frozen=True)
class FitterInfo:
    """What a fitter says of itself.

    Attributes:
        reads: What it is fitted to.
        tractable: How it makes the bilevel problem tractable.
        required: Options without a default.
        options: The others, with theirs.
    """

    name: str
    reads: str
    paper: str
    tractable: str
    required: tuple[str, ...]
    options: dict[str, Any]
    doc: str


def register(cls: F) -> F:
    """Class decorator: make a fitter known by its name.

    Raises:
        ArgumentError: Another fitter has that name.
    """
    check_new("fit", cls.name, cls, _FITTERS)
    _FITTERS[cls.name] = cls
    return cls


def fitters() -> dict[str, FitterInfo]:
    """Every fitter by its name."""
    found = {}
    for name in _FITTERS:
        cls = fitter_class(name)
        found[name] = FitterInfo(
            name=name,
            reads=cls.reads,
            paper=cls.paper,
            tractable=cls.tractable,
            **described(cls),
        )
    return found


def fitter_class(name: str) -> type[Fitter]:
    """The class of that name.

    Raises:
        ArgumentError: There is none.
    """
    return class_of("fit", name, _FITTERS)


def fit(
    name: str,
    data: Any,
    target: Mapping[str, float] | Sequence[str] | str = (),
    *,
    prior: Mapping[str, float] | None = None,
    corpus: Corpus | str | os.PathLike[str] | None = None,
    cap: float | None = None,
    budget: float | None = None,
    seed: int = 0,
    judges: Mapping[str, Runs] | Sequence[str | os.PathLike[str]] = (),
    **options: Any,
) -> Fit:
    """Find a mixture.

    Example:
        >>> found = fit("regmix", "runs.csv", "loss/pile_cc", corpus="mix.yaml", cap=4)
        >>> found.weights, found.quality["loss/pile_cc"].spearman

    Args:
        name: Short name of the fitter; `fitters()` lists them.
        data: The file it reads (`runs.csv` for most), or what its `read` returns.
        target: Outcome columns to be made good; see `mixcore.fit.task.make_task`.
        prior: Where the search begins, by name; None: in proportion to the corpus, or uniform.
        corpus: Sizes in tokens: a `mix.yaml`, a YAML mapping, or a Corpus.
        cap: Most epochs of any one domain.
        budget: Tokens of the run that the mixture is for.
        seed: Of folds, bootstrap and simulated mixtures.
        judges: Other `runs.csv` to judge the predictions by; never fitted.
        options: The fitter's own.

    Raises:
        ValueError, TypeError: A bad argument, option or table; the message names it.
        OSError: A file cannot be read.
    """
    cls = fitter_class(name)
    check_options("fit", name, options_of(cls), options)
    made = cls(**options)
    if isinstance(data, (str, os.PathLike)):
        data = made.read(data)
    if isinstance(corpus, (str, os.PathLike)):
        corpus = read_corpus(corpus)
    if not isinstance(judges, Mapping):
        judges = {str(file): read_runs(file) for file in judges}
    known, base = made.collapse(corpus, prior)
    task = make_task(
        data.domains, target, prior=base, corpus=known, cap=cap, budget=budget, seed=seed
    )
    found = made.expand(made.fit(data, task, judges), corpus)
    return replace(found, options=options)
