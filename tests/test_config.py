"""`mix.yaml`: what it means, and what is said of a wrong one."""

import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcore
from mixcore._yaml import parse
from mixcore.config import Config, Guards, MethodConfig, load_config

EXAMPLE = Path(__file__).parent.parent / "examples" / "mix.yaml"
GOOD = """\
domains:
  - {name: web, size: 1000, weight: 3}
  - {name: code, size: 500, weight: 1, max_epochs: 2}
batch_size: 10
"""


@pytest.fixture
def load(tmp_path):
    def from_text(text: str) -> Config:
        file = tmp_path / "mix.yaml"
        file.write_text(text, encoding="utf-8")
        return load_config(file)

    return from_text


@pytest.fixture
def problems(load):
    """The lines of the error, without the file's name."""

    def of(text: str) -> list[str]:
        with pytest.raises(mixcore.ArgumentError) as caught:
            load(text)
        head, *rest = str(caught.value).split("\n  ")
        return rest or [head.split("mix.yaml: ", 1)[1]]

    return of


# Meaning ---------------------------------------------------------------------------------------


def test_the_example_is_what_it_says():
    config = load_config(EXAMPLE)
    assert config.domains == (
        mixcore.Domain("web", 8_000_000),
        mixcore.Domain("code", 400_000, 4),
        mixcore.Domain("math", 90_000, 8),
    )
    assert config.weights == (0.75, 0.2, 0.05)
    assert (config.batch_size, config.train_samples, config.seed) == (512, 10_000_000, 1234)
    ledger = config.ledger()
    twin = mixcore.Ledger(
        config.domains,
        [0.75, 0.2, 0.05],
        batch_size=512,
        seed=1234,
        tokens_per_sample=2048,
        schedule=[(5_000_000, [0.6, 0.28, 0.12])],
    )
    assert ledger.digest == twin.digest
    assert ledger.header() == twin.header()


def test_defaults(load):
    config = load(GOOD)
    assert (config.seed, config.order, config.on_cap) == (0, "balanced", "redistribute")
    assert config.train_samples is config.tokens_per_sample is config.schedule is None
    assert config.method is None
    assert config.guards == Guards()
    assert config.paths == (None, None)
    assert config.file.name == "mix.yaml"


def test_everything(load):
    config = load(
        GOOD
        + """\
seed: -7
order: random
on_cap: stop
train_samples: 1e3
tokens_per_sample: 4_096
schedule:
  kind: linear
  unit: tokens
  every: 5
  points:
    - [0, [1, 0]]
    - {at: 1e6, weights: {code: 0.5, web: 5e-1}}
guards: {floor: 0.01, max_change: 0.5, repeat_cap: 4}
ledger: out/ledger.json
"""
    )
    assert (config.seed, config.order, config.on_cap) == (-7, "random", "stop")
    assert (config.train_samples, config.tokens_per_sample) == (1000, 4096)
    assert all(type(n) is int for n in (config.train_samples, config.tokens_per_sample))
    assert config.schedule == mixcore.linear(
        [mixcore.schedule.Point(0, [1, 0]), (10**6, {"code": 0.5, "web": 0.5})],
        every=5,
        unit="tokens",
    )
    assert config.ledger_path == config.file.parent / "out" / "ledger.json"
    assert config.guards == Guards(0.01, 0.5, 4.0)
    assert config.ledger().order == "random"


def test_a_method_and_its_options(load):
    config = load(
        GOOD + "method: {name: odm, update_every: 100, lag_steps: 2, smoothing_factor: 0.5, "
        "initial: {web: 1, code: 2}}\n"
    )
    options = {"smoothing_factor": 0.5, "initial": {"web": 1, "code": 2}}
    assert config.method == MethodConfig("odm", 100, 2, options)


def test_a_static_method_gives_the_weights(load):
    text = GOOD.replace(", weight: 3", "").replace(", weight: 1", "")
    config = load(text + "method: {name: proportional}\n")
    assert config.weights == (1000 / 1500, 500 / 1500)
    assert config.ledger().weights_at(0) == pytest.approx([2 / 3, 1 / 3])


def test_a_control_file_is_the_method_external(load):
    config = load(GOOD + "control: weights.json\nmethod: {update_every: 5}\n")
    path = config.file.parent / "weights.json"
    assert config.control_path == path
    assert config.method == MethodConfig("external", 5, None, {"path": str(path)})


