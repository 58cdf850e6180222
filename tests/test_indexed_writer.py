"""IndexedWriter: known bytes, round trips, and nothing half-written left behind."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixcore.indexed_writer
from mixcore.errors import ArgumentError, ArgumentTypeError, DataError
from mixcore.indexed import IndexedReader
from mixcore.indexed_writer import IndexedWriter, token_dtype

# Three uint16 sequences, [1, 2, 3] [] [256, 65535], in two documents, the second of two sequences.
BIN = bytes.fromhex("0100 0200 0300 0001 ffff")
IDX = bytes.fromhex(
    "4d4d49444944580000 0100000000000000 08 0300000000000000 0300000000000000"
    "03000000 00000000 02000000"
    "0000000000000000 0600000000000000 0600000000000000"
    "0000000000000000 0100000000000000 0300000000000000"
)
DTYPES = ["uint8", "int8", "uint16", "int16", "int32", "int64"]


def test_known_bytes(tmp_path):
    with IndexedWriter(tmp_path / "a", np.uint16) as corpus:
        corpus.add_document([1, 2, 3])
        corpus.add_document(np.array([256, 65535]), lengths=[0, 2])
    assert (tmp_path / "a.idx").read_bytes() == IDX
    assert (tmp_path / "a.bin").read_bytes() == BIN
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


def test_token_dtype():
    for vocab_size, expected in [(1, "uint16"), (65_499, "uint16"), (65_500, "int32"),
                                 (2**31, "int32")]:  # fmt: skip
        assert token_dtype(vocab_size) == np.dtype(expected)
    for bad in (0, -1, 2**31 + 1):
        with pytest.raises(ArgumentError, match=f"vocab_size .* got {bad}"):
            token_dtype(bad)
    with pytest.raises(ArgumentTypeError, match="vocab_size"):
        token_dtype(5e4)


@st.composite
def corpora(draw):
    dtype = draw(st.sampled_from(DTYPES))
    limits = np.iinfo(dtype)
    tokens = st.lists(st.integers(int(limits.min), int(limits.max)), max_size=6)
    return dtype, draw(st.lists(st.lists(tokens, max_size=3), max_size=6))


@settings(max_examples=100, deadline=None)
@given(corpora(), st.integers(1, 5), st.booleans())
def test_round_trip(corpus, chunk, merged):
    """Documents of sequences come back as they went in, and a merge is their concatenation."""
    dtype, documents = corpus
    sequences = [sequence for document in documents for sequence in document]
    stored = mixcore.indexed_writer._CHUNK
    mixcore.indexed_writer._CHUNK = chunk
    try:
        with tempfile.TemporaryDirectory() as directory:
            prefix = f"{directory}/a"
            with IndexedWriter(prefix, dtype) as writer:
                for document in documents:
                    tokens = [token for sequence in document for token in sequence]
                    writer.add_document(tokens, [len(s) for s in document])
            if merged:
                with IndexedWriter(f"{directory}/b", dtype) as writer:
                    writer.add_index(prefix)
                    writer.add_document([1, 0], [1, 1])
                    writer.add_index(prefix)
                prefix = f"{directory}/b"
                sequences = [*sequences, [1], [0], *sequences]
                documents = [*documents, [[1], [0]], *documents]
            reader = IndexedReader(prefix)
            assert reader.dtype == np.dtype(dtype)
            assert [s.tolist() for s in reader] == sequences
            assert reader.num_tokens == sum(map(len, sequences))
            assert np.diff(reader.document_indices).tolist() == [len(d) for d in documents]
    finally:
        mixcore.indexed_writer._CHUNK = stored


def test_add_index_refuses(tmp_path):
    (tmp_path / "c.idx").write_bytes(IDX + b"\0\0\0")
    (tmp_path / "c.bin").write_bytes(BIN)
    with IndexedWriter(tmp_path / "a", "int32") as writer:
        with pytest.raises(ArgumentError, match="has dtype uint16, expected int32"):
            writer.add_index(tmp_path / "c")
        with pytest.raises(DataError, match="does not exist"):
            writer.add_index(tmp_path / "missing")
        writer.add_document([5])
    with (
        IndexedWriter(tmp_path / "b", "uint16") as writer,
        pytest.raises(ArgumentError, match="has sequence modes"),
    ):
        writer.add_index(tmp_path / "c")
    assert [s.tolist() for s in IndexedReader(tmp_path / "a")] == [[5]]  # the refused left no trace


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_out_of_range(tmp_path, dtype):
    limits = np.iinfo(dtype)
    with IndexedWriter(tmp_path / "a", dtype) as writer:
        for bad in (int(limits.min) - 1, int(limits.max) + 1):
            if -(2**63) <= bad < 2**64:
                with pytest.raises(ArgumentError, match=f"tokens must be in .* got {bad}"):
                    writer.add_document([bad])
        writer.add_document([limits.min, limits.max])
    assert [s.tolist() for s in IndexedReader(tmp_path / "a")] == [[limits.min, limits.max]]


def test_bad_documents(tmp_path):
    with IndexedWriter(tmp_path / "a", "uint16") as writer:
        for tokens in ([1.0], ["a"], [True], None, [2**70], 1.5):
            with pytest.raises(ArgumentTypeError, match="tokens must be integers"):
                writer.add_document(tokens)
        for tokens in (5, [[1, 2]], [[1, 2], [3]], np.zeros((0, 2), int)):
            with pytest.raises(ArgumentError, match="tokens must have one axis"):
                writer.add_document(tokens)
        for lengths in ([], [1, 2], [4, -1, 1], [2**62] * 4 + [3]):
            with pytest.raises(ArgumentError, match="lengths must"):
                writer.add_document([1, 2, 3, 4], lengths)
        with pytest.raises(ArgumentError, match=r"lengths must be in .* got -1"):
            writer.add_document([1, 2, 3, 4], [5, -1])
        with pytest.raises(ArgumentTypeError, match="lengths must be integers"):
            writer.add_document([1, 2], [0.5, 1.5])
    assert len(IndexedReader(tmp_path / "a")) == 0


def test_bad_writer(tmp_path):
    for dtype in ("float32", "uint32", "bool", object):
        with pytest.raises(ArgumentError, match="dtype must be one of"):
            IndexedWriter(tmp_path / "a", dtype)
    with pytest.raises(ArgumentTypeError, match="dtype must be a numpy dtype"):
        IndexedWriter(tmp_path / "a", "tokens")
    with pytest.raises(ArgumentError, match="existing directory"):
        IndexedWriter(tmp_path / "none" / "a", "uint16")
    writer = IndexedWriter(tmp_path / "a", "uint16")
    writer.finalize()
    for call in (writer.finalize, lambda: writer.add_document([1]), lambda: writer.add_index("x")):
        with pytest.raises(ArgumentError, match="closed"):
            call()
    writer.abort()  # harmless
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


def test_overwrite(tmp_path):
    def add(token: int, **options: bool) -> None:
        with IndexedWriter(tmp_path / "a", "uint16", **options) as writer:
            writer.add_document([token])

    add(1)
    with pytest.raises(ArgumentError, match=r"a\.idx exists"):
        add(2)
    assert IndexedReader(tmp_path / "a")[0].tolist() == [1]
    old = IndexedReader(tmp_path / "a")
    add(3, overwrite=True)
    assert IndexedReader(tmp_path / "a")[0].tolist() == [3]
    assert old[0].tolist() == [1]  # who has it open keeps what he opened
    (tmp_path / "a.idx").unlink()
    with pytest.raises(ArgumentError, match=r"a\.bin exists"):
        add(4)


def test_appeared_meanwhile(tmp_path):
    first, second = (IndexedWriter(tmp_path / "a", "uint16") for _ in range(2))
    first.add_document([1])
    second.add_document([2])
    first.finalize()
    with pytest.raises(ArgumentError, match="exists"):
        second.finalize()
    assert IndexedReader(tmp_path / "a")[0].tolist() == [1]
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


def fail(writer: IndexedWriter) -> None:
    with writer:
        writer.add_document([1])
        raise KeyboardInterrupt


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail(IndexedWriter(tmp_path / "a", "uint16"))
    assert os.listdir(tmp_path) == []
    writer = IndexedWriter(tmp_path / "a", "uint16")
    writer.add_document([1])
    writer._file.write(b"\0")  # what a write that failed half-way leaves
    with pytest.raises(DataError, match="file size = 3: 2 bytes were added"):
        writer.finalize()
    assert os.listdir(tmp_path) == []


def test_killed_writer(tmp_path):
    code = (
        "import os, signal; from mixcore.indexed_writer import IndexedWriter\n"
        f"w = IndexedWriter({str(tmp_path / 'a')!r}, 'uint16')\n"
        "w.add_document(range(60000)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    process = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert process.returncode == -signal.SIGKILL
    names = os.listdir(tmp_path)
    assert len(names) == 1
    assert names[0].endswith(".tmp")
    with IndexedWriter(tmp_path / "a", "uint16") as writer:  # and is not in the way of the next
        writer.add_document([7])
    assert IndexedReader(tmp_path / "a")[0].tolist() == [7]
