r"""Megatron's token files, `<prefix>.bin` and `<prefix>.idx`, read and checked without Megatron.

The `.bin` holds the tokens of all sequences one after another and nothing else. The `.idx` says
where each begins (little-endian, no padding, so its arrays are not aligned; format: IndexedDataset
of Megatron-LM, megatron/core/datasets/indexed_dataset.py):

    9 bytes  b"MMIDIDX\0\0"
    uint64   version, 1
    uint8    dtype code
    uint64   sequence_count, n
    uint64   document_count, d: the boundaries, one more than there are documents
    int32[n] sequence_lengths, in tokens
    int64[n] sequence_pointers, in bytes into the .bin
    int64[d] document_indices: document k is the sequences [indices[k], indices[k + 1])
    int8[n]  sequence_modes, in multimodal files only

The writer is in `mixcore.indexed_writer`. Not for object stores: both files are mapped into memory.
"""

from __future__ import annotations

import mmap
import operator
import os
import struct
import sys
from bisect import bisect_left, bisect_right
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mixcore.errors import ArgumentError, ArgumentTypeError, DataError, OutOfRangeError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {
    code: np.dtype(name)
    for code, name in enumerate(["u1", "i1", "<i2", "<i4", "<i8", "<f8", "<f4", "<u2"], start=1)
}

_CHUNK = 1 << 20  # entries that verify() holds at a time: constant memory for any corpus


