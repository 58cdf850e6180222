"""IndexedReader: known bytes, every field damaged in turn, and reads against plain lists."""

import contextlib
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixcore.indexed
from mixcore.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    MixcoreError,
    OutOfRangeError,
)
from mixcore.indexed import IndexedReader

# Three sequences, [1, 2, 3] [] [256, 65535], in two documents, the second of them multi-sequence.
BIN = bytes.fromhex("0100 0200 0300 0001 ffff")
IDX = bytes.fromhex(
    "4d4d494449445800 00"  # MMIDIDX, two zero bytes
    "0100000000000000"  # version
    "08"  # uint16
    "0300000000000000"  # sequences
    "0300000000000000"  # boundaries of documents
    "03000000 00000000 02000000"
    "0000000000000000 0600000000000000 0600000000000000"
    "0000000000000000 0100000000000000 0300000000000000"
)
SEQUENCES = [[1, 2, 3], [], [256, 65535]]
STREAM = [1, 2, 3, 256, 65535]
VERSION, CODE, SEQUENCE_COUNT, DOCUMENT_COUNT, LENGTHS, POINTERS, DOCUMENTS = (
    9, 17, 18, 26, 34, 46, 70,
)  # fmt: skip


def write(directory: Path, idx: bytes | None = IDX, data: bytes | None = BIN) -> str:
    for name, content in (("c.idx", idx), ("c.bin", data)):
        if content is not None:
            (directory / name).write_bytes(content)
    return str(directory / "c")


def damaged(place: int, kind: str, value: int) -> bytes:
    idx = bytearray(IDX)
    struct.pack_into(kind, idx, place, value)
    return bytes(idx)


def use(reader: IndexedReader) -> None:
    """Every access there is; a DataError is a good answer, and so is data."""
    for index in range(len(reader)):
        try:
            reader.get(index)
        except DataError:
            assert reader._verify_on_open is False
    for start in range(reader.num_tokens + 1):
        for stop in range(start, reader.num_tokens + 1):
            try:
                assert len(reader.read(start, stop - start)) == stop - start
            except DataError:
                assert reader._verify_on_open is False
    try:
        reader.entries(np.arange(len(reader)))
    except DataError:
        assert reader._verify_on_open is False


@pytest.mark.parametrize("verify", [True, False])
def test_known_bytes(tmp_path, verify):
    reader = IndexedReader(Path(write(tmp_path)), verify=verify)
    assert [list(reader[i]) for i in range(3)] == SEQUENCES
    assert [list(s) for s in reader] == SEQUENCES  # iteration ends by the IndexError
    assert (len(reader), reader.num_tokens, reader.num_documents) == (3, 5, 2)
    assert reader.dtype == np.uint16
    assert reader.sequence_lengths.tolist() == [3, 0, 2]
    assert reader.sequence_pointers.tolist() == [0, 6, 6]
    assert reader.document_indices.tolist() == [0, 1, 3]
    assert reader.sequence_modes is None
    assert reader.stream.tolist() == reader.read(0, 5).tolist() == STREAM
    assert reader.read(2, 2).tolist() == [3, 256]
    assert reader.get(0, 1).tolist() == [2, 3]
    assert reader.get(0, 1, 1).tolist() == [2]
    assert reader.get(2, 2).tolist() == []
    assert reader.entries(np.array([2, 0, 1, 2])) == ([3, 0, 3, 3], [2, 3, 0, 2])
    assert not reader[0].flags.writeable


def test_modes(tmp_path):
    reader = IndexedReader(write(tmp_path, IDX + bytes([0, 1, 255])))
    assert reader.sequence_modes.tolist() == [0, 1, -1]
    assert [list(s) for s in reader] == SEQUENCES


@pytest.mark.parametrize(
    ("code", "name", "width"),
    [(1, "uint8", 1), (2, "int8", 1), (3, "int16", 2), (4, "int32", 4), (5, "int64", 8),
     (6, "float64", 8), (7, "float32", 4), (8, "uint16", 2)],
)  # fmt: skip
def test_dtype_codes(tmp_path, code, name, width):
    values = np.arange(3, dtype=name)
    idx = struct.pack("<9sQBQQiqqq", b"MMIDIDX\0\0", 1, code, 1, 2, 3, 0, 0, 1)
    reader = IndexedReader(write(tmp_path, idx, values.tobytes()))
    assert reader.dtype == np.dtype(name)
    assert reader.dtype.itemsize == width
    assert reader[0].tolist() == [0, 1, 2]


