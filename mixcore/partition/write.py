"""Corpora in, sub-domains out: views, and a `mix.yaml` of them."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import integer
from mixcore.errors import ArgumentError, OutOfRangeError
from mixcore.indexed import IndexedReader
from mixcore.partition.clusters import Clusters, dissolve, fit_clusters, merge_near
from mixcore.partition.features import TokenFeatures, read_embeddings
from mixcore.views import write_view

Ints = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]  # what, done, of

CHUNK = 4096  # documents whose vectors are held at a time
BY = ("source", "cluster")


@dataclass(frozen=True, eq=False)
class Partition:
    """What was made.

    Attributes:
        folder: Holds the views, `mix.yaml` and `partition.json`.
        domains: One mapping a view: name, prefix, source, cluster, documents, tokens.
        labels: One int64[documents] a corpus: number of the cluster of each document.
        silhouettes: k -> silhouette, where k was chosen.
    """

    folder: Path
    domains: list[dict[str, Any]]
    labels: list[Ints]
    silhouettes: dict[int, float]


def partition(
    prefixes: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    k: int | Sequence[int],
    tokens_per_sample: int,
    batch_size: int = 512,
    embeddings: str | os.PathLike[str] | None = None,
    features: TokenFeatures | None = None,
    fit_documents: int = 100_000,
    merge: float = 0.0,
    min_tokens: int = 0,
    by: str = "source",
    seed: int = 0,
    progress: Progress = lambda what, done, of: None,
) -> Partition:
    """Cluster corpora together and write every (corpus, cluster) as a view; tokens stay in place.

    Example:
        >>> made = partition(["data/web", "data/code"], "parts", k=20, tokens_per_sample=2048)
        >>> len(made.domains), made.domains[0]["name"]
        (37, 'web/00')

    Args:
        prefixes: Of the corpora, `.bin` and `.idx`.
        folder: New or empty; everything is written there, mix.yaml last.
        k: Number of clusters, or those to choose from by silhouette.
        tokens_per_sample: Of the run; a view has room for one sample at least.
        batch_size: For the mix.yaml.
        embeddings: A `.npy` with one row a document, corpora one after another; None: TF-IDF.
        features: What makes the vectors otherwise; None: TokenFeatures().
        fit_documents: Vectors and clusters are fitted to so many documents, drawn at random.
        merge: Clusters whose centroids are nearer than this become one; 0: none.
        min_tokens: Smaller parts are dissolved into the nearest ones of the same corpus.
        by: Outer groups of the mix.yaml: "source" (clusters inside) or "cluster".
        seed: Of everything random.
        progress: Called with what is going on, how much is done, of how much (0: not known).

    Raises:
        ArgumentError, DataError: A bad argument or file; nothing has been written.
    """
    target = Path(folder)
    if by not in BY:
        raise ArgumentError(f"by must be one of {BY}, got {by!r}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArgumentError(f"folder must be new or empty, got {str(target)!r}")
    least = max(integer("min_tokens", min_tokens, 0, 1 << 48), tokens_per_sample + 1)
    integer("fit_documents", fit_documents, 1, 1 << 40)
    if not prefixes:
        raise ArgumentError("prefixes must name at least one corpus, got none")
    corpora = [IndexedReader(p) for p in prefixes]
    sources = [os.path.basename(c.prefix) for c in corpora]
    if len(set(sources)) < len(sources):
        raise ArgumentError(f"the corpora must have different names, got {sources}")
    for c in corpora:
        if c.num_tokens < least:
            raise ArgumentError(f"{c.prefix} has {c.num_tokens} tokens, below {least}, one part")
    rows = np.concatenate(
        [np.stack([np.full(c.num_documents, i), np.arange(c.num_documents)], 1)
         for i, c in enumerate(corpora)]
    )  # fmt: skip
    vectors = _Vectors(corpora, rows, embeddings, features or TokenFeatures(seed=seed))
    drawn = np.random.default_rng(seed).permutation(len(rows))[:fit_documents]
    drawn.sort()
    progress("fitting", 0, 1)
    found = fit_clusters(vectors.fit(drawn), k, seed)
    joined = merge_near(found.centroids, merge)
    label = np.empty(len(rows), np.int64)
    for first in range(0, len(rows), CHUNK):
        some = np.arange(first, min(first + CHUNK, len(rows)))
        label[some] = joined[found.assign(vectors.of(some))]
        progress("assigning", int(some[-1]) + 1, len(rows))
    centroids = _averages(found, joined)
    tokens = np.concatenate([document_tokens(c) for c in corpora])
    for i in range(len(corpora)):
        mine = np.flatnonzero(rows[:, 0] == i)
        label[mine] = dissolve(label[mine], tokens[mine], least, centroids)
    label = _by_size(label, tokens)
    target.mkdir(parents=True, exist_ok=True)
    domains = _views(target, corpora, sources, rows, label, tokens, progress)
    labels = [label[rows[:, 0] == i] for i in range(len(corpora))]
    facts = {"silhouettes": found.silhouettes, "domains": domains}
    (target / "partition.json").write_text(json.dumps(facts, indent=1) + "\n")
    for source, one in zip(sources, labels, strict=True):
        np.save(target / f"{source}.labels.npy", one)
    (target / "mix.yaml").write_text(_mix(domains, by, tokens_per_sample, batch_size))
    return Partition(target, domains, labels, found.silhouettes)


class _Vectors:
    """The documents' vectors, from a file or from their tokens."""

    def __init__(
        self, corpora: list[IndexedReader], rows: Ints, embeddings: Any, features: TokenFeatures
    ) -> None:
        self.corpora, self.rows, self.features = corpora, rows, features
        self.given = None if embeddings is None else read_embeddings(embeddings, len(rows))

    def fit(self, some: Ints) -> npt.NDArray[Any]:
        if self.given is None:
            self.features.fit(self.corpora, self.rows[some])
        return self.of(some)

    def of(self, some: Ints) -> npt.NDArray[Any]:
        if self.given is not None:
            return np.asarray(self.given[some], np.float32)
        return self.features.transform(self.corpora, self.rows[some])


