"""`mixcore transfer`: how far a choice made at one scale or outcome holds at another."""

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from mixcore.cli import show
from mixcore.errors import ArgumentError
from mixcore.fit.runs import read_runs
from mixcore.fit.transfer import Transfer, learning_curve, pairs_of, series_of, transfer

EXAMPLES = """\b
Example:
  mixcore transfer 1m.csv 60m.csv --outcome loss/web     # two scales
  mixcore transfer runs.csv                              # every outcome against every other
  mixcore transfer runs.csv --by params                  # sizes within one file
  mixcore transfer runs.csv --outcome loss/web --learn regmix   # how many runs are enough
"""


@click.command("transfer", epilog=EXAMPLES)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--outcome", "-t", multiple=True, metavar="COLUMN", help="Which; none: all they share."
)
@click.option("--by", type=click.Choice(["params", "tokens"]), help="Split each file by a column.")
@click.option(
    "--match",
    type=click.Choice(["auto", "mixture", "run"]),
    default="auto",
    show_default=True,
    help="What makes two runs the same.",
)
@click.option(
    "--learn",
    metavar="METHOD",
    help="Learning curve of a fit to the first file, judged by the second.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of bootstrap and subsets.")
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(
    files: tuple[str, ...],
    outcome: tuple[str, ...],
    by: str | None,
    match: str,
    learn: str | None,
    seed: int,
    json_: bool,
) -> None:
    """Compare runs.csv FILES: rank correlation, regret of choosing by proxy, runs needed."""
    stems = [Path(f).stem for f in files]
    names = stems if len(set(stems)) == len(stems) else list(files)
    if len(set(names)) < len(names):
        raise ArgumentError(f"a file is named twice: {', '.join(files)}")
    runs = {name: read_runs(f) for name, f in zip(names, files, strict=True)}
    facts: dict[str, Any] = {}
    if learn is not None:
        if len(outcome) != 1 or len(files) > 2:
            raise ArgumentError("--learn needs one --outcome, and at most two files")
        sets = list(runs.values())
        judge = sets[1] if len(sets) == 2 else None
        curve = learning_curve(learn, sets[0], outcome[0], judge, seed=seed)
        facts["learning_curve"] = {n: list(values) for n, values in curve.items()}
    else:
        pairs = pairs_of(series_of(runs, outcome, by))
        if not pairs:
            raise ArgumentError("there is nothing to compare: one outcome of one set of runs")
        found = []
        with show.progress() as bar:
            for a, b in bar.track(pairs, description="comparing"):
                found.append(transfer(a, b, match=match, seed=seed))
        facts["transfers"] = [t.to_json() for t in found]
    if json_:
        show.as_json(facts)
    elif learn is not None:
        _print_curve(learn, facts["learning_curve"])
    else:
        _print(found)


def _print_curve(name: str, curve: dict[int, list[float]]) -> None:
    rows = [[str(n), *(f"{v:.4f}" for v in values)] for n, values in curve.items()]
    title = f"Rank correlation of {name} by the number of mixtures it was fitted to"
    show.console().print(show.table(title, ["mixtures", "mean", "least", "largest"], rows))


def _print(found: list[Transfer]) -> None:
    rows = []
    for t in found:
        rows.append(
            [
                t.proxy,
                t.target,
                str(t.mixtures),
                f"{t.spearman:.4f}",
                f"{t.low:.3f} to {t.high:.3f}",
                f"{t.agreement:.1%}",
                f"{t.regret:.4g}",
                f"{t.regret_low:.3g} to {t.regret_high:.3g}",
                f"{t.regret_in_spreads:.3f}",
                show.number(t.enough),
            ]
        )
    heads = ["proxy", "target", "mixtures", "rank corr.", "95 %", "same order"]
    heads += ["regret", "95 %", "in spreads", "enough"]
    console = show.console()
    console.print(show.table("From proxy to target", heads, rows))
    console.print(
        Text(
            "regret: target's outcome of the proxy's best mixture less that of the best there is; "
            "enough: mixtures from which on choosing among them costs at most 0.05 spreads more "
            "than choosing among all"
        )
    )
