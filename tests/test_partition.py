"""`mixcore partition`: known topics found, every document once, no token copied."""

import os

import numpy as np
import pytest
from command_line import facts_of, refused, run

from mixcore.config import load_config
from mixcore.errors import DataError
from mixcore.gpt_dataset import GPTDataset
from mixcore.indexed import IndexedReader
from mixcore.indexed_writer import IndexedWriter
from mixcore.partition import Clusters, dissolve, fit_clusters, merge_near, partition
from mixcore.partition.clusters import _split
from mixcore.views import View

TOPICS = 4


def write(prefix, topics, seed, length=60):
    """Documents of known topics: each topic has its own 50 tokens and its own bigrams."""
    random = np.random.default_rng(seed)
    with IndexedWriter(prefix, np.uint16) as w:
        for topic in topics:
            w.add_document(random.integers(50 * topic, 50 * topic + 50, length))


@pytest.fixture
def corpora(tmp_path):
    random = np.random.default_rng(0)
    topics = {"web": random.integers(0, TOPICS, 300), "code": random.integers(0, 2, 100)}
    for i, (name, t) in enumerate(topics.items()):
        write(tmp_path / name, t, i)
    return tmp_path, topics


def test_known_topics_are_found_and_k_is_chosen(corpora):
    folder, topics = corpora
    out = folder / "parts"
    facts = facts_of("partition", str(folder / "web"), str(folder / "code"), "-o", str(out),
                     "--k", "2,3,4,6,8", "--tokens-per-sample", "16")  # fmt: skip
    assert max(facts["silhouettes"], key=facts["silhouettes"].get) == "4"
    assert len(facts["domains"]) == 6  # web: 4 topics, code: 2
    for d in facts["domains"]:
        view = View(out / d["prefix"])
        labels = np.load(out / f"{d['source']}.labels.npy")
        mine = topics[d["source"]][labels == int(d["cluster"])]
        assert len(set(mine.tolist())) == 1  # one topic
        assert view.num_documents == len(mine) == d["documents"]
        assert view.num_tokens == d["tokens"] == 60 * len(mine)
        source = IndexedReader(folder / d["source"])
        for i, document in enumerate(np.flatnonzero(labels == int(d["cluster"]))[:5]):
            np.testing.assert_array_equal(view[i], source[int(document)])
    for name in topics:  # every document in exactly one view
        assert sum(d["documents"] for d in facts["domains"] if d["source"] == name) == len(
            topics[name]
        )
    config = load_config(out / "mix.yaml")
    assert [d.name for d in config.groups.domains] == ["web", "code"]
    assert sum(config.weights[:4]) == pytest.approx(0.75)
    assert len(GPTDataset(config.paths[0], 16)) == config.domains[0].size
    assert "Domains" in run("plan", str(out / "mix.yaml")).stdout


def test_no_token_is_copied(corpora):
    folder, _ = corpora
    made = partition([folder / "web"], folder / "parts", k=4, tokens_per_sample=16)
    own = sum(f.lstat().st_size for f in made.folder.glob("web.*.idx"))
    assert own == 4 * (34 + 8 + 24) + 300 * 20  # 20 bytes a document, whatever its length
    assert all(f.is_symlink() for f in made.folder.glob("*.bin"))
    assert not list(made.folder.glob("*.tmp*"))


def test_the_same_again(corpora):
    folder, _ = corpora
    one = partition([folder / "web"], folder / "a", k=5, tokens_per_sample=16, seed=3)
    two = partition([folder / "web"], folder / "b", k=5, tokens_per_sample=16, seed=3)
    np.testing.assert_array_equal(one.labels[0], two.labels[0])


def test_groups_by_cluster(corpora):
    folder, _ = corpora
    partition(
        [folder / "web", folder / "code"], folder / "p", k=4, tokens_per_sample=16, by="cluster"
    )
    config = load_config(folder / "p" / "mix.yaml")
    assert len(config.groups.domains) == 4
    assert {d.name for d in config.domains} >= {"0/web", "1/web", "2/web", "3/web"}