def document_tokens(corpus: IndexedReader) -> Ints:
    """Tokens of each document, int64[documents]."""
    ends = np.concatenate([[0], np.cumsum(corpus.sequence_lengths, dtype=np.int64)])
    bounds = np.array(corpus.document_indices)
    if len(bounds) and bounds.max() >= len(ends):
        raise OutOfRangeError(f"{corpus.idx_path}: document_indices reach beyond the sequences")
    result: Ints = np.diff(ends[bounds])
    return result


def _averages(found: Clusters, joined: Ints) -> npt.NDArray[np.float32]:
    """Centroid of each merged cluster: the mean of those that went into it."""
    num = int(joined.max()) + 1
    sums = np.zeros((num, found.centroids.shape[1]))
    np.add.at(sums, joined, found.centroids)
    return (sums / np.bincount(joined, minlength=num)[:, None]).astype(np.float32)


def _by_size(label: Ints, tokens: Ints) -> Ints:
    """Numbers from 0 on, the cluster with the most tokens first."""
    used, inverse = np.unique(label, return_inverse=True)
    order = np.argsort(-np.bincount(inverse, tokens), kind="stable")
    rank = np.empty(len(used), np.int64)
    rank[order] = np.arange(len(used))
    return rank[inverse]


def _views(
    folder: Path,
    corpora: list[IndexedReader],
    sources: list[str],
    rows: Ints,
    label: Ints,
    tokens: Ints,
    progress: Progress,
) -> list[dict[str, Any]]:
    digits = len(str(int(label.max())))
    domains = []
    for i, corpus in enumerate(corpora):
        mine = np.flatnonzero(rows[:, 0] == i)
        order = mine[np.argsort(label[mine], kind="stable")]
        for part in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
            cluster = int(label[part[0]])
            name = f"{cluster:0{digits}d}"
            prefix = f"{sources[i]}.{name}"
            write_view(folder / prefix, corpus, rows[part, 1])
            domains.append(
                {
                    "name": f"{sources[i]}/{name}",
                    "prefix": prefix,
                    "source": sources[i],
                    "cluster": name,
                    "documents": len(part),
                    "tokens": int(tokens[part].sum()),
                }
            )
            progress("views", len(domains), 0)
    return domains


def _mix(domains: list[dict[str, Any]], by: str, tokens_per_sample: int, batch_size: int) -> str:
    """A mix.yaml: groups in proportion to their tokens, and inside them in proportion to sizes."""
    other = "cluster" if by == "source" else "source"
    groups: dict[str, list[dict[str, Any]]] = {}
    for d in domains:
        groups.setdefault(d[by], []).append(d)
    total = sum(d["tokens"] for d in domains)
    lines = [
        "# Ratios inside a group are fixed (by size, where no weight is given); a method and a",
        "# schedule change the weights of the groups.",
        f"tokens_per_sample: {tokens_per_sample}",
        f"batch_size: {batch_size}",
        f"train_samples: {max(total // tokens_per_sample // batch_size, 1) * batch_size}",
        "domains:",
    ]
    for name, members in groups.items():
        share = sum(d["tokens"] for d in members) / total
        lines += [f"  - name: {json.dumps(name)}", f"    weight: {share!r}", "    domains:"]
        for d in members:
            lines.append(
                f"      - {{name: {json.dumps(d[other])}, path: {json.dumps(d['prefix'])}}}"
            )
    return "\n".join(lines) + "\n"
