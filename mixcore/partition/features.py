"""Documents as vectors: TF-IDF of hashed token n-grams, reduced by a truncated SVD.

Latent semantic analysis on tokens instead of words: no tokenizer is needed, the corpus is tokens
already. Counting is numpy here, because scikit-learn's vectorizers want text; TF-IDF and SVD are
scikit-learn's.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._checks import integer
from mixcore.errors import ArgumentError, DataError, MixcoreError
from mixcore.indexed import IndexedReader

Floats = npt.NDArray[np.float32]

MULTIPLIER = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio: Knuth's multiplicative hashing


def needs_sklearn(what: str) -> None:
    """Say which extra brings scikit-learn, once, where it is missing.

    Raises:
        MixcoreError: It cannot be imported.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as e:
        raise MixcoreError(
            f"{what} needs scikit-learn ({e}): pip install 'mixcore[partition]'"
        ) from None


class TokenFeatures:
    """TF-IDF of token n-grams and its SVD, fitted on some documents, applied to any.

    Example:
        >>> features = TokenFeatures(ngram=2).fit(corpora, sample)  # rows (corpus, document)
        >>> features.transform(corpora, sample).shape
        (20000, 64)

    Args:
        ngram: Longest n-gram; all lengths from 1 on are counted.
        buckets: N-grams are hashed into so many features.
        dimensions: Of the SVD; fewer where there are fewer documents.
        max_tokens: Tokens of a document that are looked at, from its beginning.
        seed: Of the SVD.
    """

    def __init__(
        self,
        ngram: int = 2,
        buckets: int = 1 << 18,
        dimensions: int = 64,
        max_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        needs_sklearn("TF-IDF")
        self.ngram = integer("ngram", ngram, 1, 8)
        self.buckets = integer("buckets", buckets, 2, 1 << 30)
        self.dimensions = integer("dimensions", dimensions, 1, 4096)
        self.max_tokens = integer("max_tokens", max_tokens, 1, 1 << 30)
        self.seed = integer("seed", seed, 0, (1 << 32) - 1)
        self._idf: Any = None
        self._svd: Any = None

    def counts(self, corpora: Sequence[IndexedReader], rows: npt.NDArray[np.int64]) -> Any:
        """Sparse counts, one row a document.

        Args:
            corpora: Where the documents are.
            rows: [n, 2], number of the corpus and of the document in it.
        """
        return self.count_rows(
            [first_tokens(corpora[c], document, self.max_tokens) for c, document in rows.tolist()]
        )

    def count_rows(self, texts: Iterable[npt.NDArray[Any]]) -> Any:
        """Sparse counts of token arrays, one row each."""
        from scipy.sparse import csr_array

        found, ends = [], [0]
        for text in texts:
            hashed = self._hashed(text)
            found.append(hashed)
            ends.append(ends[-1] + len(hashed))
        columns = np.concatenate(found) if found else np.empty(0, np.int64)
        matrix = csr_array(
            (np.ones(len(columns), np.float32), columns, np.array(ends)),
            shape=(len(found), self.buckets),
        )
        matrix.sum_duplicates()
        return matrix

    def _hashed(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        words = tokens.astype(np.int64).astype(np.uint64) + np.uint64(1)
        made = []
        state = np.zeros(len(words), np.uint64)
        for n in range(min(self.ngram, len(words))):
            state = (state[: len(words) - n] + words[n:]) * np.uint64(MULTIPLIER)
            state ^= state >> np.uint64(29)
            made.append((state * np.uint64(MULTIPLIER)) >> np.uint64(16))
        if not made:
            return np.empty(0, np.int64)
        return (np.concatenate(made) % np.uint64(self.buckets)).astype(np.int64)

    def fit(self, corpora: Sequence[IndexedReader], rows: npt.NDArray[np.int64]) -> "TokenFeatures":
        """Learn document frequencies and the SVD from these documents."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfTransformer

        counts = self.counts(corpora, rows)
        self._idf = TfidfTransformer(sublinear_tf=True).fit(counts)
        rank = min(self.dimensions, len(rows) - 1)
        if rank >= 1:
            self._svd = TruncatedSVD(rank, random_state=self.seed).fit(self._idf.transform(counts))
        return self

    def transform(self, corpora: Sequence[IndexedReader], rows: npt.NDArray[np.int64]) -> Floats:
        """float32[n, dimensions], each row of length 1 (0 for an empty document)."""
        from sklearn.preprocessing import normalize

        if self._svd is None:
            return np.zeros((len(rows), 1), np.float32)
        x = self._svd.transform(self._idf.transform(self.counts(corpora, rows)))
        result: Floats = normalize(x).astype(np.float32)
        return result


def first_tokens(corpus: IndexedReader, document: int, limit: int) -> npt.NDArray[Any]:
    """The first tokens of a document, over its sequences."""
    first, last = corpus.document_indices[document : document + 2].tolist()
    parts, left = [], limit
    for sequence in range(first, last):
        part = corpus.get(sequence)[:left]
        parts.append(part)
        left -= len(part)
        if left == 0:
            break
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else corpus.stream[:0]


def read_embeddings(path: str | os.PathLike[str], num_documents: int) -> npt.NDArray[Any]:
    """Embeddings from a `.npy`, memory-mapped: [documents, dimensions], finite floats.

    Raises:
        DataError: It is no such array, or has another number of rows.
    """
    try:
        array = np.load(Path(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: no .npy file of numbers: {e}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        what = getattr(array, "dtype", type(array)), getattr(array, "shape", "")
        raise DataError(f"{path}: must be floats of shape [documents, dimensions], got {what}")
    if len(array) != num_documents:
        raise DataError(
            f"{path}: has {len(array)} rows, the corpora have {num_documents} documents"
        )
    for first in range(0, len(array), 1 << 16):
        bad = ~np.isfinite(array[first : first + (1 << 16)]).all(axis=1)
        if bad.any():
            raise ArgumentError(f"{path}: row {first + int(np.argmax(bad))} is not finite")
    return array
