"""k-means over document vectors: k by silhouette or given, near clusters merged, small dissolved.

The order of work is that of CLIMB (Diao et al. 2025, arXiv 2504.13161: cluster, prune, merge
centroids closer than a distance) and the choice of k that of R&B (Ge et al. 2025, arXiv 2505.00358:
silhouette; they find quality U-shaped in the number of clusters). CLIMB prunes by quality scores;
here a cluster is pruned because it is too small, and its documents go to the next nearest: nothing
is dropped. k-means, silhouette and linkage are scikit-learn's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import integer
from mixcore.errors import ArgumentError
from mixcore.partition.features import Floats, needs_sklearn

Ints = npt.NDArray[np.int64]

TWO_LEVELS = 512  # more clusters than these are found in two steps, of about sqrt(k) each
SILHOUETTE = 2_000  # documents that a silhouette is taken over
MAX_K = 65_536


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centroids, and the silhouettes that k was chosen by.

    Attributes:
        centroids: float32[k, dimensions].
        silhouettes: k -> mean silhouette of a sample, for each k that was tried.
        parents: int64[k], first-level cluster of each; None: found in one step.
        top: float32[p, dimensions], the first level's centroids, or None.
    """

    centroids: Floats
    silhouettes: dict[int, float] = field(default_factory=dict)
    parents: Ints | None = None
    top: Floats | None = None

    def __len__(self) -> int:
        return len(self.centroids)

    def assign(self, x: npt.NDArray[Any]) -> Ints:
        """The nearest centroid of each row; of two levels, the nearest below the nearest parent."""
        x = np.asarray(x, np.float32)
        if self.top is None or self.parents is None:
            return _nearest(x, self.centroids)
        parent = _nearest(x, self.top)
        label = np.empty(len(x), np.int64)
        for p in np.unique(parent):
            rows, below = np.flatnonzero(parent == p), np.flatnonzero(self.parents == p)
            label[rows] = below[_nearest(x[rows], self.centroids[below])]
        return label


def fit_clusters(x: npt.NDArray[Any], k: int | Sequence[int], seed: int = 0) -> Clusters:
    """k-means, with k given or the one of several with the largest silhouette.

    Example:
        >>> fit_clusters(vectors, [2, 4, 8, 16]).silhouettes
        {2: 0.31, 4: 0.62, 8: 0.44, 16: 0.37}

    Args:
        x: [n, dimensions].
        k: Number of clusters, 1 to n, or those to try (2 to n - 1).
        seed: Of the starts.

    Raises:
        ArgumentError: A k that the number of documents does not allow.
    """
    needs_sklearn("k-means")
    x = np.ascontiguousarray(x, np.float32)
    num = len(x)
    if isinstance(k, (int, np.integer)):
        return _kmeans(x, integer("k", k, 1, min(num, MAX_K)), seed)
    tries = sorted({integer("k", one, 2, max(2, num - 1)) for one in k})
    if not tries or num < 3:
        raise ArgumentError(f"k must be chosen from at least one number and 3 documents, got {k}")
    from sklearn.metrics import silhouette_score

    chosen = np.random.default_rng(seed).permutation(num)[:SILHOUETTE]
    silhouettes, best = {}, None
    for one in tries:
        found = _kmeans(x, one, seed)
        labels = found.assign(x[chosen])
        several = 1 < len(np.unique(labels)) < len(chosen)
        silhouettes[one] = float(silhouette_score(x[chosen], labels)) if several else -1.0
        if best is None or silhouettes[one] > silhouettes[best[0]]:
            best = one, found
    assert best is not None
    return Clusters(best[1].centroids, silhouettes, best[1].parents, best[1].top)


