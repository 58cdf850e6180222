"""What one proxy model leaves behind: Chameleon's embeddings, the logs of DoReMi and DoGE."""

import numpy as np
import pytest

from mixcore.errors import ArgumentError
from mixcore.fit import fit
from mixcore.fit.chameleon import leverage
from mixcore.fit.task import Corpus


def write(path, columns, rows):
    lines = [",".join(columns)] + [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


# Chameleon ---------------------------------------------------------------------------------------


def embeddings(tmp_path, means, noise=0.0, samples=1):
    rng = np.random.default_rng(0)
    rows = [
        [f"d{i}", *(mean + noise * rng.normal(size=len(mean))).tolist()]
        for i, mean in enumerate(np.asarray(means, dtype=float))
        for _ in range(samples)
    ]
    columns = ["domain", *(f"x/{k}" for k in range(len(means[0])))]
    return write(tmp_path / "e.csv", columns, rows)


def test_leverage_is_that_of_ridge_regression():
    means = np.random.default_rng(0).normal(size=(5, 8)) * 10
    centred = means - means.mean(axis=0)
    # The same by the other side: x (X'X + lambda D I)^-1 x'.
    inner = np.linalg.inv(centred.T @ centred + 10 * 5 * np.eye(8))
    assert leverage(means, 10.0) == pytest.approx(np.diag(centred @ inner @ centred.T))


def test_pretraining_favours_typical_domains_and_finetuning_distinctive_ones(tmp_path):
    means = [[1, 0], [0, 1], [-1, 0], [0, -1], [4, 4]]
    pre = fit("chameleon", embeddings(tmp_path, means), temperature=50.0)
    fine = fit("chameleon", embeddings(tmp_path, means), mode="finetune")
    assert pre.weights.argmin() == 4
    assert fine.weights.argmax() == 4
    scores = np.array(list(pre.parameters["leverage"].values()))
    assert scores.sum() == pytest.approx(1)
    assert pre.weights == pytest.approx(np.exp(1 / scores / 50) / np.exp(1 / scores / 50).sum())


def test_samples_are_averaged(tmp_path):
    means = [[3.0, 0, 0], [0, 3, 0], [0, 0, 3]]
    exact = fit("chameleon", embeddings(tmp_path, means))
    noisy = fit("chameleon", embeddings(tmp_path, means, noise=0.1, samples=400))
    assert noisy.weights == pytest.approx(exact.weights, abs=0.01)
    assert exact.weights == pytest.approx(np.full(3, 1 / 3))


def test_a_domain_at_the_centre_takes_everything_and_it_is_said(tmp_path):
    found = fit("chameleon", embeddings(tmp_path, [[1, 0], [-1, 0], [0, 0]]))
    assert found.weights[2] == pytest.approx(1)
    assert any("'d2' takes 100.0%" in note for note in found.notes)
    with pytest.raises(ArgumentError, match="all domains have the same mean"):
        fit("chameleon", embeddings(tmp_path, [[1, 0], [1, 0]]))


# DoReMi ------------------------------------------------------------------------------------------


def test_doremi_by_hand(tmp_path):
    log = write(
        tmp_path / "log.csv", ["step", "excess/a", "excess/b"], [[0, 0.5, 0.1], [1, 0.2, 0.4]]
    )
    found = fit("doremi", log)
    alpha, path = np.array([0.5, 0.5]), []
    for excess in ([0.5, 0.1], [0.2, 0.4]):
        alpha = alpha * np.exp(excess)
        alpha = (1 - 1e-3) * alpha / alpha.sum() + 1e-3 / 2
        path.append(alpha)
    assert found.extra["path"] == pytest.approx(np.array(path))
    assert found.weights == pytest.approx(np.mean(path, axis=0))
    code = fit("doremi", log, variant="code")
    assert code.weights == pytest.approx(np.mean([[0.5, 0.5], *path], axis=0))


def test_clip_of_tokens_and_of_means_differ(tmp_path):
    # Tokens of a: +1 and -1 against the reference: 0.5 by token, 0 by mean.
    by_token = write(tmp_path / "t.csv", ["excess/a", "excess/b"], [[0.5, 0.0]] * 20)
    by_mean = write(
        tmp_path / "m.csv",
        ["loss/a", "loss/b", "reference/a", "reference/b"],
        [[2.0, 1.0, 2.0, 1.0]] * 20,
    )
    assert fit("doremi", by_token).weights[0] > 0.9
    assert fit("doremi", by_mean).weights == pytest.approx([0.5, 0.5])


def test_an_absent_domain_keeps_its_score(tmp_path):
    rows = [[0.5, 0.1], ["", 0.1], ["", 0.1]]
    gap = fit("doremi", write(tmp_path / "g.csv", ["excess/a", "excess/b"], rows))
    full = fit("doremi", write(tmp_path / "f.csv", ["excess/a", "excess/b"], [[0.5, 0.1]] * 3))
    assert gap.weights == pytest.approx(full.weights)


def test_logged_weights_are_averaged_and_unsettled_logs_noted(tmp_path):
    rows = [[1 - t / 40, t / 40] for t in range(40)]
    found = fit("doremi", write(tmp_path / "w.csv", ["weight/a", "weight/b"], rows))
    assert found.weights == pytest.approx(np.mean(rows, axis=0))
    short = fit("doremi", write(tmp_path / "s.csv", ["weight/a", "weight/b"], rows[:3]))
    assert any("after 3 steps the mean still moves" in note for note in short.notes)
    corpus = Corpus({"a": 1.0, "b": 9.0})
    capped = fit("doremi", tmp_path / "w.csv", corpus=corpus, cap=2, budget=10)
    assert capped.weights == pytest.approx([0.2, 0.8])


# DoGE --------------------------------------------------------------------------------------------

DOTS = ["grad_dot/a|a", "grad_dot/a|b", "grad_dot/b|a", "grad_dot/b|b"]


def test_doge_leaves_its_own_gradient_out_in_the_paper_only(tmp_path):
    log = write(tmp_path / "d.csv", ["lr", *DOTS], [[1e-3, 9, 1, 1, 4]] * 50)
    paper, code = (fit("doge", log, variant=v) for v in ("paper", "code"))
    assert paper.weights == pytest.approx([0.5, 0.5])  # each helps the other alike
    assert code.weights[0] > code.weights[1]  # its own norm counts


def test_doge_towards_a_target(tmp_path):
    log = write(tmp_path / "t.csv", ["grad_target/a", "grad_target/b"], [[2.0, -1.0]] * 30)
    found = fit("doge", log, lr=1e-2, mu=0.05)
    alpha, path = np.zeros(2), []
    for _ in range(30):
        alpha = alpha + 1e-2 * np.array([2.0, -1.0]) / 0.05
        path.append(np.exp(alpha) / np.exp(alpha).sum())
    assert found.weights == pytest.approx(np.mean(path, axis=0))
    with pytest.raises(ArgumentError, match="needs grad_dot"):
        fit("doge", log, variant="code")


def test_bad_logs(tmp_path):
    path = tmp_path / "l.csv"
    for name, text, message in [
        ("doremi", "step\n1\n", "must have columns weight/ or excess/ or loss/ or reference/NAME"),
        ("doremi", "loss/a\n1\n", "must have reference/NAME for every"),
        ("doremi", "excess/a,b\n1,2\n", "column 'b' is not known"),
        ("doremi", "excess/a,excess/b\nx,1\n", "line 2, column 'excess/a'"),
        ("doremi", "weight/a,weight/b\n-1,2\n", "logged weights must be >= 0"),
        ("doge", "grad_dot/a|a,grad_dot/b|b\n1,2\n", "must have all pairs"),
    ]:
        path.write_text(text)
        with pytest.raises(ArgumentError, match=message):
            fit(name, path)
    path.write_text("excess/a\n1\n")
    with pytest.raises(ArgumentError, match="takes no target"):
        fit("doremi", path, "loss/a")