def test_no_sequences(tmp_path):
    idx = struct.pack("<9sQBQQq", b"MMIDIDX\0\0", 1, 4, 0, 1, 0)
    reader = IndexedReader(write(tmp_path, idx, b""))
    assert (len(reader), reader.num_tokens, reader.num_documents) == (0, 0, 0)
    assert reader.read(0, 0).tolist() == []
    with pytest.raises(DataError, match="sequence_count = 0"):
        IndexedReader(write(tmp_path, idx, b"\0\0\0\0"))


@pytest.mark.parametrize(
    ("idx", "field"),
    [
        (b"mMIDIDX\0\0" + IDX[9:], "magic = b'mMIDIDX"),
        (damaged(VERSION, "<Q", 2), "version = 2:"),
        (damaged(VERSION, "<Q", 2**64 - 1), f"version = {2**64 - 1}:"),
        (damaged(CODE, "<B", 0), "dtype code = 0:"),
        (damaged(CODE, "<B", 9), "dtype code = 9:"),
        (damaged(CODE, "<B", 255), "dtype code = 255:"),
        (damaged(SEQUENCE_COUNT, "<q", -1), f"sequence_count = {2**64 - 1}:"),
        (damaged(SEQUENCE_COUNT, "<q", 2**61), f"sequence_count = {2**61}:"),
        (damaged(SEQUENCE_COUNT, "<q", 4), "document_count = 3: with sequence_count = 4"),
        (damaged(SEQUENCE_COUNT, "<q", 2), "document_count = 3: with sequence_count = 2"),
        (damaged(DOCUMENT_COUNT, "<q", 0), "document_count = 0:"),
        (damaged(DOCUMENT_COUNT, "<q", -1), f"document_count = {2**64 - 1}:"),
        (damaged(DOCUMENT_COUNT, "<q", 2**61), f"document_count = {2**61}:"),
        (damaged(DOCUMENT_COUNT, "<q", 4), "document_count = 4:"),
        (damaged(DOCUMENT_COUNT, "<q", 2), "document_count = 2:"),
        (damaged(LENGTHS, "<i", -1), "sequence_lengths[0] = -1:"),
        (damaged(LENGTHS, "<i", 2), "sequence_pointers[1] = 6: must be 4"),
        (damaged(LENGTHS + 4, "<i", 2**31 - 1), "sequence_pointers[2] = 6: must be 4294967300"),
        (damaged(LENGTHS + 8, "<i", -(2**31)), "sequence_lengths[2] = -2147483648:"),
        (damaged(LENGTHS + 8, "<i", 1), "sequence_pointers[2] = 6:"),
        (damaged(LENGTHS + 8, "<i", 3), "sequence_pointers[2] = 6:"),
        (damaged(POINTERS, "<q", 2), "sequence_pointers[0] = 2: must be 0"),
        (damaged(POINTERS + 8, "<q", 5), "sequence_pointers[1] = 5: must be 6"),
        (damaged(POINTERS + 8, "<q", 8), "sequence_pointers[1] = 8: must be 6"),
        (damaged(POINTERS + 16, "<q", -2), "sequence_pointers[2] = -2:"),
        (damaged(POINTERS + 16, "<q", 7), "sequence_pointers[2] = 7: must be a multiple of 2"),
        (damaged(POINTERS + 16, "<q", 2**63 - 2), f"sequence_pointers[2] = {2**63 - 2}:"),
        (damaged(DOCUMENTS, "<q", 1), "document_indices[0] = 1: must be 0"),
        (damaged(DOCUMENTS + 8, "<q", 4), "document_indices[2] = 3:"),
        (damaged(DOCUMENTS + 8, "<q", -1), "document_indices[1] = -1:"),
        (damaged(DOCUMENTS + 16, "<q", 2), "document_indices[2] = 2: must be 3"),
        (IDX + b"\0", "it has 95"),
    ],
)
def test_damaged_field(tmp_path, idx, field):
    """Each message names the file, the field and its value."""
    prefix = write(tmp_path, idx)
    with pytest.raises(DataError, match=re.escape(field)) as caught:
        IndexedReader(prefix)
    assert prefix + ".idx" in str(caught.value)
    try:  # without the full check: opens or refuses, but never reads outside
        reader = IndexedReader(prefix, verify=False)
    except DataError:
        return
    use(reader)


