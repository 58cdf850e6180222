"""Inverse mixing: known answers, a model trained here on a known mixture, goals."""

import json

import numpy as np
import pytest
from command_line import facts_of, refused, run
from hypothesis import given, settings
from hypothesis import strategies as st

import mixcore
from mixcore.indexed import IndexedReader
from mixcore.indexed_writer import IndexedWriter
from mixcore.inverse import em, estimate, least_squares, reach

VOCAB, LENGTH = 24, 24
MIX = np.array([0.5, 0.3, 0.2])


def chains():
    """Three Markov chains over the same tokens, near enough that a classifier confuses them."""
    random = np.random.default_rng(0)
    common = random.dirichlet(np.full(VOCAB, 0.5), VOCAB)
    own = [random.dirichlet(np.full(VOCAB, 0.1), VOCAB) for _ in MIX]
    first = random.dirichlet(np.full(VOCAB, 0.3), 3)  # of a text: domains begin differently, too
    return [np.vstack([0.4 * common + 0.6 * o, f]) for o, f in zip(own, first, strict=True)]


def generate(chain, count, random):
    edges = np.cumsum(chain, axis=1)
    made = np.empty((count, LENGTH), np.int64)
    state = np.full(count, VOCAB)
    for t in range(LENGTH):
        draw = random.random(count)[:, None]
        state = made[:, t] = np.minimum((edges[state] < draw).sum(axis=1), VOCAB - 1)
    return made


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inverse")
    random = np.random.default_rng(1)
    for name, chain in zip("abc", chains(), strict=True):
        with IndexedWriter(folder / name, np.uint16) as w:
            for row in generate(chain, 4000, random):
                w.add_document(row)
    return {name: IndexedReader(folder / name) for name in "abc"}


def random_confusion(random, num):
    return (np.eye(num) * num + random.uniform(0, 1, (num, num))) / 1.0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(2, 12))
def test_exact_predictions_give_the_exact_mixture(seed, num):
    random = np.random.default_rng(seed)
    m = random_confusion(random, num)
    m /= m.sum(axis=0)
    pi = random.dirichlet(np.ones(num))
    np.testing.assert_allclose(em(m, m @ pi), pi, atol=1e-5)
    np.testing.assert_allclose(least_squares(m, m @ pi), pi, atol=1e-6)