def test_a_schedule_at_0_stands_in_for_weights(load):
    config = load(
        "domains: [{name: a, size: 5}, {name: b, size: 5}]\n"
        "batch_size: 1\nschedule: [[0, [1, 3]], [10, [1, 1]]]\n"
    )
    assert config.weights is None
    assert config.ledger().weights_at(0).tolist() == [0.25, 0.75]


def test_size_null_is_open_ended(load):
    config = load("domains: [{name: a, size: null, weight: 1}]\nbatch_size: 1\n")
    assert config.domains == (mixcore.Domain("a", None),)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 1e6),
        ("1E-3", 1e-3),
        ("1_000_000", 1_000_000),
        ("-12", -12),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("0123", 123.0),  # in YAML 1.1 octal
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("0", 0),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text, value):
    got = parse(f"x: {text}\n".encode(), "f")[0]["x"]
    assert got == value
    assert type(got) is type(value)
    assert not isinstance(got, datetime.date)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers())
def test_numbers_survive(x, n):
    value = parse(f"[{x!r}, {n}]".encode(), "f")[0]
    assert value == [x, n]
    assert list(map(type, value)) == [float, int]


# Files -----------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    """A folder with data/web.bin and data/web.idx: 10 sequences of 41 tokens."""
    writer = pytest.importorskip("mixcore.indexed_writer")
    import numpy as np

    (tmp_path / "data").mkdir()
    with writer.IndexedWriter(tmp_path / "data" / "web", np.uint16) as out:
        for _ in range(10):
            out.add_document(np.arange(41, dtype=np.uint16))
    return tmp_path


def test_a_path_gives_the_size(corpus, load):
    config = load(
        "domains: [{name: w, path: data/web, weight: 1, max_epochs: 2}]\n"
        "batch_size: 1\ntokens_per_sample: 8\n"
    )
    assert config.domains[0].size == (410 - 1) // 8
    assert config.paths == (corpus / "data" / "web",)


def test_a_path_and_its_own_size_agree(corpus, load, problems):
    text = (
        "domains:\n- {name: w, path: data/web, weight: 1, size: SIZE}\n"
        "batch_size: 1\ntokens_per_sample: 8\n"
    )
    assert load(text.replace("SIZE", "51")).domains[0].size == 51
    (line,) = problems(text.replace("SIZE", "50"))
    assert line.startswith("line 2: domains[0].size contradicts domains[0].path: ")
    assert "has 51 samples of 8 tokens, got 50" in line


def test_bad_paths(corpus, problems):
    (corpus / "data" / "bad.idx").write_bytes(b"x" * 99)
    (corpus / "data" / "bad.bin").write_bytes(b"")
    lines = problems(
        "domains:\n- {name: w, path: data/none, weight: 1}\n"
        "- {name: v, path: data/bad, weight: 1}\n"
        "- {name: u, path: 5, weight: 1}\nbatch_size: 1\ntokens_per_sample: 8\n"
    )
    assert [line.split(": ")[1] for line in lines] == [f"domains[{i}].path" for i in (0, 1)] + [
        "domains[2].path must be the prefix of two files, got 5 (int)"
    ]
    assert "does not exist" in lines[0]
    assert "magic" in lines[1]
    (line,) = problems(
        "domains:\n- {name: w, path: data/web, weight: 1}\nbatch_size: 1\ntokens_per_sample: 410\n"
    )
    assert line.endswith("has 410 tokens, not one sample of 410 + 1")


def test_a_path_needs_tokens_per_sample(problems):
    assert problems("domains: [{name: w, path: x, weight: 1}]\nbatch_size: 1\n") == [
        "line 1: domains[0].path needs tokens_per_sample, the length of a sample"
    ]


# Wrong files -----------------------------------------------------------------------------------


