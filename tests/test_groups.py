"""Nested mixtures: flattened by hand, a method over groups against one over plain domains."""

import json

import numpy as np
import pytest
from command_line import facts_of, refused, run

import mixcore
from mixcore.config import load_config
from mixcore.controller import Controller
from mixcore.domains import Domain
from mixcore.groups import Groups
from mixcore.signals import Signals

MIX = """\
batch_size: 8
train_samples: 800
domains:
  - name: web
    weight: 0.6
    domains:
      - {name: wiki, size: 60, weight: 3}
      - name: crawl
        weight: 1
        domains:
          - {name: new, size: 300, weight: 1}
          - {name: old, size: 100, weight: 4, max_epochs: 2}
  - {name: code, size: 40, weight: 0.3}
  - name: math
    weight: 0.1
    domains:
      - {name: proofs, size: 30}
      - {name: sums, size: 10}
"""
NAMES = ["web/wiki", "web/crawl/new", "web/crawl/old", "code", "math/proofs", "math/sums"]
WEIGHTS = [0.45, 0.03, 0.12, 0.3, 0.075, 0.025]


@pytest.fixture
def mix(tmp_path):
    def write(*changes, add=""):
        text = MIX
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "mix.yaml").write_text(text + add)
        return str(tmp_path / "mix.yaml")

    return write


def members():
    return [Domain("a", 30), Domain("b", 10), Domain("c", 60)]


def two():
    return Groups(members(), ["ab", "c"], [0, 0, 1], [0.75, 0.25, 1.0])


def test_a_nested_file_by_hand(mix):
    config = load_config(mix())
    assert [d.name for d in config.domains] == NAMES
    assert config.weights == pytest.approx(WEIGHTS, rel=1e-15)
    assert config.domains[2].cap == 200
    assert [(d.name, d.size) for d in config.groups.domains] == [
        ("web", 460),
        ("code", 40),
        ("math", 40),
    ]
    facts = facts_of("plan", mix())
    assert [d["name"] for d in facts["domains"]] == NAMES
    assert facts["domains"][3]["samples"] == 240


def test_a_flat_file_has_no_groups(mix):
    assert (
        load_config(
            mix(
                (
                    MIX,
                    MIX[: MIX.index("  - name: web")]
                    + MIX[MIX.index("  - {name: code") : MIX.index("  - name: math")],
                )
            )
        ).groups
        is None
    )


def test_a_schedule_speaks_of_groups(mix):
    add = "schedule: [[400, {web: 1, code: 2, math: 1}], [600, [0, 0, 1]]]\n"
    ledger = load_config(mix(add=add)).ledger()
    assert ledger.weights_at(400) == pytest.approx([0.1875, 0.0125, 0.05, 0.5, 0.1875, 0.0625])
    assert ledger.weights_at(600) == pytest.approx([0, 0, 0, 0, 0.75, 0.25])
    only = mix(
        (" weight: 0.6", " weight:"),
        ("0.3}", "}"),
        (" weight: 0.1", " weight:"),
        add="schedule: [[0, [6, 3, 1]]]\n",
    )
    assert load_config(only).ledger().weights_at(0) == pytest.approx(WEIGHTS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("name: wiki, size: 60, weight: 3", "name: wiki, size: 60"),
            "domains[0].domains[0].weight is missing: give every member of a group one, or none",
        ),
        (
            ("proofs, size: 30", "proofs, size: null"),
            "domains[2]: every member needs a weight or a size, got [0.0, 10.0]",
        ),
        (("weight: 3}", "weight: 0}"), None),
        (("name: math", "name: web"), "two of the outermost entries are named 'web'"),
        (("  - name: math\n", "  - naem: math\n"), "domains[2].naem is not a known key"),
        ((" weight: 0.6", " weight: -1"), "domains[0].weight must be finite and >= 0, got -1.0"),
        ((" weight: 0.6", " weight: 0.6\n    size: 5"), "domains[0].size is not a known key"),
        (
            ("name: sums", "name: proofs"),
            "domains[2].domains[1].name is 'math/proofs', as is that of domains[2].domains[0]",
        ),
        (("weight: 1}", "weight: 0}"), None),
        ((" weight: 0.6", " weight:"), "domains[0].weight is missing"),
    ],
)
def test_bad_groups(mix, change, said):
    if said is None:
        load_config(mix(change))
        return
    assert said in run("plan", mix(change), code=2).stderr


def test_all_weights_of_a_group_zero(mix):
    file = mix(
        ("new, size: 300, weight: 1", "new, size: 300, weight: 0"), ("weight: 4,", "weight: 0,")
    )
    assert "must have a positive sum" in refused("plan", file)


def test_empty_groups_and_bad_points(mix):
    file = mix(("      - {name: proofs, size: 30}\n      - {name: sums, size: 10}\n", ""))
    assert "domains[2].domains must be a list with at least one entry" in refused("plan", file)
    said = refused("plan", mix(add="schedule: [[400, {web/wiki: 1, code: 1, math: 1}]]\n"))
    assert (
        "schedule[0].weights names unknown domains ['web/wiki']; known: ['web', 'code', 'math']"
        in said
    )


