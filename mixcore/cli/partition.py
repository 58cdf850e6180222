"""`mixcore partition`: a corpus clustered into sub-domains, as views."""

import click

from mixcore.cli import show


@click.command(
    "partition",
    epilog="\b\nExample:\n  mixcore partition data/web data/code -o parts --k 20 "
    "--tokens-per-sample 2048\n  mixcore plan parts/mix.yaml",
)
@click.argument("prefixes", nargs=-1, required=True)
@click.option("-o", "--out", required=True, type=click.Path(), help="A new folder.")
@click.option("--k", default="2,4,8,16,32", show_default=True,
              help="Clusters; several numbers: the one with the best silhouette.")  # fmt: skip
@click.option("--tokens-per-sample", type=click.IntRange(1), required=True, help="Of the run.")
@click.option("--batch-size", type=click.IntRange(1), default=512, show_default=True)
@click.option("--embeddings", type=click.Path(exists=True, dir_okay=False),
              help="A .npy with one row a document, instead of token n-grams.")  # fmt: skip
@click.option("--ngram", type=click.IntRange(1, 8), default=2, show_default=True,
              help="Longest token n-gram.")  # fmt: skip
@click.option("--merge", type=float, default=0.0, show_default=True,
              help="Merge clusters whose centroids are nearer than this.")  # fmt: skip
@click.option("--min-tokens", type=click.IntRange(0), default=0, show_default=True,
              help="Dissolve smaller parts into their neighbours.")  # fmt: skip
@click.option("--by", type=click.Choice(["source", "cluster"]), default="source",
              show_default=True, help="Outer groups of the mix.yaml.")  # fmt: skip
@click.option("--fit-documents", type=click.IntRange(1), default=100_000, show_default=True,
              help="Documents that the clusters are fitted to.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True)
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(
    prefixes: tuple[str, ...],
    out: str,
    k: str,
    tokens_per_sample: int,
    batch_size: int,
    embeddings: str | None,
    ngram: int,
    merge: float,
    min_tokens: int,
    by: str,
    fit_documents: int,
    seed: int,
    json_: bool,
) -> None:
    """Cluster corpora into sub-domains: views on their .bin (no token is copied) and a mix.yaml."""
    from mixcore.partition import TokenFeatures, partition

    try:
        numbers = [int(n) for n in k.split(",")]
    except ValueError:
        raise click.UsageError(f"--k must be a number or several with commas, got {k!r}") from None
    with show.progress() as bar:
        tasks = {what: bar.add_task(what, total=None) for what in ("fitting", "assigning", "views")}

        def progress(what: str, done: int, of: int) -> None:
            bar.update(tasks[what], completed=done, total=of or None)

        made = partition(
            prefixes,
            out,
            k=numbers[0] if len(numbers) == 1 else numbers,
            tokens_per_sample=tokens_per_sample,
            batch_size=batch_size,
            embeddings=embeddings,
            features=None if embeddings else TokenFeatures(ngram, seed=seed),
            fit_documents=fit_documents,
            merge=merge,
            min_tokens=min_tokens,
            by=by,
            seed=seed,
            progress=progress,
        )
    if json_:
        show.as_json({"folder": out, "silhouettes": made.silhouettes, "domains": made.domains})
        return
    screen = show.console()
    if made.silhouettes:
        tried = ", ".join(f"{n}: {s:.3f}" for n, s in made.silhouettes.items())
        screen.print(f"silhouettes by number of clusters: {tried}")
    rows = [
        [d["name"], *(show.number(d[c]) for c in ("documents", "tokens"))] for d in made.domains
    ]
    title = f"Sub-domains in {out}" + (" (the first 200)" if len(rows) > 200 else "")
    screen.print(show.table(title, ["domain", "documents", "tokens"], rows[:200]))
    screen.print(f"mixcore plan {out}/mix.yaml")
