"""`mixcore fit`: find a mixture from finished runs, and say how far to trust it."""

from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.text import Text

from mixcore._yaml import parse
from mixcore.cli import show
from mixcore.errors import ArgumentError
from mixcore.fit import Fit, FitterInfo, fit, fitter_class, fitters
from mixcore.fit.runs import NUMBERS, Runs, read_runs
from mixcore.fit.task import read_corpus
from mixcore.fit.weights_file import write_mixtures, write_weights

EXAMPLES = """\b
Example:
  mixcore fit                      # the list; `mixcore fit regmix`: what that one does
  mixcore fit regmix runs.csv --target loss/web --prior mix.yaml --cap 4
  mixcore fit olmix runs.csv --target loss/web=2 --target loss/code -s kl=0.05
"""


@click.command("fit", epilog=EXAMPLES)
@click.argument("method", required=False)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--target", "-t", multiple=True, metavar="COLUMN[=WEIGHT]", help="What to make good.")
@click.option(
    "--prior",
    type=click.Path(exists=True, dir_okay=False),
    help="Sizes in tokens: a mix.yaml, or a YAML mapping.",
)
@click.option("--cap", type=float, metavar="EPOCHS", help="Most epochs of any one domain.")
@click.option("--budget", type=float, metavar="TOKENS", help="Tokens of the run it is for.")
@click.option(
    "--judge",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Other runs.csv to judge by; never fitted.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Runs of one tokens, params, seed or batch_size.",
)
@click.option(
    "--set",
    "-s",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the method (YAML).",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of folds, bootstrap, simulation."
)
@click.option(
    "--out",
    "-o",
    type=click.Path(dir_okay=False),
    default="weights.yaml",
    show_default=True,
    help="The new file.",
)
@click.option(
    "--next",
    "next_",
    type=click.Path(dir_okay=False),
    help="Where the next round's mixtures go (climb, demix).",
)
@click.option("--force", is_flag=True, help="Replace --out if it is there.")
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(
    method: str | None,
    file: str | None,
    target: tuple[str, ...],
    prior: str | None,
    cap: float | None,
    budget: float | None,
    judge: tuple[str, ...],
    only: tuple[str, ...],
    options: tuple[str, ...],
    seed: int,
    out: str,
    next_: str | None,
    force: bool,
    json_: bool,
) -> None:
    """Find a mixture with METHOD from FILE (runs.csv for most) and write weights.yaml."""
    if method is None:
        _list(json_)
        return
    cls = fitter_class(method)
    if file is None:
        _describe(fitters()[method], json_)
        return
    if Path(out).exists() and not force:  # before the work, not after it
        raise ArgumentError(f"{out} exists already (--force replaces it)")
    given = _options(options)
    data: Any = file
    if only:
        if cls.reads != "runs":
            raise ArgumentError(f"--only is for runs.csv, which {method} does not read")
        data = _kept(read_runs(file), only)
    corpus = None if prior is None else read_corpus(prior)
    found = fit(
        method,
        data,
        _weighted(target),
        corpus=corpus,
        cap=cap,
        budget=budget,
        seed=seed,
        judges=judge,
        **given,
    )
    mix = None if corpus is None else corpus.mix
    write_weights(out, found, mix=mix, folder=Path(prior).parent if prior else None, force=force)
    if next_ is not None:
        if "next" not in found.extra:
            raise ArgumentError(f"--next: {method} proposes no further runs")
        write_mixtures(next_, found.task.domains, found.extra["next"])
    facts = found.to_json() | {"file": out}
    if json_:
        show.as_json(facts)
    else:
        _print(found, out)


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for entry in given:
        name, sign, value = entry.partition("=")
        if not sign or not name.isidentifier():
            raise ArgumentError(f"--set must be NAME=VALUE, got {entry!r}")
        if name in made:
            raise ArgumentError(f"--set gives {name!r} twice")
        made[name], _, _ = parse(value.encode(), f"--set {name}")
    return made


def _weighted(target: tuple[str, ...]) -> dict[str, float]:
    made: dict[str, float] = {}
    for entry in target:
        column, sign, weight = entry.rpartition("=")
        if not sign:
            column, weight = entry, "1"
        try:
            number = float(weight)
        except ValueError:
            raise ArgumentError(
                f"--target must be COLUMN or COLUMN=WEIGHT, got {entry!r}"
            ) from None
        if column in made:
            raise ArgumentError(f"--target names {column!r} twice")
        made[column] = number
    return made


def _kept(runs: Runs, only: tuple[str, ...]) -> Runs:
    for entry in only:
        column, _, value = entry.partition("=")
        values = getattr(runs, column) if column in NUMBERS else None
        if values is None:
            known = [c for c in NUMBERS if getattr(runs, c) is not None]
            raise ArgumentError(f"--only {entry!r}: {runs.file} has {', '.join(known) or 'none'}")
        try:
            rows = values == float(value)
        except ValueError:
            raise ArgumentError(f"--only must be COLUMN=VALUE, got {entry!r}") from None
        if not rows.any():
            there = ", ".join(f"{v:g}" for v in np.unique(values)[:8])
            raise ArgumentError(f"--only {entry!r} leaves no run; {column} there: {there}")
        runs = runs.some(rows)
    return runs


def _list(json_: bool) -> None:
    found = fitters()
    if json_:
        show.as_json({"fits": [_facts(info) for info in found.values()]})
        return
    rows = [[i.name, i.reads, i.tractable, i.paper] for i in found.values()]
    heads = ["name", "reads", "how it makes the problem tractable", "paper"]
    show.console().print(show.table("Fits", heads, rows))


def _describe(info: FitterInfo, json_: bool) -> None:
    if json_:
        show.as_json(_facts(info))
        return
    options = [f"{o} (required)" for o in info.required]
    options += [f"{o}={d!r}" for o, d in info.options.items()]
    lines = [
        f"{info.name}: {info.paper}",
        f"reads: {info.reads}",
        f"how: {info.tractable}",
        f"options: {', '.join(options) or 'none'}",
        "",
        info.doc,
    ]
    show.console().print(Text("\n".join(lines)))


def _facts(info: FitterInfo) -> dict[str, Any]:
    return {**vars(info), "required": list(info.required)}


def _print(found: Fit, out: str) -> None:
    console = show.console()
    epochs = found.epochs
    rows = []
    for i, name in enumerate(found.task.domains):
        passes = "-" if epochs is None else f"{epochs[i]:.3f}"
        rows.append([name, f"{found.weights[i]:.6f}", f"{found.task.prior[i]:.6f}", passes])
    title = f"{found.method} -> {out}"
    console.print(show.table(title, ["domain", "weight", "prior", "epochs"], rows))
    rows = []
    for where, table in {"held out": found.quality, **found.elsewhere}.items():
        for column, q in table.items():
            interval = f"{q.low:.3f} to {q.high:.3f}"
            numbers = [f"{q.mae:.4g}", f"{q.mre:.3%}", f"{q.r2:.4f}", f"{q.spearman:.4f}", interval]
            rows.append([where, column, str(q.runs), *numbers])
    if rows:
        heads = ["runs", "outcome", "n", "mean abs error", "relative", "R2", "rank corr.", "95 %"]
        console.print(show.table("How well outcomes are predicted", heads, rows))
    rows = [
        [c, f"{v:.6g}", show.number(found.predicted_prior.get(c))]
        for c, v in found.predicted.items()
    ]
    if rows:
        console.print(show.table("Predicted", ["outcome", "at the weights", "at the prior"], rows))
    for note in found.notes:
        console.print(Text(f"note: {note}"))
