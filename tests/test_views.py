"""Views: against the documents they were made of, damage, sharing, one mapping a corpus."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcore.config import load_config
from mixcore.errors import DataError
from mixcore.gpt_dataset import GPTDataset
from mixcore.indexed import IndexedReader
from mixcore.indexed_writer import IndexedWriter
from mixcore.views import View, open_corpus, write_view

LENGTHS = [5, 0, 3, 1, 8, 2, 2, 7]


@pytest.fixture
def corpus(tmp_path):
    with IndexedWriter(tmp_path / "web", np.uint16) as w:
        for i, n in enumerate(LENGTHS):
            tokens = np.arange(n) + 100 * i
            w.add_document(tokens, [n // 2, n - n // 2] if i == 4 else None)
    (tmp_path / "parts").mkdir()
    return IndexedReader(tmp_path / "web")


def document(i):
    return (np.arange(LENGTHS[i]) + 100 * i).tolist()


def view_of(corpus, documents, name="a", **options):
    prefix = os.path.join(os.path.dirname(corpus.prefix), "parts", name)
    write_view(prefix, corpus, documents, **options)
    return View(prefix)


def test_a_view_by_hand(corpus):
    view = view_of(corpus, [0, 2, 4])
    assert len(view) == 4  # document 4 has two sequences
    assert view.num_documents == 3
    assert view.document_indices.tolist() == [0, 1, 2, 4]
    assert view.num_tokens == 16
    assert view[0].tolist() == document(0)
    assert view.get(3, 1, 2).tolist() == [405, 406]
    assert view.read(0, 16).tolist() == document(0) + document(2) + document(4)
    assert view.read(16, 0).tolist() == []
    assert os.readlink(view.bin_path) == "../web.bin"
    assert os.path.getsize(view.idx_path) < 34 + 12 * 4 + 8 * 4 + 24 + 1


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_read_against_the_documents(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("views")
    with IndexedWriter(folder / "web", np.int32) as w:
        for i, n in enumerate(LENGTHS):
            w.add_document(np.arange(n) + 100 * i)
    chosen = sorted(data.draw(st.sets(st.integers(0, len(LENGTHS) - 1))))
    write_view(folder / "v", IndexedReader(folder / "web"), chosen)
    view = View(folder / "v")
    stream = [t for i in chosen for t in document(i)]
    start = data.draw(st.integers(0, len(stream)))
    length = data.draw(st.integers(0, len(stream) - start))
    assert view.read(start, length).tolist() == stream[start : start + length]
    assert view.num_tokens == len(stream)
    assert pickle.loads(pickle.dumps(view)).read(0, len(stream)).tolist() == stream


@pytest.mark.parametrize("mode", ["shuffled", "virtual"])
def test_a_dataset_over_a_view_is_that_over_a_copy(corpus, tmp_path, mode):
    chosen = [0, 2, 4, 7]
    view_of(corpus, chosen)
    with IndexedWriter(tmp_path / "copy", np.uint16) as w:
        for i in chosen:
            w.add_document(document(i), [4, 4] if i == 4 else None)
    mine = GPTDataset(tmp_path / "parts" / "a", 4, mode=mode, name="x", seed=3)
    copy = GPTDataset(tmp_path / "copy", 4, mode=mode, name="x", seed=3)
    assert len(mine) == len(copy) == 5
    for epoch in range(3):
        for i in range(5):
            np.testing.assert_array_equal(mine[epoch, i], copy[epoch, i])


def test_a_mix_yaml_counts_the_samples_of_a_view(corpus, tmp_path):
    view_of(corpus, [0, 2, 4])
    file = tmp_path / "mix.yaml"
    file.write_text(
        "batch_size: 2\ntokens_per_sample: 4\ndomains: [{name: a, path: parts/a, weight: 1}]\n"
    )
    assert load_config(file).domains[0].size == 3


def test_views_share_one_mapping(corpus):
    views = [view_of(corpus, [i], f"v{i}") for i in range(5)]
    assert len({v.stream.__array_interface__["data"][0] for v in views}) == 1


def test_open_corpus_tells_them_apart(corpus):
    view = view_of(corpus, [3])
    assert type(open_corpus(view.prefix)) is View
    assert type(open_corpus(corpus.prefix)) is IndexedReader
    with pytest.raises(DataError, match=r"missing\.idx: file does not exist"):
        open_corpus(corpus.prefix + "missing")
    with pytest.raises(DataError, match="last 24 bytes"):
        View(corpus.prefix)


def test_an_empty_view(corpus):
    view = view_of(corpus, [])
    assert (len(view), view.num_tokens) == (0, 0)
    view = view_of(corpus, [1], "b")
    assert (len(view), view.num_tokens) == (1, 0)


def test_every_flipped_byte_is_found_or_harmless(corpus):
    view = view_of(corpus, [0, 2, 4])
    good = Path(view.idx_path).read_bytes()
    tokens = view.read(0, 16).tolist()
    for at in range(34, len(good)):  # the header up to there is IndexedReader's, tested there
        bad = bytearray(good)
        bad[at] ^= 0x40
        with open(view.idx_path, "wb") as f:
            f.write(bad)
        try:
            read = View(view.prefix)
        except DataError:
            continue
        assert read.read(0, 16).tolist() != tokens or read.document_indices.tolist() != [0, 1, 2, 4]
    for end in range(len(good)):
        with open(view.idx_path, "wb") as f:
            f.write(good[:end])
        with pytest.raises(DataError):
            View(view.prefix)


def test_a_corpus_that_has_changed_or_gone(corpus, tmp_path):
    view = view_of(corpus, [0])
    with open(corpus.bin_path, "ab") as f:
        f.write(b"\0\0")
    with pytest.raises(DataError, match="the view was made for a corpus of 56 bytes"):
        View(view.prefix)
    os.remove(corpus.bin_path)
    with pytest.raises(DataError, match="the corpus that it links to does not exist"):
        View(view.prefix)


def test_the_folder_may_move_with_its_corpus(corpus, tmp_path):
    view_of(corpus, [0])
    shutil.copytree(tmp_path, str(tmp_path) + "-moved", symlinks=True)
    assert View(str(tmp_path) + "-moved/parts/a")[0].tolist() == document(0)


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([1, 1], "must ascend"),
        ([2, 1], "must ascend"),
        ([-1], "must ascend within"),
        ([8], r"within \[0, 8\), got \[8\]"),
        ([0.5], "must be a list of integers"),
        (3, "must be a list of integers"),
    ],
)
def test_bad_documents(corpus, documents, said):
    with pytest.raises(ValueError, match=said):
        view_of(corpus, documents)
    assert os.listdir(os.path.dirname(corpus.prefix) + "/parts") == []


def test_nothing_is_replaced_by_accident(corpus, tmp_path):
    first = view_of(corpus, [0])
    with pytest.raises(ValueError, match="prefix must be new"):
        view_of(corpus, [2])
    assert View(first.prefix)[0].tolist() == document(0)
    assert view_of(corpus, [2], overwrite=True)[0].tolist() == document(2)
    with pytest.raises(ValueError, match="prefix must be new"):  # a corpus is never replaced
        write_view(corpus.prefix, corpus, [0], overwrite=True)
    with pytest.raises(ValueError, match="is or has a view"):
        write_view(tmp_path / "b", first, [0])
    with pytest.raises(ValueError, match="existing directory"):
        write_view(tmp_path / "no" / "b", corpus, [0])
    assert sorted(os.listdir(tmp_path / "parts")) == ["a.bin", "a.idx"]


def test_out_of_range(corpus):
    view = view_of(corpus, [0, 2])
    with pytest.raises(IndexError, match=r"start must be in \[0, 8\], got 9"):
        view.read(9, 0)
    with pytest.raises(IndexError, match=r"length must be in \[0, 3\].* got 4"):
        view.read(5, 4)