def test_unverified_reads_find_the_damage(tmp_path):
    """What verify=False skips is found by the access that touches it."""
    reader = IndexedReader(write(tmp_path, damaged(LENGTHS + 4, "<i", -1)), verify=False)
    assert reader.read(0, 3).tolist() == [1, 2, 3]  # the damage is beyond
    for access in (
        lambda: reader.get(1),
        lambda: reader.read(2, 2),
        lambda: reader.entries(np.array([0, 1])),
        reader.verify,
    ):
        with pytest.raises(DataError, match=re.escape("sequence_lengths[1] = -1")):
            access()
    reader = IndexedReader(write(tmp_path, damaged(LENGTHS, "<i", 2)), verify=False)
    with pytest.raises(DataError, match=re.escape("sequence_pointers[1] = 6: must be 4")):
        reader.read(0, 5)
    with pytest.raises(DataError, match=re.escape("sequence_lengths[0] = 2: ends at byte 4")):
        reader.read(0, 3)
    # The last: beyond the end by a sum that overflows 64 bits.
    for pointer, length in ((5, 0), (-2, 1), (2**63 - 2, 0), (2**63 - 2, 2**31 - 1)):
        idx = bytearray(damaged(POINTERS + 8, "<q", pointer))
        struct.pack_into("<i", idx, LENGTHS + 4, length)
        reader = IndexedReader(write(tmp_path, bytes(idx)), verify=False)
        message = re.escape(f"sequence_pointers[1] = {pointer}:")
        with pytest.raises(DataError, match=message):
            reader.get(1)
        with pytest.raises(DataError, match=message):
            reader.entries(np.array([0, 1]))


def test_cut_at_every_byte(tmp_path):
    for size in range(len(IDX)):
        with pytest.raises(DataError):
            IndexedReader(write(tmp_path, IDX[:size]))
    for size in range(len(BIN)):
        with pytest.raises(DataError):
            IndexedReader(write(tmp_path, IDX, BIN[:size]))
    for longer in (b"\0", b"\0\0"):
        with pytest.raises(DataError):
            IndexedReader(write(tmp_path, IDX, BIN + longer))


