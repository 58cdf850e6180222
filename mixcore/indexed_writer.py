"""Writes Megatron's token files, `<prefix>.bin` and `<prefix>.idx`, one document at a time.

The format is in `mixcore.indexed`. Both files are written under temporary names beside their places
and renamed when complete, so that a writer that is killed leaves no file that looks finished.
"""

from __future__ import annotations

import os
import secrets
import shutil
from array import array
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mixcore.errors import ArgumentError, ArgumentTypeError, DataError
from mixcore.indexed import (
    DTYPE_CODES,
    HEADER,
    MAGIC,
    VERSION,
    IndexedReader,
    absolute_prefix,
    as_int,
)

_CHUNK = 1 << 20  # pointers computed at a time
_INT32_MAX = 2**31 - 1


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype that Megatron gives to tokens of a vocabulary: uint16 below 65,500, else int32.

    Example:
        >>> token_dtype(50_257)
        dtype('uint16')

    Raises:
        ArgumentError: `vocab_size` is below 1 or beyond int32.
    """
    vocab_size = as_int("vocab_size", vocab_size)
    if not 1 <= vocab_size <= _INT32_MAX + 1:
        raise ArgumentError(f"vocab_size must be in [1, {_INT32_MAX + 1}], got {vocab_size}")
    return np.dtype("<u2" if vocab_size < 65_500 else "<i4")


class IndexedWriter:
    """Writes one corpus; 12 bytes of memory a document, whatever the documents' length.

    Example:
        >>> with IndexedWriter("data/web", token_dtype(50_257)) as corpus:
        ...     corpus.add_document([17, 4, 913, 0])
        ...     corpus.add_index("data/more_web")

    Leaving the block writes the index, syncs both files to the disk and renames them into place;
    leaving it by an exception, or `abort()`, deletes what was written.

    Args:
        prefix: Path of the two files without `.bin` and `.idx`; the directory must exist.
        dtype: Integer dtype of a token: uint8, int8, int16, uint16, int32 or int64.
        overwrite: Replace a corpus that is already there. Between the two renames there is then no
            `.idx`, never an old one beside a new `.bin`.

    Raises:
        ArgumentError: The dtype is not one of the format's integers, the directory does not exist,
            or the corpus does.
    """

    def __init__(
        self, prefix: str | os.PathLike[str], dtype: DTypeLike, *, overwrite: bool = False
    ) -> None:
        self.prefix = absolute_prefix(prefix)
        self.idx_path, self.bin_path = self.prefix + ".idx", self.prefix + ".bin"
        try:
            wanted = np.dtype(dtype)
        except TypeError:
            raise ArgumentTypeError(f"dtype must be a numpy dtype, got {dtype!r}") from None
        codes = {known: code for code, known in DTYPE_CODES.items() if known.kind in "iu"}
        if wanted.newbyteorder("<") not in codes:
            raise ArgumentError(f"dtype must be one of {list(map(str, codes))}, got {wanted}")
        self.dtype = wanted.newbyteorder("<")
        self._code = codes[self.dtype]
        self._overwrite = overwrite
        if not os.path.isdir(os.path.dirname(self.prefix)):
            raise ArgumentError(f"prefix must be in an existing directory, got {self.prefix!r}")
        self._refuse_existing()
        self._lengths = array("i")
        self._documents = array("q", [0])
        self._num_tokens = 0
        self._suffix = f".{os.getpid()}-{secrets.token_hex(4)}.tmp"
        self._file: IO[bytes] | None = open(self.bin_path + self._suffix, "xb")  # noqa: SIM115

    def _refuse_existing(self) -> None:
        for path in (self.idx_path, self.bin_path):
            if not self._overwrite and os.path.exists(path):
                raise ArgumentError(f"prefix must be new, or overwrite=True: {path} exists")

    def _open_file(self) -> IO[bytes]:
        if self._file is None:
            raise ArgumentError(f"{self.prefix}: the writer is closed")
        return self._file

    def add_document(self, tokens: ArrayLike, lengths: ArrayLike | None = None) -> None:
        """Append one document.

        Args:
            tokens: [t], integers; an end-of-document token, where wanted, is among them.
            lengths: Tokens of each sequence of the document, summing to t; None means one sequence.

        Raises:
            ArgumentTypeError: Something else than integers.
            ArgumentError: A token outside the dtype's range, lengths that do not sum to t, or one
                beyond int32; nothing has been written then.
        """
        file = self._open_file()
        values = _integers("tokens", tokens)
        sizes = _integers("lengths", [len(values)] if lengths is None else lengths)
        total = sum(sizes.tolist())  # Python's integers: no overflow to hide in
        if total != len(values):
            raise ArgumentError(f"lengths must sum to {len(values)}, the tokens, got {total}")
        _refuse_outside("lengths", sizes, 0, _INT32_MAX)
        limits = np.iinfo(self.dtype)
        _refuse_outside("tokens", values, limits.min, limits.max)
        file.write(values.astype(self.dtype).tobytes())
        self._num_tokens += len(values)
        self._lengths.frombytes(sizes.astype(np.intc).tobytes())
        self._documents.append(len(self._lengths))

    def add_index(self, prefix: str | os.PathLike[str]) -> None:
        """Append all documents of another corpus of the same dtype, after checking all of it.

        Raises:
            DataError: The other corpus is missing or damaged.
            ArgumentError: It has another dtype, or modes, which this writer does not write.
        """
        file = self._open_file()
        other = IndexedReader(prefix)
        if other.dtype != self.dtype:
            raise ArgumentError(f"prefix {prefix} has dtype {other.dtype}, expected {self.dtype}")
        if other.sequence_modes is not None:
            raise ArgumentError(f"prefix {prefix} has sequence modes, which would be lost")
        with open(other.bin_path, "rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
        self._num_tokens += other.num_tokens
        shifted = other.document_indices[1:] + len(self._lengths)
        self._lengths.frombytes(other.sequence_lengths.tobytes())
        self._documents.frombytes(shifted.tobytes())

    def finalize(self) -> None:
        """Write the index, sync, rename both files into place and close the writer.

        Raises:
            DataError: The data file has not the bytes that were added (an earlier write failed).
            ArgumentError: The writer is closed, or the corpus has appeared meanwhile.
        """
        file = self._open_file()
        try:
            self._refuse_existing()
            written, wanted = file.tell(), self._num_tokens * self.dtype.itemsize
            if written != wanted:
                raise DataError(f"{file.name}: file size = {written}: {wanted} bytes were added")
            _sync(file)
            with open(self.idx_path + self._suffix, "xb") as index:
                self._write_index(index)
                _sync(index)
            # The index goes last and comes away first: a .bin without .idx is not a corpus.
            if os.path.exists(self.idx_path):
                os.remove(self.idx_path)
            os.replace(self.bin_path + self._suffix, self.bin_path)
            os.replace(self.idx_path + self._suffix, self.idx_path)
        finally:
            self.abort()  # closes, and deletes what an error has left
        directory = os.open(os.path.dirname(self.prefix), os.O_RDONLY)
        try:
            os.fsync(directory)  # the renames themselves
        finally:
            os.close(directory)

    def _write_index(self, index: IO[bytes]) -> None:
        lengths = np.frombuffer(self._lengths, np.intc)
        index.write(HEADER.pack(MAGIC, VERSION, self._code, len(lengths), len(self._documents)))
        index.write(lengths.astype("<i4").tobytes())
        end = 0
        for first in range(0, len(lengths), _CHUNK):
            sizes = lengths[first : first + _CHUNK].astype(np.int64) * self.dtype.itemsize
            ends = end + np.cumsum(sizes)
            index.write((ends - sizes).astype("<i8").tobytes())
            end = int(ends[-1])
        index.write(np.frombuffer(self._documents, np.int64).astype("<i8").tobytes())

    def abort(self) -> None:
        """Close the writer and delete what it wrote; does nothing to a finished corpus."""
        if self._file is None:
            return
        try:
            self._file.close()
        finally:
            self._file = None
            for path in (self.bin_path + self._suffix, self.idx_path + self._suffix):
                if os.path.exists(path):
                    os.remove(path)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()
        elif self._file is not None:  # not finalized or aborted inside the block
            self.finalize()


def _integers(name: str, values: ArrayLike) -> NDArray[np.integer[Any]]:
    try:
        array_ = np.asarray(values)
    except ValueError:  # lists of different lengths
        raise ArgumentError(f"{name} must have one axis, got a ragged list") from None
    if array_.size == 0 and array_.ndim == 1:
        return np.empty(0, np.int64)  # numpy gives an empty list float64
    if array_.dtype.kind not in "iu":
        raise ArgumentTypeError(f"{name} must be integers, got dtype {array_.dtype}")
    if array_.ndim != 1:
        raise ArgumentError(f"{name} must have one axis, got shape {array_.shape}")
    return array_


def _refuse_outside(name: str, values: NDArray[np.integer[Any]], low: int, high: int) -> None:
    if len(values) == 0:
        return
    smallest, largest = int(values.min()), int(values.max())
    if smallest < low or largest > high:
        wrong = smallest if smallest < low else largest
        raise ArgumentError(f"{name} must be in [{low}, {high}], got {wrong}")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
