r"""Views: part of a corpus as a corpus of its own, over the same `.bin`, without copying tokens.

A view is a small `.idx` with the lengths and pointers of the documents it has, and a `.bin` that is
a symbolic link to the corpus. Megatron's readers take both as they are, since they follow pointers
and ignore what comes after the index's arrays; there stand the 24 bytes that make it a view:

    8 bytes  b"MIXVIEW1"
    uint64   tokens in the view
    uint64   bytes of the `.bin` it was made for

A process opens a `.bin` once, however many views it has of it. (Megatron maps two files a corpus,
and Linux allows 65,530 mappings: there, some 32,000 views are the limit.)
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from mixcore._files import new_file_beside
from mixcore.errors import ArgumentError, DataError, MixcoreError, OutOfRangeError
from mixcore.indexed import (
    DTYPE_CODES,
    HEADER,
    MAGIC,
    VERSION,
    IndexedReader,
    _open_mapped,
    absolute_prefix,
    as_int,
)

VIEW_MAGIC = b"MIXVIEW1"
TRAILER = struct.Struct("<8sQQ")
SMALL = 1 << 20  # bytes of an index that is read instead of mapped

_mapped: WeakValueDictionary[tuple[int, int, int], mmap.mmap] = WeakValueDictionary()


class View(IndexedReader):
    """Some documents of a corpus, in its order; reads like an `IndexedReader`.

    Example:
        >>> write_view("parts/web.0", IndexedReader("data/web"), [0, 2, 5])
        >>> view = View("parts/web.0")
        >>> len(view), view.num_tokens
        (3, 4096)

    What differs: `stream` is the whole `.bin`, of which the view has a part; `read` counts tokens
    of the view alone, and copies where they lie apart.

    Args:
        prefix: As IndexedReader.
        verify: As IndexedReader.

    Raises:
        DataError: It is no view, it is damaged, or its `.bin` has another size by now.
    """

    def __init__(self, prefix: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.prefix = absolute_prefix(prefix)
        self.idx_path, self.bin_path = self.prefix + ".idx", self.prefix + ".bin"
        self._verify_on_open = verify
        index, self._idx_bytes = _read_index(self.idx_path)
        if self._idx_bytes < HEADER.size + TRAILER.size:
            self._fail("file size", self._idx_bytes, "too small for a view")
        _, _, code, size, boundaries = HEADER.unpack_from(index)
        magic, self.num_tokens, wanted = TRAILER.unpack_from(index, self._idx_bytes - TRAILER.size)
        if magic != VIEW_MAGIC or code not in DTYPE_CODES:
            self._fail("last 24 bytes", magic, f"of a view they begin with {VIEW_MAGIC!r}")
        expected = HEADER.size + 12 * size + 8 * boundaries + TRAILER.size
        if boundaries < 1 or self._idx_bytes != expected:
            self._fail("file size", self._idx_bytes, f"the counts in the header need {expected}")
        self.dtype = DTYPE_CODES[code]
        at = HEADER.size
        self.sequence_lengths = np.frombuffer(index, "<i4", size, at)
        self.sequence_pointers = np.frombuffer(index, "<i8", size, at + 4 * size)
        self.document_indices = np.frombuffer(index, "<i8", boundaries, at + 12 * size)
        self.sequence_modes = None
        self.num_documents = boundaries - 1
        self._pointers = memoryview(index)[at + 4 * size : at + 12 * size].cast("q")
        self.stream, self._bin_bytes = _shared(self.bin_path, self.dtype)
        if self._bin_bytes != wanted:
            raise DataError(
                f"{self.bin_path}: file size = {self._bin_bytes}: the view was made for a corpus "
                f"of {wanted} bytes"
            )
        self._ends: NDArray[np.int64] | None = None
        if verify:
            self.verify()

    def verify(self) -> None:
        """Check every entry: in the `.bin`, ascending, without overlap; document boundaries.

        Raises:
            DataError: Names the file, the first wrong entry and its value.
        """
        width = self.dtype.itemsize
        lengths = self.sequence_lengths.astype(np.int64)
        starts = self.sequence_pointers.astype(np.int64)
        before = np.concatenate([[0], (starts + lengths * width)[:-1]])
        bad = (lengths < 0) | (starts % width != 0) | (starts < before)
        bad |= starts > self._bin_bytes - lengths * width
        if bad.any():
            k = int(np.argmax(bad))
            self._fail(
                f"sequence_pointers[{k}]",
                starts[k],
                f"with {lengths[k]} tokens it must lie from byte {before[k]} on in a .bin of "
                f"{self._bin_bytes}",
            )
        if lengths.sum() != self.num_tokens:
            self._fail("tokens", self.num_tokens, f"the sequences have {lengths.sum()}")
        documents = self.document_indices
        if documents[0] != 0 or documents[-1] != len(self) or (np.diff(documents) < 0).any():
            self._fail("document_indices", documents.tolist()[:3], "must ascend from 0 to the end")

    def read(self, start: int, length: int) -> NDArray[Any]:
        """Tokens [start, start + length) of the view: its sequences, one after another.

        Raises:
            OutOfRangeError: The view has no such tokens.
            DataError: An index entry points outside the `.bin`.
        """
        start, length = as_int("start", start), as_int("length", length)
        if not 0 <= start <= self.num_tokens:
            raise OutOfRangeError(f"start must be in [0, {self.num_tokens}], got {start}")
        if not 0 <= length <= self.num_tokens - start:
            raise OutOfRangeError(
                f"length must be in [0, {self.num_tokens - start}], what the view has after token "
                f"{start}, got {length}"
            )
        if self._ends is None:
            self._ends = np.cumsum(self.sequence_lengths, dtype=np.int64)
        found = list(self._parts(self._ends, start, length))
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else self.stream[:0]

    def _parts(self, ends: NDArray[np.int64], start: int, length: int) -> Iterator[NDArray[Any]]:
        index = int(np.searchsorted(ends, start, side="right"))
        while length:
            first, size = self._entry(index)
            skip = start - (int(ends[index]) - size)
            taken = min(size - skip, length)
            if taken:
                yield self.stream[first + skip : first + skip + taken]
            start, length, index = start + taken, length - taken, index + 1


def open_corpus(prefix: str | os.PathLike[str], *, verify: bool = True) -> IndexedReader:
    """A corpus or a view of one, whichever the files are.

    Raises:
        DataError: As `IndexedReader` and `View`.
    """
    path = absolute_prefix(prefix) + ".idx"
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - TRAILER.size))
            is_view = f.read(len(VIEW_MAGIC)) == VIEW_MAGIC
    except FileNotFoundError:
        is_view = False  # IndexedReader says what is missing
    return View(prefix, verify=verify) if is_view else IndexedReader(prefix, verify=verify)


def write_view(
    prefix: str | os.PathLike[str],
    corpus: IndexedReader,
    documents: object,
    *,
    overwrite: bool = False,
) -> None:
    """Write a view: `<prefix>.idx`, and `<prefix>.bin` as a relative link to the corpus.

    Both take their place at once when they are whole, the `.bin` first.

    Args:
        prefix: Path of the two files; the directory must exist.
        corpus: Of which the view shows a part; not a view itself.
        documents: Numbers of its documents, ascending.
        overwrite: Replace a view that is already there (a corpus is never replaced).

    Raises:
        ArgumentError: The numbers do not ascend or are no documents, the corpus has modes or is a
            view, the directory is missing, or there are files already.
    """
    target = absolute_prefix(prefix)
    idx, link = Path(target + ".idx"), Path(target + ".bin")
    chosen = np.asarray(documents)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise ArgumentError(f"documents must be a list of integers, got {documents!r}")
    chosen = chosen.astype(np.int64)
    if chosen.size and (
        chosen[0] < 0 or chosen[-1] >= corpus.num_documents or (np.diff(chosen) <= 0).any()
    ):
        raise ArgumentError(
            f"documents must ascend within [0, {corpus.num_documents}), got {chosen.tolist()[:8]}"
        )
    if isinstance(corpus, View) or corpus.sequence_modes is not None:
        what = "a view" if isinstance(corpus, View) else "sequence modes"
        raise ArgumentError(f"corpus must be a plain corpus, but {corpus.prefix} is or has {what}")
    if not idx.parent.is_dir():
        raise ArgumentError(f"prefix must be in an existing directory, got {target!r}")
    for path, ours in ((idx, link.is_symlink()), (link, link.is_symlink())):
        if os.path.lexists(path) and not (overwrite and ours):
            raise ArgumentError(f"prefix must be new, or a view and overwrite=True: {path} exists")
    bounds = corpus.document_indices
    counts = np.array(bounds[chosen + 1] - bounds[chosen])
    sequences = np.repeat(np.array(bounds[chosen]) - np.cumsum(counts) + counts, counts)
    sequences += np.arange(len(sequences))
    lengths = np.array(corpus.sequence_lengths[sequences])
    code = next(c for c, dtype in DTYPE_CODES.items() if dtype == corpus.dtype)
    parts = [
        HEADER.pack(MAGIC, VERSION, code, len(lengths), len(chosen) + 1),
        lengths.astype("<i4").tobytes(),
        np.array(corpus.sequence_pointers[sequences]).astype("<i8").tobytes(),
        np.concatenate([[0], np.cumsum(counts)]).astype("<i8").tobytes(),
        TRAILER.pack(
            VIEW_MAGIC, int(lengths.sum(dtype=np.int64)), os.stat(corpus.bin_path).st_size
        ),
    ]
    with new_file_beside(idx) as f:
        f.write(b"".join(parts))
        f.flush()  # not to the disk: thousands would take minutes, and views can be made again
        idx.unlink(missing_ok=True)  # never an old index beside a new link
        made = Path(f"{f.name}.link")
        # Between resolved folders: a link is followed from where it really lies.
        made.symlink_to(os.path.relpath(os.path.realpath(corpus.bin_path), link.parent.resolve()))
        os.replace(made, link)
        os.replace(f.name, idx)


def num_samples(path: str, prefix: Path, tokens_per_sample: int) -> int:
    """Samples per epoch as mixcore.gpt_dataset counts them: neighbours share one token.

    Args:
        path: Where the prefix stands in a configuration, for messages.
        prefix: Of the two files.
        tokens_per_sample: Tokens of a sample.
    """
    try:
        tokens = open_corpus(prefix, verify=False).num_tokens
    except (MixcoreError, OSError) as e:
        raise ArgumentError(f"{path}: {e}") from None
    size = (tokens - 1) // tokens_per_sample
    if size < 1:
        raise ArgumentError(
            f"{path}: {prefix} has {tokens} tokens, not one sample of {tokens_per_sample} + 1"
        )
    return size


def _read_index(path: str) -> tuple[mmap.mmap | bytes, int]:
    """A small file's content, a larger file mapped: thousands of mappings are too many."""
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            return (f.read(), size) if size <= SMALL else _open_mapped(path)
    except FileNotFoundError:
        raise DataError(f"{path}: file does not exist") from None


def _shared(path: str, dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """The file's tokens, mapped once a process, and its size."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        raise DataError(
            f"{path}: the corpus that it links to does not exist: {os.path.realpath(path)}"
        ) from None
    if stat.st_size == 0 or stat.st_size % dtype.itemsize:
        raise DataError(f"{path}: file size = {stat.st_size}: not a whole number of {dtype} tokens")
    key = (stat.st_dev, stat.st_ino, stat.st_size)
    data = _mapped.get(key)
    if data is None:
        opened, _ = _open_mapped(path)
        assert isinstance(opened, mmap.mmap)  # not empty
        data = _mapped[key] = opened
    return np.frombuffer(data, dtype=dtype), stat.st_size
