"""Finer domains: a corpus clustered into sub-domains, as views that copy no token."""

from mixcore.partition.clusters import Clusters, dissolve, fit_clusters, merge_near
from mixcore.partition.features import TokenFeatures, read_embeddings
from mixcore.partition.write import Partition, partition

__all__ = [
    "Clusters",
    "Partition",
    "TokenFeatures",
    "dissolve",
    "fit_clusters",
    "merge_near",
    "partition",
    "read_embeddings",
]
