"""The harness itself, on stock Megatron: what the runs of the patch are compared with."""

import signal

import numpy as np
import pytest
from megatron_runs import SEQUENCE, core, start, train, write_corpus

ITERATIONS = 20
KEYS = ("tokens", "labels", "loss_mask", "position_ids", "dataset_id")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "data", [4_000, 3_000, 2_000])


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory):
    return train(tmp_path_factory.mktemp("single") / "run", corpus, iterations=ITERATIONS)


def test_prepared():
    assert list(core("0.19.2").glob("megatron/core/datasets/helpers_cpp*.so"))
    assert list(core("0.16.1").glob("megatron/core/datasets/helpers_cpp*.so"))


def test_one_rank_reads_the_whole_batch(single, corpus):
    (rank,) = single.ranks
    assert len(rank.fetches) == ITERATIONS * 4
    tokens, labels = rank.samples("tokens"), rank.samples("labels")
    assert tokens.shape == (ITERATIONS * 8, SEQUENCE)
    assert (tokens[:, 1:] == labels[:, :-1]).all()
    domain = corpus.domain(tokens)
    assert (domain == rank.samples("dataset_id")[:, None]).all()
    counts = np.bincount(domain[:, 0])
    assert np.abs(counts - ITERATIONS * 8 * np.array([0.5, 0.3, 0.2])).max() < 1.5
    assert len(np.unique(tokens[:, 0])) == len(tokens)  # no domain is at its end: nothing twice
    assert list(single.logged) == list(range(1, ITERATIONS + 1))
    losses = [sum(x.sum for x in rank.losses if x.iteration == i) for i in (1, ITERATIONS)]
    assert losses[1] / (8 * SEQUENCE) == pytest.approx(single.logged[ITERATIONS], rel=1e-5)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("kind", ["dp", "tp", "pp"])
def test_two_ranks_read_the_same(single, corpus, tmp_path, kind):
    flags = {
        "dp": [],
        "tp": ["--tensor-model-parallel-size", "2"],
        "pp": ["--pipeline-model-parallel-size", "2"],
    }
    run = train(tmp_path / "run", corpus, ranks=2, iterations=ITERATIONS, flags=flags[kind])
    for key in KEYS:
        assert (run.positions(key) == single.positions(key)).all()
    first, last = run.ranks
    if kind == "dp":
        assert not set(first.samples()[:, 0]) & set(last.samples()[:, 0])
    elif kind == "tp":
        assert last.fetches == []
    else:
        for key in KEYS:
            assert (first.samples(key) == last.samples(key)).all()
        assert first.losses == []
    exact = 1e-5 if kind == "dp" else 1e-2  # each tensor or pipeline rank starts its own weights
    for i in range(3, ITERATIONS + 1):
        assert run.logged[i] == pytest.approx(single.logged[i], rel=exact)


def test_killed(corpus, tmp_path):
    """What a killed rank had recorded is there."""
    running = start(tmp_path / "run", corpus, flags=["--num-workers", "2"])
    running.wait_for("iteration        5/")
    run = running.kill()
    assert run.codes == [-signal.SIGKILL]
    assert len(run.ranks[0].fetches) >= 20


def test_a_run_that_fails_shows_its_log(corpus, tmp_path):
    with pytest.raises(AssertionError, match="unrecognized arguments: --mix-config"):
        train(tmp_path / "run", corpus, flags=["--mix-config", "mix.yaml"])


def test_saved_and_resumed(single, corpus, tmp_path):
    save = ["--save", str(tmp_path / "checkpoint"), "--load", str(tmp_path / "checkpoint")]
    save += ["--save-interval", "100"]
    half = ITERATIONS // 2
    stop = ["--exit-interval", str(half)]
    first = train(tmp_path / "first", corpus, iterations=ITERATIONS, flags=[*save, *stop])
    assert max(first.logged) == half
    run = train(tmp_path / "second", corpus, iterations=ITERATIONS, flags=save, ranks=2)
    assert min(run.logged) == half + 1
    assert (run.positions() == single.positions()[half * 8 :]).all()
    for i in range(half + 3, ITERATIONS + 1):
        assert run.logged[i] == pytest.approx(single.logged[i], rel=1e-5)
