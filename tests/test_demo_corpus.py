"""Gathering the text of the demo: caps, duplicates, what cannot be decoded, what is not there."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "demo"))

import corpus


def source(name, documents, max_bytes=1_000_000):
    return corpus.Source(name, name, max_bytes, lambda: iter(documents), "a test")


def many(name, count=60):
    return source(name, [(f"{i}", f"{name} {i}\n".encode() * 100) for i in range(count)])


def test_duplicates_and_undecodable_files_are_counted_and_left_out():
    documents = [("a", b"x" * 30_000), ("b", b"x" * 30_000), ("c", b"\xff\xfe"), ("d", b"  \n")]
    found = corpus.gather_one(source("x", documents), 1.0)
    assert (found.files, found.num_bytes) == (1, 30_000)
    assert (found.duplicates, found.undecodable, found.missing) == (1, 1, "")


def test_cap_and_order_do_not_depend_on_the_order_of_the_files():
    documents = [(f"{i:03}", f"{i} line\n".encode() * 1000) for i in range(100)]
    one = corpus.gather_one(source("x", documents, 100_000), 1.0)
    other = corpus.gather_one(source("x", documents[::-1], 100_000), 1.0)
    assert one.documents == other.documents
    assert 90_000 < one.num_bytes <= 100_000
    assert one.documents[0] != "0 line\n" * 1000  # a cross-section, not the first names


def test_cut_at_line():
    assert corpus.cut_at_line(b"one\ntwo\nthree", 9) == b"one\ntwo\n"
    assert corpus.cut_at_line(b"one\n", 4) == b"one\n"
    assert corpus.cut_at_line("\u00e4\u00f6\u00fc".encode(), 3) == "\u00e4".encode()  # no half


def test_translated():
    catalogue = (
        'msgid ""\nmsgstr ""\n"Language: de\\n"\n\n'
        'msgid "Yes"\nmsgstr "Ja"\n\n'
        'msgid "Long"\nmsgstr ""\n"Erst "\n"dann \\"so\\""\n\n'
        'msgid "No"\nmsgstr ""\n\n'
        'msgid "day"\nmsgid_plural "days"\nmsgstr[0] "Tag"\nmsgstr[1] "Tage"'
    )
    assert list(corpus.translated(catalogue)) == ["Ja", 'Erst dann "so"', "Tag", "Tage"]


def test_a_missing_domain_is_named_and_the_others_go_on():
    seen = []
    sources = [*(many(f"d{i}") for i in range(6)), source("none", [])]
    kept = corpus.gather(sources, 1.0, lambda found: seen.append(found.missing))
    assert [found.name for found in kept] == [f"d{i}" for i in range(6)]
    assert seen[-1] == "domain 'none' left out, only 0 bytes: needs a test"


def test_fewer_than_six_domains():
    sources = [*(many(f"d{i}") for i in range(5)), source("none", [])]
    with pytest.raises(LookupError, match="6 domains needed, only 5 found here: domain 'none'"):
        corpus.gather(sources, 1.0)


def test_this_machine_has_at_least_six():
    kept = corpus.gather(corpus.DOMAINS, 0.1)
    assert len(kept) >= corpus.MIN_DOMAINS
    assert len({found.num_bytes for found in kept}) == len(kept)  # sizes clearly different