def test_all_problems_in_one_message(problems):
    lines = problems(
        """\
domians: []
domains:
  - {name: web, size: -5, weight: abc, max_epochs: 0}
  - {name: web, wieght: 3, size: 1e6, weight: .nan}
  - foo
  - {name: x, weight: 1, weight: 2}
  - {name: 5, size: 1.5, weight: 1}
order: balancd
on_cap: [stop]
batch_size: yes
seed: 1e99
schedule:
  kind: liner
  points:
    - [0, {web: 1}]
    - {at: -1, wights: 2}
    - 7
guards: {floor: 0.9, foo: 1}
method: {update_every: 0}
"""
    )
    expected = [
        (1, "domians is not a known key (its value: [] (list)); did you mean 'domains'?; known: "),
        (3, "domains[0].max_epochs must be finite and > 0, got 0"),
        (3, "domains[0].size must be in [1, 281474976710656], got -5"),
        (3, "domains[0].weight must be a number, got 'abc'"),
        (4, "domains[1].name is 'web', as is that of domains[0]"),
        (4, "domains[1].weight must be finite and >= 0, got nan"),
        (4, "domains[1].wieght is not a known key (its value: 3 (int)); did you mean 'weight'?"),
        (5, "domains[2] must be a mapping, got 'foo' (str)"),
        (6, "domains[3] needs a size or a path"),
        (6, "domains[3].weight is given twice, first in line 6"),
        (7, "domains[4].name must be a str, got 5 (int)"),
        (7, "domains[4].size must be an integer, got 1.5 (float)"),
        (8, "order must be one of 'balanced', 'megatron', 'random', got 'balancd'; did you mean"),
        (9, "on_cap must be one of 'redistribute', 'stop', 'error', got ['stop']"),
        (10, "batch_size must be an integer, got 'yes' (str)"),
        (11, "seed must be in [-9223372036854775808, 18446744073709551615], got 9999999"),
        (13, "schedule.kind must be one of 'piecewise', 'linear', got 'liner'; did you mean"),
        (16, "schedule.points[1].at must be in [0, 4611686018427387904], got -1"),
        (16, "schedule.points[1].wights is not a known key (its value: 2 (int)); did you mean"),
        (17, "schedule.points[2] must have the keys at, weights, batch_size, got 7 (int)"),
        (18, "guards.floor must be at most 1 / 5 (the domains), got 0.9"),
        (18, "guards.foo is not a known key (its value: 1 (int))"),
        (19, "method.name is missing"),
        (19, "method.update_every must be in [1, 2147483647], got 0"),
    ]
    assert len(lines) == len(expected)
    for line, (number, text) in zip(lines, expected, strict=True):
        assert line.startswith(f"line {number}: {text}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file must be a mapping, got None (NoneType)"),
        ("- 1\n", "the file must be a mapping, got [1] (list)"),
        ("batch_size: 1\n", "domains is missing"),
        ("domains: []\nbatch_size: 1\n", "line 1: domains must be a list with at least one entry"),
        ("domains: 5\nbatch_size: 1\n", "line 1: domains must be a list with at least one entry"),
        (GOOD.replace("batch_size: 10", ""), "batch_size is missing"),
        (GOOD.replace(": 10\n", ": 0\n"), "line 4: batch_size must be in [1, 2147483647], got 0"),
        (GOOD.replace(": 10\n", ": true\n"), "line 4: batch_size must be an integer, got True"),
        (GOOD.replace("name: web, ", ""), "line 2: domains[0].name is missing"),
        (GOOD.replace("web", '""'), "line 2: domains[0].name must not be empty, got ''"),
        (GOOD.replace(", weight: 3", ""), "line 2: domains[0].weight is missing: give every"),
        (GOOD.replace("3}", "-1}"), "line 2: domains[0].weight must be finite and >= 0, got -1"),
        (
            GOOD.replace("weight: 3", "weight: 0").replace("weight: 1", "weight: 0"),
            "line 1: domains: the weights must have a positive sum, got all zeros",
        ),
        (GOOD.replace("epochs: 2", "epochs: 1e-9"), "line 3: domains[1].max_epochs leaves no"),
        (
            GOOD.replace("size: 500", "size: null"),
            "line 3: domains[1].max_epochs needs a size: an open-ended domain has no epochs",
        ),
        (
            GOOD + "order: megatron\n",
            "line 3: domains[1].max_epochs is 2, but order 'megatron' has",
        ),
        (GOOD + "train_samples: 0\n", "line 5: train_samples must be in [1, 281474976710655], got"),
        (GOOD + "batch_size: 3\n", "line 5: batch_size is given twice, first in line 4"),
        (GOOD + "schedule: 5\n", "line 5: schedule must be a mapping, got 5 (int)"),
        (
            GOOD + "schedule: []\n",
            "line 5: schedule must be a list with at least one entry, got []",
        ),
        (GOOD + "schedule: [[0, [1]]]\n", "line 5: schedule[0].weights must have one entry a dom"),
        (
            GOOD + "schedule: [[0, {web: 1, coed: 1}]]\n",
            "line 5: schedule[0].weights names unknown domains ['coed']; known: ['web', 'code']; "
            "did you mean 'code'?",
        ),
        (GOOD + "schedule: [[5, [1, 1]], [5, [1, 1]]]\n", "line 5: schedule[1].at must be greater"),
        (GOOD + "schedule: [{weights: [1, 1]}]\n", "line 5: schedule[0].at is missing"),
        (
            GOOD + "schedule: {unit: tokens, points: [[5, [1, 1]]]}\n",
            "line 5: schedule.unit 'tokens' needs the ledger's tokens_per_sample",
        ),
        (
            GOOD + "schedule: {kind: linear, points: [[5, null]]}\n",
            "line 5: schedule.points[0] needs weights",
        ),
        (GOOD + "method: odm\n", "line 5: method must be a mapping, got 'odm' (str)"),
        (GOOD + "method: {name: 3}\n", "line 5: method.name must be a str, got 3 (int)"),
        (
            GOOD + "method: {name: odmm}\n",
            "line 5: method.name: no method is named 'odmm'; did you mean 'odm'?; known: ",
        ),
        (
            GOOD + "method: {name: odm, warmup_stps: 3}\n",
            "line 5: method.warmup_stps is not a known key (its value: 3 (int)); did you mean "
            "'warmup_steps'?; known: name, update_every, lag_steps, initial, ",
        ),
        (
            GOOD + "method:\n  name: odm\n  smoothing_factor: 3\n",
            "line 7: method.smoothing_factor must be in [0, 1], got 3",
        ),
        (
            GOOD + "method: {name: odm, initial: {web: 1}}\n",
            "line 5: method.initial must name every domain; missing: ['code']",
        ),
        (
            GOOD + "method: {name: schedule}\n",
            "line 5: method: method 'schedule' needs the option points",
        ),
        (
            GOOD + "method: {name: uniform}\n",
            "line 5: method.name 'uniform' is a static rule: it chooses the weights at the start, "
            "and so does domains[0].weight; leave one of them out",
        ),
        (
            GOOD + "schedule: [[100, [1, 1]]]\nmethod: {name: odm}\n",
            "line 5: schedule has weights for later positions, and the method 'odm' would decide",
        ),
        (
            GOOD + "method: {name: odm}\ncontrol: c.json\n",
            "line 6: control: ",
        ),
        (GOOD + "ledger: 5\n", "line 5: ledger must be the path of a file, got 5 (int)"),
        (GOOD + "guards: {max_change: -1}\n", "line 5: guards.max_change must be finite and >= 0"),
        (GOOD + "5: 6\n", "line 5: 5 is not a known key (its value: 6 (int))"),
    ],
)
def test_one_problem_is_one_line(problems, text, said):
    (line,) = problems(text)
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"domains: [\n  {name: web\n", r"mix.yaml is not YAML: line 3, column 1: "),
        (b"a: b: c\n", r"line 1, column 5: mapping values are not allowed here"),
        (b"a: 1\n---\nb: 2\n", r"line 2, column 1: but found another document"),
        (b"a: \xff\n", r"mix.yaml is not YAML: .*position 3"),
        (b"a: !!python/object:os.system x\n", r"line 1, column 4: could not determine a constr"),
        (b"a: 1\n[1]: 2\n", r"mix.yaml is not YAML: line 2, column 1: found unhashable key"),
        (b"[" * 5000, r"mix.yaml is not YAML: .*recursion"),
    ],
)
def test_no_yaml(tmp_path, text, said):
    file = tmp_path / "mix.yaml"
    file.write_bytes(text)
    with pytest.raises(mixcore.ArgumentError, match=said) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_an_alias_of_itself_ends(problems):
    assert problems("domains: &d [*d]\nbatch_size: 1\n")[0].startswith("line 1: domains[0] must be")


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(mixcore.ArgumentTypeError, match="path must be a str or a Path, got 5"):
        load_config(5)  # type: ignore[arg-type]