def _kmeans(x: Floats, k: int, seed: int) -> Clusters:
    if k <= TWO_LEVELS:
        return Clusters(_centroids(x, k, seed))
    top = _centroids(x, math.isqrt(k), seed)
    parent = _nearest(x, top)
    members = np.bincount(parent, minlength=len(top))
    below, parents = [], []
    for p, number in enumerate(_split(k, members)):
        if number:
            below.append(_centroids(x[parent == p], number, seed))
            parents += [p] * len(below[-1])
    return Clusters(np.concatenate(below), parents=np.array(parents), top=top)


def _split(k: int, members: Ints) -> list[int]:
    """Clusters dealt out in proportion to the members, at least 1 and at most one a member."""
    least = (members > 0).astype(np.int64)
    made = least + (
        (members - least) * ((k - least.sum()) / max((members - least).sum(), 1))
    ).astype(np.int64)
    for p in np.argsort(made - members * (k / members.sum()), kind="stable"):
        room = min(int(members[p] - made[p]), k - int(made.sum()), 1)
        made[p] += max(room, 0)
    return [int(n) for n in made]


def _centroids(x: Floats, k: int, seed: int) -> Floats:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if k == len(x):
        return x
    if len(x) > 50_000:
        model: Any = MiniBatchKMeans(k, random_state=seed, n_init=3, batch_size=max(4096, 4 * k))
    else:
        model = KMeans(k, random_state=seed, n_init=4 if k <= 64 else 1)
    return np.asarray(model.fit(x).cluster_centers_, np.float32)


def _nearest(x: Floats, centroids: Floats) -> Ints:
    from sklearn.metrics import pairwise_distances_argmin

    return np.asarray(pairwise_distances_argmin(x, centroids), np.int64)


def merge_near(centroids: Floats, distance: float) -> Ints:
    """Group centroids whose average distance (average linkage) is below `distance`.

    Example:
        >>> merge_near(np.array([[0.0], [0.1], [5.0]]), 1.0)
        array([0, 0, 1])

    Returns:
        int64[k], the new number of each, in the order of first appearance.
    """
    if not distance >= 0 or math.isinf(distance):
        raise ArgumentError(f"merge distance must be finite and >= 0, got {distance}")
    if len(centroids) < 2 or distance == 0:
        return np.arange(len(centroids))
    if len(centroids) > 20_000:
        raise ArgumentError(
            f"merging compares all pairs, at most 20000 clusters, got {len(centroids)}"
        )
    from sklearn.cluster import AgglomerativeClustering

    model = AgglomerativeClustering(
        n_clusters=None, distance_threshold=distance, linkage="average", metric="euclidean"
    )
    labels = model.fit_predict(centroids)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def dissolve(
    labels: Ints, tokens: Ints, least: int, centroids: Floats, x: npt.NDArray[Any] | None = None
) -> Ints:
    """Move the documents of clusters below `least` tokens to the nearest that is large enough.

    The smallest goes first, and what it gives may save the next. If all together are below `least`,
    one cluster is left.

    Args:
        labels: int64[n], cluster of each document.
        tokens: int64[n], its tokens.
        least: Tokens that a cluster must have.
        centroids: float32[k, dimensions].
        x: float32[n, dimensions]: each document goes to its own nearest cluster; None: all of a
            cluster's documents go where its centroid is nearest.

    Returns:
        int64[n], the new labels (same numbers, some unused).
    """
    labels = labels.copy()
    sums = np.bincount(labels, tokens, len(centroids)).astype(np.int64)
    alive = np.bincount(labels, minlength=len(centroids)) > 0
    while alive.sum() > 1:
        present = np.flatnonzero(alive)
        smallest = present[np.argmin(sums[present])]
        if sums[smallest] >= least:
            break
        alive[smallest] = False
        others = present[present != smallest]
        rows = np.flatnonzero(labels == smallest)
        near = centroids[[smallest]] if x is None else np.asarray(x[rows], np.float32)
        labels[rows] = others[_nearest(near, centroids[others])]
        np.add.at(sums, labels[rows], tokens[rows])
        sums[smallest] = 0
    return labels
