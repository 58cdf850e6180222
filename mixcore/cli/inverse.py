"""`mixcore inverse samples|targets`: back from samples, or from wanted losses, to a mixture."""

from pathlib import Path

import click
import numpy as np

from mixcore.cli import show
from mixcore.errors import ArgumentError


@click.group("inverse")
def command() -> None:
    """Estimate the mixture behind a model's samples, or find one that reaches given losses."""


@command.command(
    "samples",
    epilog="\b\nExample:\n  mixcore inverse samples generated.npy data/web data/code",
)
@click.argument("generated", type=click.Path(exists=True, dir_okay=False))
@click.argument("prefixes", nargs=-1, required=True)
@click.option("--train", type=click.IntRange(2), default=2000, show_default=True,
              help="Windows of each domain to train the classifier on.")  # fmt: skip
@click.option("--held-out", type=click.IntRange(2), default=1000, show_default=True,
              help="Windows of each domain for its confusion matrix.")  # fmt: skip
@click.option("--bootstrap", type=click.IntRange(1), default=200, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def samples(
    generated: str, prefixes: tuple[str, ...], train: int, held_out: int, bootstrap: int,
    seed: int, json_: bool,
) -> None:  # fmt: skip
    """Which mixture was a model trained on? GENERATED is a .npy of its samples, [n, length]."""
    from mixcore.inverse import estimate
    from mixcore.views import open_corpus

    try:
        tokens = np.load(generated, allow_pickle=False)
    except ValueError as e:
        raise ArgumentError(f"{generated}: no .npy of numbers: {e}") from None
    names = [Path(p).name for p in prefixes]
    if len(set(names)) < len(names):
        raise ArgumentError(f"the domains must have different names, got {names}")
    corpora = {n: open_corpus(p) for n, p in zip(names, prefixes, strict=True)}
    found = estimate(
        tokens, corpora, train=train, held_out=held_out, bootstrap=bootstrap, seed=seed
    )
    rows = [
        {
            "name": name,
            "predicted": float(found.predicted[i]),
            "em": float(found.em[i]),
            "em_interval": found.em_interval[i].tolist(),
            "least_squares": float(found.least_squares[i]),
            "least_squares_interval": found.least_squares_interval[i].tolist(),
            "recall": float(found.confusion[i, i]),
        }
        for i, name in enumerate(found.domains)
    ]
    if json_:
        show.as_json({"samples": found.num_samples, "level": found.level, "domains": rows})
        return

    def interval(low: float, high: float) -> str:
        return f"{low:.4f} to {high:.4f}"

    cells = [
        [r["name"], f"{r['predicted']:.4f}", f"{r['em']:.4f}", interval(*r["em_interval"]),
         f"{r['least_squares']:.4f}", interval(*r["least_squares_interval"]), f"{r['recall']:.3f}"]
        for r in rows
    ]  # fmt: skip
    heads = ["domain", "predicted", "em", "95%", "least squares", "95%", "recall"]
    show.console().print(show.table(f"Mixture behind {found.num_samples:,} samples", heads, cells))


@command.command(
    "targets",
    epilog="\b\nExample:\n  mixcore inverse targets laws.json --target web=2.3 --target code=1.9",
)
@click.argument("laws", type=click.Path(exists=True, dir_okay=False))
@click.option("--target", "targets", multiple=True, required=True, metavar="NAME=LOSS")
@click.option("--prior", help="One weight a domain with commas; default: uniform.")
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def targets_(laws: str, targets: tuple[str, ...], prior: str | None, json_: bool) -> None:
    """Which mixture reaches these losses, by fitted laws? LAWS is JSON of c, k, t (see docs)."""
    from mixcore.inverse.goal import reach, read_laws

    domains, functions = read_laws(laws)
    goals = {}
    for item in targets:
        name, _, value = item.rpartition("=")
        try:
            goals[name] = float(value)
        except ValueError:
            raise ArgumentError(f"--target must be NAME=LOSS, got {item!r}") from None
    try:
        base = [1.0] * len(domains) if prior is None else [float(p) for p in prior.split(",")]
    except ValueError:
        raise ArgumentError(f"--prior must be numbers with commas, got {prior!r}") from None
    if len(base) != len(domains):
        raise ArgumentError(f"--prior must have {len(domains)} numbers, got {len(base)}")
    found = reach(functions, goals, base)
    weights = dict(zip(domains, found.weights.tolist(), strict=True))
    if json_:
        show.as_json(
            {"reached": found.reached, "weights": weights, "losses": found.losses,
             "excess": found.excess, "kl": found.kl}
        )  # fmt: skip
        return
    out = show.console()
    out.print("every target is reached" if found.reached else "not reached; this comes nearest")
    out.print(
        show.table("Mixture", ["domain", "weight"], [[d, f"{w:.6f}"] for d, w in weights.items()])
    )
    rows = [
        [n, f"{goals[n]:.6g}", f"{v:.6g}", f"{found.excess[n]:.3g}"]
        for n, v in found.losses.items()
    ]
    out.print(show.table("Losses", ["set", "target", "predicted", "missing"], rows))