def test_given_embeddings_merging_and_small_parts(corpora):
    folder, topics = corpora
    centers = np.array([[0.0, 0], [0.5, 0], [10, 0], [0, 10]])
    near = np.random.default_rng(1).normal(0, 0.01, (300, 2))
    np.save(folder / "e.npy", centers[topics["web"]] + near)
    options = {"k": 4, "tokens_per_sample": 16, "embeddings": folder / "e.npy"}
    made = partition([folder / "web"], folder / "a", **options)
    assert len(made.domains) == 4
    made = partition([folder / "web"], folder / "b", merge=1.0, **options)
    assert len(made.domains) == 3  # the first two are near each other
    joined = made.labels[0][np.isin(topics["web"], [0, 1])]
    assert len(set(joined.tolist())) == 1
    counts = np.bincount(topics["web"]) * 60
    made = partition([folder / "web"], folder / "c", min_tokens=int(counts.min()) + 1, **options)
    assert len(made.domains) == 3
    assert sum(d["documents"] for d in made.domains) == 300


def test_merge_and_dissolve_by_hand():
    x = np.array([[0.0], [0.1], [5.0], [5.2], [90.0]], np.float32)
    assert merge_near(x, 1.0).tolist() == [0, 0, 1, 1, 2]
    assert merge_near(x, 0.0).tolist() == [0, 1, 2, 3, 4]
    labels, tokens = np.array([0, 1, 2, 3, 4]), np.array([10, 1, 10, 2, 3])
    assert dissolve(labels, tokens, 3, x).tolist() == [0, 0, 2, 2, 4]
    assert dissolve(labels, tokens, 4, x).tolist() == [0, 0, 2, 2, 2]
    assert len(set(dissolve(labels, tokens, 100, x).tolist())) == 1


def test_many_clusters_in_two_levels(tmp_path):
    k = 1500
    centers = np.random.default_rng(0).uniform(0, 1000, (k, 4)).astype(np.float32)
    x = np.repeat(centers, 3, axis=0)
    found = fit_clusters(x, k)
    assert len(found) == k
    label = found.assign(x)
    assert len(set(label.tolist())) > 0.9 * k
    np.testing.assert_array_equal(label[::3], label[1::3])
    assert isinstance(found, Clusters)


@pytest.mark.parametrize(
    ("k", "members"), [(7, [3, 3, 3]), (9, [3, 3, 3]), (600, [10, 1, 900]), (3, [5, 1, 1])]
)
def test_clusters_are_dealt_out(k, members):
    made = _split(k, np.array(members))
    assert sum(made) == k
    assert all(1 <= n <= m for n, m in zip(made, members, strict=True))


def test_bad_input(corpora, tmp_path):
    folder, _ = corpora
    web = str(folder / "web")
    base = ("partition", web, "-o", str(folder / "p"), "--tokens-per-sample", "16")
    assert "--k must be a number" in refused(*base, "--k", "two")
    assert "k must be in [1, 300], got 301" in refused(*base, "--k", "301")
    assert "file does not exist" in refused("partition", web + "x", *base[2:])
    assert "different names" in refused("partition", web, web, *base[2:])
    assert "below 18001, one part" in refused(*base[:-1], "18000", "--k", "2")
    (folder / "text.npy").write_text("no")
    assert "no .npy file of numbers" in refused(*base, "--embeddings", str(folder / "text.npy"))
    np.save(folder / "short.npy", np.zeros((5, 2)))
    assert "has 5 rows, the corpora have 300 documents" in refused(
        *base, "--embeddings", str(folder / "short.npy")
    )
    assert not os.path.exists(folder / "p")
    os.mkdir(folder / "p")
    (folder / "p" / "mine.txt").write_text("keep")
    assert "folder must be new or empty" in refused(*base, "--k", "2")
    assert os.listdir(folder / "p") == ["mine.txt"]
    with pytest.raises(ValueError, match="merge distance"):
        merge_near(np.zeros((3, 2), np.float32), float("nan"))
    np.save(folder / "nan.npy", np.full((300, 2), np.nan))
    with pytest.raises((DataError, ValueError), match="row 0 is not finite"):
        partition([web], folder / "q", k=2, tokens_per_sample=16, embeddings=folder / "nan.npy")