@pytest.mark.parametrize("ratio", [[0.5, 0.4, 1], [np.nan, 1, 1], [-1, 2, 1], [1, 1]])
def test_bad_ratios(ratio):
    with pytest.raises(ValueError, match="ratio must"):
        Groups(members(), ["ab", "c"], [0, 0, 1], ratio)
    with pytest.raises(ValueError, match="of must be in"):
        Groups(members(), ["ab", "c"], [0, 0, 2], [0.5, 0.5, 1])


def test_signals_of_groups_by_hand():
    groups = two()
    g = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    target = np.array([1.0, 1.0])
    s = Signals(
        step=7,
        loss_sum=[1, 2, 3],
        tokens=[10, 20, 30],
        draws=[1, 2, 3],
        total_draws=[4, 5, 6],
        samples=[1, 1, 2],
        weights=[0.3, 0.1, 0.6],
        val_loss=[1, 3, 5],
        target_loss=[2, np.nan, np.nan],
        grad_dot=g @ g.T,
        grad_target=g @ target,
        grad_norm2=(g * g).sum(1),
        grad_var=[1, 2, 3],
        extra={"x": 1},
    )
    made = groups.signals(s, ("grad_var", "grad_norm2"))
    assert made.loss_sum.tolist() == [3, 3]
    assert made.tokens.tolist() == [30, 30]
    assert made.draws.tolist() == [3, 3]
    assert made.total_draws.tolist() == [9, 6]
    assert made.samples.tolist() == [2, 2]
    assert made.weights == pytest.approx([0.4, 0.6])
    assert made.val_loss == pytest.approx([1.5, 5])
    np.testing.assert_array_equal(made.target_loss, [2, np.nan])
    merged = np.array([[0.75, 0.5], [3.0, 4.0]])
    np.testing.assert_allclose(made.grad_dot, merged @ merged.T)
    np.testing.assert_allclose(made.grad_target, merged @ target)
    np.testing.assert_allclose(made.grad_norm2, (merged * merged).sum(1))
    between = 0.75 * ((g[0] - merged[0]) ** 2).sum() + 0.25 * ((g[1] - merged[0]) ** 2).sum()
    np.testing.assert_allclose(made.grad_var, [0.75 * 1 + 0.25 * 2 + between, 3])
    assert made.extra == {"x": 1}
    assert made.step == 7


@pytest.mark.parametrize(("absent", "expected"), [([1], [1.0, 25.0]), ([0, 1], [np.nan, 25.0])])
def test_absent_members(absent, expected):
    g = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    dot = g @ g.T
    dot[absent] = np.nan
    dot[:, absent] = np.nan
    made = two().signals(Signals(step=1, grad_dot=dot), ())
    np.testing.assert_allclose(np.diag(made.grad_dot), expected)


def test_norms_need_products():
    with pytest.raises(ValueError, match="grad_norm2 of a group needs the signal grad_dot"):
        two().signals(Signals(step=1, grad_norm2=[1, 1, 1]), ("grad_norm2",))
    wrapped = two().method("pike", zeta1=0.1, zeta2=0.1, batch_size=8)
    assert wrapped.needs == ("grad_norm2", "grad_var", "grad_dot")


def test_a_method_over_groups_is_the_method_over_merged_domains():
    groups = two()
    mine = groups.method("odm", warmup_steps=0)
    plain = mixcore.method("odm", domains=groups.domains, warmup_steps=0)
    random = np.random.default_rng(0)
    for step in range(1, 20):
        losses, tokens = random.uniform(1, 9, 3), random.integers(1, 9, 3)
        draws = random.integers(1, 5, 3)
        leaf = Signals(
            step=step, loss_sum=losses, tokens=tokens, draws=draws, weights=mine.weights()
        )
        top = groups.signals(leaf, ())
        np.testing.assert_array_equal(mine.update(leaf), groups.expand(plain.update(top)))
        if step == 10:  # a state goes through JSON and into a new one
            state = json.loads(json.dumps(mine.state_dict()))
            mine = groups.method("odm", warmup_steps=0)
            mine.load_state_dict(state)
            np.testing.assert_array_equal(mine.weights(), groups.expand(plain.weights()))
    assert abs(mine.weights()[0] / mine.weights()[1] - 3) < 1e-12


def test_a_controller_of_a_nested_file(mix):
    config = load_config(
        mix(add="method: {name: odm, update_every: 2, lag_steps: 0, warmup_steps: 0}\n")
    )
    ledger = config.ledger()
    controller = Controller.from_config(config, ledger)
    random = np.random.default_rng(1)
    sampler = mixcore.Sampler(ledger)
    for step in range(1, 11):
        domain = sampler.picks(8 * step - 8, 8).domain
        controller.observe(domain, random.uniform(1, 9, 8), np.full(8, 4))
        controller.step(8 * step)
    assert ledger.num_decisions > 2
    last = ledger.weights_at(80)
    assert last[0] / last[1] == pytest.approx(15)
    assert last[4] / last[5] == pytest.approx(3)
    assert last[3] / last[0] != pytest.approx(WEIGHTS[3] / WEIGHTS[0])


def test_a_static_method_over_groups():
    wrapped = two().method("proportional")
    assert not wrapped.dynamic
    assert wrapped.weights() == pytest.approx([0.3, 0.1, 0.6])
    assert [d.name for d in wrapped.domains] == ["a", "b", "c"]