class IndexedReader:
    """One corpus, memory-mapped: opening costs no memory, reading costs the pages that are touched.

    Example:
        >>> corpus = IndexedReader("data/web")        # data/web.bin and data/web.idx
        >>> len(corpus), corpus.num_tokens
        (1000, 1365000)
        >>> corpus.get(3, offset=10, length=5)        # read-only view, no copy
        array([17, 4, 4, 913, 2], dtype=uint16)

    The header, the file sizes and both ends of each array are always checked on opening, and every
    access checks the entries it uses. `verify=True` also checks all n entries on opening
    (vectorised, in constant memory); `verify=False` leaves opening independent of n.

    Instances pickle as their path and open the files again (a corpus that has changed its size by
    then is refused); a fork shares the mapping. The files must not be cut while they are open.

    Args:
        prefix: Path of the two files without `.bin` and `.idx`.
        verify: Check every entry of the index now.

    Attributes:
        dtype: numpy dtype of a token.
        num_tokens: Tokens in all sequences together.
        stream: [num_tokens] of dtype, all sequences one after another: the `.bin`, mapped.
        num_documents: Documents, that is `len(document_indices) - 1`.
        sequence_lengths: int32[n], tokens of each sequence.
        sequence_pointers: int64[n], byte where each begins in the `.bin`.
        document_indices: int64[num_documents + 1], sequence where each document begins.
        sequence_modes: int8[n] or None. (All four are read-only, unaligned views of the file.)

    Raises:
        DataError: A file is missing or contradicts itself or the other one.
    """

    def __init__(self, prefix: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.prefix = absolute_prefix(prefix)
        self.idx_path, self.bin_path = self.prefix + ".idx", self.prefix + ".bin"
        self._verify_on_open = verify
        index, self._idx_bytes = _open_mapped(self.idx_path)
        if self._idx_bytes < HEADER.size:
            self._fail("file size", self._idx_bytes, f"the header has {HEADER.size} bytes")
        magic, version, code, num_sequences, num_boundaries = HEADER.unpack_from(index)
        for field, value, known in (
            ("magic", magic, [MAGIC]),
            ("version", version, [VERSION]),
            ("dtype code", code, list(DTYPE_CODES)),
        ):
            if value not in known:
                self._fail(field, value, f"expected one of {known}")
        has_modes = self._check_counts(num_sequences, num_boundaries)
        self.dtype = DTYPE_CODES[code]

        def view(dtype: str, count: int, offset: int) -> NDArray[Any]:
            return np.frombuffer(index, dtype=dtype, count=count, offset=offset)

        pointers_at = HEADER.size + 4 * num_sequences
        documents_at = HEADER.size + 12 * num_sequences
        modes_at = documents_at + 8 * num_boundaries
        self.sequence_lengths: NDArray[np.int32] = view("<i4", num_sequences, HEADER.size)
        self.sequence_pointers: NDArray[np.int64] = view("<i8", num_sequences, pointers_at)
        self.document_indices: NDArray[np.int64] = view("<i8", num_boundaries, documents_at)
        self.sequence_modes: NDArray[np.int8] | None = (
            view("i1", num_sequences, modes_at) if has_modes else None
        )
        # For the binary search: numpy's would first copy the whole array to an aligned place.
        self._pointers = memoryview(index)[pointers_at:documents_at].cast("q")

        data, self._bin_bytes = _open_mapped(self.bin_path)
        if self._bin_bytes % self.dtype.itemsize:
            raise DataError(
                f"{self.bin_path}: file size = {self._bin_bytes}: not a whole number of "
                f"{self.dtype} tokens ({self.idx_path} says dtype code {code})"
            )
        self.stream: NDArray[Any] = np.frombuffer(data, dtype=self.dtype)
        self.num_tokens = len(self.stream)
        self.num_documents = num_boundaries - 1
        self._check_ends()
        if verify:
            self.verify()

    def _fail(self, field: str, value: object, why: str) -> NoReturn:
        raise DataError(f"{self.idx_path}: {field} = {value}: {why}")

    def _check_counts(self, num_sequences: int, num_boundaries: int) -> bool:
        """Compare the counts with the size of the file; returns whether it has modes."""
        # Python's integers: a count of 2^64 - 1 overflows nothing, and nothing is allocated by it.
        room = self._idx_bytes - HEADER.size
        if 12 * num_sequences > room:
            self._fail("sequence_count", num_sequences, f"no room in {self._idx_bytes} bytes")
        if num_boundaries < 1:
            self._fail("document_count", num_boundaries, "must be at least 1, the boundary 0")
        without = 12 * num_sequences + 8 * num_boundaries
        if room not in (without, without + num_sequences):
            self._fail(
                "document_count",
                num_boundaries,
                f"with sequence_count = {num_sequences} the file must have {HEADER.size + without} "
                f"bytes (with modes {HEADER.size + without + num_sequences}), "
                f"it has {self._idx_bytes}",
            )
        return room != without

    def _check_ends(self) -> None:
        """Both ends of each array, in constant time."""
        size, pointers, documents = len(self), self.sequence_pointers, self.document_indices
        if documents[0] != 0:
            self._fail("document_indices[0]", documents[0], "must be 0")
        if documents[-1] != size:
            self._fail(
                f"document_indices[{self.num_documents}]", documents[-1], f"must be {size}, the end"
            )
        if size == 0:
            if self._bin_bytes:
                self._fail("sequence_count", 0, f"but {self.bin_path} has {self._bin_bytes} bytes")
            return
        if pointers[0] != 0:
            self._fail("sequence_pointers[0]", pointers[0], "must be 0")
        start, length = self._entry(size - 1)
        if start + length != self.num_tokens:
            self._fail(
                f"sequence_pointers[{size - 1}]",
                pointers[-1],
                f"with the last sequence of {length} tokens the .bin must end at byte "
                f"{(start + length) * self.dtype.itemsize}, it has {self._bin_bytes}",
            )

    def verify(self) -> None:
        """Check every entry: lengths, pointers against the summed lengths, document boundaries.

        Raises:
            DataError: Names the file, the first wrong entry and its value.
        """
        width = self.dtype.itemsize
        end = 0
        for first in range(0, len(self), _CHUNK):
            lengths = self.sequence_lengths[first : first + _CHUNK].astype(np.int64)
            if (lengths < 0).any():
                bad = int(np.argmax(lengths < 0))
                self._fail(f"sequence_lengths[{first + bad}]", lengths[bad], "must not be negative")
            ends = end + np.cumsum(lengths * width)
            starts = ends - lengths * width
            pointers = self.sequence_pointers[first : first + _CHUNK]
            if not np.array_equal(pointers, starts):
                bad = int(np.argmax(pointers != starts))
                self._fail(
                    f"sequence_pointers[{first + bad}]",
                    pointers[bad],
                    f"must be {starts[bad]}, the summed lengths before it in bytes",
                )
            end = int(ends[-1])
            if end > self._bin_bytes:  # also keeps the next chunk's sum far below 2^63
                bad = int(np.argmax(ends > self._bin_bytes))
                self._fail(
                    f"sequence_lengths[{first + bad}]",
                    lengths[bad],
                    f"ends at byte {ends[bad]}, the .bin has {self._bin_bytes}",
                )
        for first in range(0, self.num_documents, _CHUNK):
            documents = self.document_indices[first : first + _CHUNK + 1]
            falls = documents[1:] < documents[:-1]
            if falls.any():
                bad = int(np.argmax(falls)) + 1
                self._fail(
                    f"document_indices[{first + bad}]",
                    documents[bad],
                    f"must not be below the one before it, {documents[bad - 1]}",
                )

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.sequence_lengths)

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.get(index)

    def _entry(self, index: int) -> tuple[int, int]:
        """First token and length of sequence `index`, which is in range; both checked."""
        width = self.dtype.itemsize
        pointer, length = self._pointers[index], int(self.sequence_lengths[index])
        if length < 0:
            self._fail(f"sequence_lengths[{index}]", length, "must not be negative")
        if pointer < 0 or pointer % width or pointer + length * width > self._bin_bytes:
            self._fail(
                f"sequence_pointers[{index}]",
                pointer,
                f"must be a multiple of {width} that leaves room for {length} tokens in a .bin "
                f"of {self._bin_bytes} bytes",
            )
        return pointer // width, length

    def get(self, index: int, offset: int = 0, length: int | None = None) -> NDArray[Any]:
        """Sequence `index`, or `length` of its tokens from token `offset` on.

        Args:
            index: 0 to len - 1; negative numbers are refused.
            offset: First token wanted, 0 to the sequence's length.
            length: Tokens wanted; None means all from `offset` on.

        Returns:
            [length], of `self.dtype`; a read-only view of the file.

        Raises:
            OutOfRangeError: There are no such tokens in the sequence.
            DataError: The index entry points outside the `.bin`.
        """
        index, offset = as_int("index", index), as_int("offset", offset)
        if not 0 <= index < len(self):
            raise OutOfRangeError(
                f"index must be in [0, {len(self)}), got {index} ({self.idx_path})"
            )
        start, size = self._entry(index)
        if not 0 <= offset <= size:
            raise OutOfRangeError(
                f"offset must be in [0, {size}], the length of sequence {index}, got {offset}"
            )
        length = size - offset if length is None else as_int("length", length)
        if not 0 <= length <= size - offset:
            raise OutOfRangeError(
                f"length must be in [0, {size - offset}], what sequence {index} has after token "
                f"{offset}, got {length}"
            )
        return self.stream[start + offset : start + offset + length]

    def entries(self, indices: NDArray[np.integer[Any]]) -> tuple[list[int], list[int]]:
        """First tokens (in the stream of `read`) and lengths of several sequences, checked.

        Args:
            indices: Sequence numbers, each 0 to len - 1.

        Raises:
            OutOfRangeError: A number is outside the corpus.
            DataError: An index entry points outside the `.bin`.
        """
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            worst = indices.min() if indices.min() < 0 else indices.max()
            raise OutOfRangeError(f"indices must be in [0, {len(self)}), got {worst}")
        width = self.dtype.itemsize
        lengths = self.sequence_lengths[indices].astype(np.int64)
        pointers = self.sequence_pointers[indices]
        # The room is computed without adding to a pointer, which may be near 2^63.
        bad = (lengths < 0) | (pointers < 0) | (pointers % width != 0)
        bad |= pointers > self._bin_bytes - lengths * width
        if bad.any():
            self._entry(int(indices[np.argmax(bad)]))  # raises with the details
        return (pointers // width).tolist(), lengths.tolist()

    def read(self, start: int, length: int) -> NDArray[Any]:
        """Tokens [start, start + length) of the stream: all sequences, one after another.

        The sequences are found by binary search over the pointers, and each that is touched is
        checked to begin where the one before it ends; nothing depends on the size of the corpus
        but the search's 25 or so steps.

        Returns:
            [length], of `self.dtype`; a read-only view of the file.

        Raises:
            OutOfRangeError: The stream has no such tokens.
            DataError: The index contradicts itself here.
        """
        start, length = as_int("start", start), as_int("length", length)
        if not 0 <= start <= self.num_tokens:
            raise OutOfRangeError(f"start must be in [0, {self.num_tokens}], got {start}")
        if not 0 <= length <= self.num_tokens - start:
            raise OutOfRangeError(
                f"length must be in [0, {self.num_tokens - start}], what the stream has after "
                f"token {start}, got {length}"
            )
        if length:
            self._check_span(start * self.dtype.itemsize, (start + length) * self.dtype.itemsize)
        return self.stream[start : start + length]

    def _check_span(self, begin: int, end: int) -> None:
        """Check that the sequences touched by bytes [begin, end) of the .bin join without a gap."""
        first = bisect_right(self._pointers, begin) - 1
        last = bisect_left(self._pointers, end, first + 1) - 1
        lengths = self.sequence_lengths[first : last + 1].astype(np.int64)
        if (lengths < 0).any():
            self._entry(first + int(np.argmax(lengths < 0)))  # raises with the details
        ends = self.sequence_pointers[first : last + 1] + lengths * self.dtype.itemsize
        wrong = ends[:-1] != self.sequence_pointers[first + 1 : last + 1]
        if wrong.any():
            bad = first + 1 + int(np.argmax(wrong))
            self._fail(
                f"sequence_pointers[{bad}]",
                self._pointers[bad],
                f"must be {ends[bad - first - 1]}, where the sequence before it ends",
            )
        if ends[-1] < end:
            self._fail(
                f"sequence_lengths[{last}]",
                self.sequence_lengths[last],
                f"ends at byte {ends[-1]}, before the next sequence begins",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        mine = (self.prefix, self._verify_on_open, self._idx_bytes, self._bin_bytes)
        return _reopen, (type(self), *mine)


def _reopen(
    kind: type[IndexedReader], prefix: str, verify: bool, idx_bytes: int, bin_bytes: int
) -> IndexedReader:
    reader = kind(prefix, verify=verify)
    for path, now, before in (
        (reader.idx_path, reader._idx_bytes, idx_bytes),
        (reader.bin_path, reader._bin_bytes, bin_bytes),
    ):
        if now != before:
            raise DataError(f"{path}: file size = {now}: it was {before} when it was pickled")
    return reader


def absolute_prefix(prefix: str | os.PathLike[str]) -> str:
    """The prefix as an absolute path, so that a worker in another directory finds the same files.

    Raises:
        ArgumentTypeError: It is not a path.
    """
    try:
        path = os.fspath(prefix)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise ArgumentTypeError(f"prefix must be a path, got {prefix!r}")
    if not os.path.basename(path):
        raise ArgumentError(f"prefix must end in a file name without .bin or .idx, got {path!r}")
    return os.path.abspath(path)


def as_int(name: str, value: object) -> int:
    """An int from anything that is one (numpy's too); floats are refused, never rounded.

    Raises:
        ArgumentTypeError: It is not an integer.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(f"{name} must be an integer, got {value!r}") from None


def _open_mapped(path: str) -> tuple[mmap.mmap | bytes, int]:
    """The file mapped read-only, and its size in bytes; an empty file cannot be mapped."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return b"", 0
            # Elsewhere the mapping keeps a duplicate descriptor: two a corpus count to `ulimit -n`.
            options: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, **options), size
    except FileNotFoundError:
        doubled = path.endswith((".idx.idx", ".bin.idx"))
        hint = f"; give the prefix without {path[-8:-4]}" if doubled else ""
        raise DataError(f"{path}: file does not exist{hint}") from None