def test_least_squares_against_a_search_where_no_mixture_fits():
    m = np.array([[0.7, 0.2, 0.2], [0.2, 0.7, 0.1], [0.1, 0.1, 0.7]])
    q = np.array([0.95, 0.04, 0.01])
    found = least_squares(m, q)
    grid = np.array(
        [[a, b, 1 - a - b] for a in np.linspace(0, 1, 201) for b in np.linspace(0, 1 - a, 201)]
    )
    best = (((grid @ m.T) - q) ** 2).sum(axis=1).min()
    assert ((m @ found - q) ** 2).sum() <= best + 1e-9
    assert found.tolist() == pytest.approx([1, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("m", "q", "said"),
    [
        (np.eye(2) * 0.5, [0.5, 0.5], "confusion must sum to 1"),
        (np.eye(2), [0.5, 0.6], "predicted must sum to 1"),
        (np.eye(2), [1.5, -0.5], "predicted must be finite and >= 0"),
        (np.eye(3), [0.5, 0.5], "must be D x D"),
    ],
)
def test_bad_confusions(m, q, said):
    for solve in (em, least_squares):
        with pytest.raises(ValueError, match=said):
            solve(m, np.array(q))


def test_correction_beats_counting_on_text_of_a_known_mixture(corpora):
    random = np.random.default_rng(7)
    parts = [generate(c, n, random) for c, n in zip(chains(), (2000, 1200, 800), strict=True)]
    found = estimate(np.concatenate(parts), corpora, train=800, held_out=800, bootstrap=50)
    assert abs(found.em - MIX).max() < 0.03
    assert abs(found.least_squares - MIX).max() < 0.03
    for interval in (found.em_interval, found.least_squares_interval):
        assert (interval[:, 0] - 0.01 <= MIX).all()
        assert (interval[:, 1] + 0.01 >= MIX).all()
        assert (interval[:, 1] - interval[:, 0] < 0.12).all()
    shifted = estimate(parts[2], corpora, train=8, held_out=800, bootstrap=2)  # it errs
    assert shifted.em[2] > 0.95
    assert shifted.predicted[2] < shifted.em[2]  # what the correction is for


def trained_and_sampled(corpora, count):
    """A small GRU trained with a ledger's picks in the mixture MIX; its samples."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    data = {
        n: torch.tensor(np.array([c[i] for i in range(len(c))], np.int64))
        for n, c in corpora.items()
    }
    ledger = mixcore.Ledger(
        [mixcore.Domain(n, len(d)) for n, d in data.items()], MIX, batch_size=64
    )
    table = torch.nn.Embedding(VOCAB + 1, 32)
    body, head = torch.nn.GRU(32, 96, batch_first=True), torch.nn.Linear(96, VOCAB)
    parameters = [p for m in (table, body, head) for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, 8e-3)
    steps = 500
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    picks = mixcore.Sampler(ledger).picks(0, 64 * steps)
    names = list(data)
    for step in range(steps):
        these = slice(64 * step, 64 * step + 64)
        rows = zip(picks.domain[these].tolist(), picks.sample[these].tolist(), strict=True)
        x = torch.stack([data[names[d]][s] for d, s in rows])
        start = torch.full((64, 1), VOCAB)
        hidden, _ = body(table(torch.cat([start, x[:, :-1]], 1)))
        loss = torch.nn.functional.cross_entropy(head(hidden).flatten(0, 1), x.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        token, state, made = torch.full((count, 1), VOCAB), None, []
        for _ in range(LENGTH):
            hidden, state = body(table(token), state)
            token = torch.multinomial(head(hidden[:, 0]).softmax(1), 1)
            made.append(token)
    return torch.cat(made, 1).numpy()


def test_a_model_trained_here_gives_its_mixture_back(corpora, tmp_path):
    made = trained_and_sampled(corpora, 6000)
    np.save(tmp_path / "generated.npy", made)
    facts = facts_of("inverse", "samples", str(tmp_path / "generated.npy"),
                     *(c.prefix for c in corpora.values()), "--bootstrap", "20")  # fmt: skip
    got = np.array([d["em"] for d in facts["domains"]])
    assert facts["samples"] == 6000
    assert abs(got - MIX).max() < 0.02, got
    assert (
        "Mixture behind 6,000 samples"
        in run(
            "inverse",
            "samples",
            str(tmp_path / "generated.npy"),
            *(c.prefix for c in corpora.values()),
            "--bootstrap",
            "2",
        ).stdout
    )


def laws(tmp_path):
    facts = {
        "domains": ["web", "code"],
        "laws": {"web": {"c": 2, "k": 1, "t": [-2, 0]}, "code": {"c": 1, "k": 1, "t": [0, -3]}},
    }
    (tmp_path / "laws.json").write_text(json.dumps(facts))
    return str(tmp_path / "laws.json")


def test_goals_that_can_be_reached_stay_near_the_prior(tmp_path):
    web = 2 + float(np.exp(-2 * 0.7))  # reached from a web weight of 0.7 on
    facts = facts_of("inverse", "targets", laws(tmp_path), "--target", f"web={web!r}")
    assert facts["reached"]
    assert facts["weights"]["web"] == pytest.approx(0.7, abs=1e-3)
    far = facts_of("inverse", "targets", laws(tmp_path), "--target", "web=2.9", "--prior", "1,3")
    assert far["weights"]["web"] == pytest.approx(0.25, abs=1e-6)  # met by the prior already
    assert far["kl"] == pytest.approx(0, abs=1e-9)


def test_goals_out_of_reach_give_the_nearest(tmp_path):
    facts = facts_of(
        "inverse", "targets", laws(tmp_path), "--target", "web=2.1", "--target", "code=1.1"
    )
    assert not facts["reached"]
    grid = np.linspace(0, 1, 10_001)
    over = np.stack([2 + np.exp(-2 * grid) - 2.1, 1 + np.exp(-3 * (1 - grid)) - 1.1])
    best = grid[(np.maximum(over, 0) ** 2).sum(axis=0).argmin()]
    assert facts["weights"]["web"] == pytest.approx(best, abs=1e-3)
    assert facts["excess"]["web"] > 0
    out = run(
        "inverse", "targets", laws(tmp_path), "--target", "web=2.1", "--target", "code=1.1"
    ).stdout
    assert "not reached; this comes nearest" in out


def test_an_object_with_predict_is_a_law():
    class Law:
        def predict(self, w):
            return 3 - w[:, 2]

    found = reach({"x": Law()}, {"x": 2.4}, [0.4, 0.4, 0.2])
    assert found.reached
    assert found.weights == pytest.approx([0.2, 0.2, 0.6], abs=1e-4)  # KL keeps the ratios


def test_bad_input(tmp_path, corpora):
    file = laws(tmp_path)
    assert "goals must be among the laws ['code', 'web'], got ['wbe']" in refused(
        "inverse", "targets", file, "--target", "wbe=2"
    )
    assert "--target must be NAME=LOSS" in refused("inverse", "targets", file, "--target", "web")
    assert "--prior must have 2 numbers, got 3" in refused(
        "inverse", "targets", file, "--target", "web=2", "--prior", "1,1,1"
    )
    assert "prior must be positive" in refused(
        "inverse", "targets", file, "--target", "web=2", "--prior", "0,1"
    )
    (tmp_path / "bad.json").write_text(
        '{"domains": ["a", "b"], "laws": {"x": {"c": 1, "k": 1, "t": [1]}}}'
    )
    assert "no laws of the form c, k, t" in refused(
        "inverse", "targets", str(tmp_path / "bad.json"), "--target", "x=2"
    )
    with pytest.raises(ValueError, match="at least two"):
        estimate(np.ones((5, 5), np.int64), {"a": corpora["a"]})
    with pytest.raises(ValueError, match=r"samples must be integers \[n, length\]"):
        estimate(np.ones((5, 5)), corpora)
    with pytest.raises(ValueError, match="windows of 24 tokens, 90000 are needed"):
        estimate(np.ones((5, 24), np.int64), corpora, train=89_000)