@pytest.mark.parametrize("verify", [True, False])
def test_every_byte_changed(tmp_path, verify):
    """A changed byte is refused, or leaves a corpus that is consistent: nothing reads outside."""
    refused = 0
    for place in range(len(IDX)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            idx = bytearray(IDX)
            idx[place] ^= flip
            try:
                reader = IndexedReader(write(tmp_path, bytes(idx)), verify=verify)
            except DataError:
                refused += 1
                continue
            use(reader)
    # Consistent again are only 0 and 3 for the inner boundary of documents. Without the full check
    # opening does not look at the inner entries: two lengths, a pointer and that boundary.
    assert refused == (9 * len(IDX) - 2 if verify else 9 * (len(IDX) - 24))


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=150),
    st.sampled_from([0, 9, 17, 18, 26, 34]),
    st.binary(max_size=40),
    st.booleans(),
)
def test_random_bytes(tmp_path_factory, tail, kept, data, verify):
    prefix = write(tmp_path_factory.getbasetemp(), IDX[:kept] + tail, data)
    with contextlib.suppress(DataError):
        use(IndexedReader(prefix, verify=verify))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_verify_in_chunks(tmp_path, monkeypatch, chunk):
    """Damage is found, and named with its number, on every side of a chunk's border."""
    monkeypatch.setattr(mixcore.indexed, "_CHUNK", chunk)
    lengths = np.array([2, 0, 1, 3, 0, 2, 4], "<i4")
    pointers = np.cumsum(lengths, dtype="<i8") - lengths
    documents = np.arange(8, dtype="<i8")
    data = bytes(range(12))
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 1, 7, 8)

    def corpus() -> str:
        arrays = lengths.tobytes() + pointers.tobytes() + documents.tobytes()
        return write(tmp_path, header + arrays, data)

    assert IndexedReader(corpus()).num_tokens == 12
    for array, field in (
        (lengths, "sequence_lengths"),
        (pointers, "sequence_pointers"),
        (documents, "document_indices"),
    ):
        for place in range(len(array)):
            kept = array[place]
            array[place] = -1
            with pytest.raises(DataError, match=re.escape(f"{field}[{place}] = -1:")):
                IndexedReader(corpus())
            array[place] = kept
    # A length beyond the .bin stops the sum before the next chunk, where -25 would mend it.
    lengths[3], lengths[5] = 30, -25
    pointers[4:] = np.cumsum(lengths, dtype="<i8")[3:-1]
    wrong = (
        "sequence_lengths[3] = 30: ends at byte 33" if chunk < 3 else "sequence_lengths[5] = -25"
    )
    with pytest.raises(DataError, match=re.escape(wrong)):
        IndexedReader(corpus())


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"c\.idx: file does not exist"):
        IndexedReader(tmp_path / "c")
    prefix = write(tmp_path, IDX, None)
    with pytest.raises(DataError, match=r"c\.bin: file does not exist"):
        IndexedReader(prefix)
    write(tmp_path)
    for end in (".idx", ".bin"):
        with pytest.raises(DataError, match=f"give the prefix without {end}"):
            IndexedReader(prefix + end)


def test_misaligned_bin(tmp_path):
    with pytest.raises(DataError, match=r"c\.bin: file size = 11: not a whole number of uint16"):
        IndexedReader(write(tmp_path, IDX, BIN + b"\0"))


def test_bad_arguments(tmp_path):
    reader = IndexedReader(write(tmp_path))
    for call, value in (
        (lambda: reader.get(-1), "-1"),
        (lambda: reader[3], "3"),
        (lambda: reader.get(10**30), str(10**30)),
        (lambda: reader.get(0, -1), "-1"),
        (lambda: reader.get(0, 4), "4"),
        (lambda: reader.get(0, 1, 3), "3"),
        (lambda: reader.get(0, 1, -1), "-1"),
        (lambda: reader.read(6, 0), "6"),
        (lambda: reader.read(-1, 1), "-1"),
        (lambda: reader.read(3, 3), "3"),
        (lambda: reader.read(3, -1), "-1"),
        (lambda: reader.entries(np.array([0, 3])), "3"),
        (lambda: reader.entries(np.array([0, -1])), "-1"),
    ):
        with pytest.raises(OutOfRangeError, match=f"got {value}") as caught:
            call()
        assert isinstance(caught.value, IndexError)
        assert isinstance(caught.value, MixcoreError)
    for call in (lambda: reader.get(1.0), lambda: reader.get(0, "1"), lambda: reader.read(0, None)):
        with pytest.raises(ArgumentTypeError, match="must be an integer, got"):
            call()
    for prefix in (None, 3, b"bytes"):
        with pytest.raises(ArgumentTypeError, match="prefix must be a path"):
            IndexedReader(prefix)
    for prefix in ("", "data/"):
        with pytest.raises(ArgumentError, match="prefix must end in a file name"):
            IndexedReader(prefix)


def test_pickle(tmp_path, monkeypatch):
    prefix = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = pickle.dumps(IndexedReader("c", verify=False))  # a relative path, opened from elsewhere
    monkeypatch.chdir("/")
    copy = pickle.loads(text)
    assert [list(s) for s in copy] == SEQUENCES
    assert copy._verify_on_open is False
    write(tmp_path, IDX + b"\0\0\0")
    with pytest.raises(DataError, match=r"c\.idx: file size = 97: it was 94"):
        pickle.loads(text)
    Path(prefix + ".bin").unlink()
    with pytest.raises(DataError, match="does not exist"):
        pickle.loads(text)
