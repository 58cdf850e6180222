"""Flags, a trainer's section and `mix.yaml` as one: who wins, who is asked, what is said."""

import argparse
from argparse import Namespace

import pytest

import mixcore
from mixcore.config import Guards, MethodConfig
from mixcore.trainers.settings import KnownDomain, Settings, add_arguments, load_settings

FILE = """\
domains:
  - {name: web, size: 1000, weight: 3}
  - {name: code, size: 500, weight: 1, max_epochs: 2}
batch_size: 10
order: random
method: {name: odm, update_every: 100, lag_steps: 4, smoothing_factor: 0.5}
guards: {floor: 0.01, max_change: 0.5}
"""
KNOWN = [KnownDomain("web", 1000, 0.9), KnownDomain("code", 500)]


@pytest.fixture
def load(tmp_path):
    """Settings from a command line, with FILE as --mix-config."""
    (tmp_path / "mix.yaml").write_text(FILE)

    def from_flags(line: str = "", file: bool = True, given=None, **options) -> Settings:
        words = ["--mix-config", str(tmp_path / "mix.yaml")] if file else []
        parser = add_arguments(argparse.ArgumentParser(exit_on_error=False))
        return load_settings(parser.parse_args(words + line.split()), given=given or {}, **options)

    return from_flags


@pytest.fixture
def problems(load):
    def of(*args, **options) -> list[str]:
        with pytest.raises(mixcore.ArgumentError) as caught:
            load(*args, **options)
        head, *rest = str(caught.value).split("\n  ")
        lines = rest or [head.split("mixcore settings: ", 1)[1]]
        return [line.split("mix.yaml: ")[-1] for line in lines]

    return of


# Flags -----------------------------------------------------------------------------------------


def test_the_flags_of_the_command_line():
    parser = argparse.ArgumentParser()
    assert add_arguments(parser) is parser
    args = parser.parse_args(
        [
            "--mix-config",
            "a.yaml",
            "--mix-method",
            "odm",
            "--mix-method-option",
            "x=1",
            "--mix-method-option",
            "y=[2,b]",
            "--mix-update-every",
            "5",
            "--mix-order",
            "balanced",
            "--mix-ledger",
            "l",
            "--mix-control",
            "c",
            "--mix-lag",
            "0",
        ]
    )
    assert vars(args) == {
        "mix_config": "a.yaml",
        "mix_method": "odm",
        "mix_method_option": ["x=1", "y=[2,b]"],
        "mix_update_every": 5,
        "mix_order": "balanced",
        "mix_ledger": "l",
        "mix_control": "c",
        "mix_lag": 0,
    }
    assert "--mix-config FILE" in parser.format_help()
    with pytest.raises(mixcore.ArgumentTypeError, match="parser must be an argparse"):
        add_arguments("parser")  # type: ignore[arg-type]


# Who wins --------------------------------------------------------------------------------------


def test_the_file_alone(load):
    config = load().config
    assert (config.order, config.batch_size, config.weights) == ("random", 10, (3.0, 1.0))
    assert config.method == MethodConfig("odm", 100, 4, {"smoothing_factor": 0.5})
    assert config.file.name == "mix.yaml"


def test_the_section_wins_over_the_file_and_flags_over_both(load):
    section = {
        "order": "balanced",
        "seed": 7,
        "guards": {"floor": 0.1},
        "method": {"update_every": 20, "warmup_steps": 3, "smoothing_factor": 0.6},
    }
    settings = load(
        "--mix-update-every 30 --mix-method-option smoothing_factor=0.7 --mix-lag 2 --mix-ledger x",
        section=section,
    )
    config = settings.config
    assert (config.order, config.seed) == ("balanced", 7)
    assert config.guards == Guards(floor=0.1, max_change=0.5)
    options = {"smoothing_factor": 0.7, "warmup_steps": 3}
    assert config.method == MethodConfig("odm", 30, 2, options)
    assert settings.lag_steps == 2
    assert str(settings.ledger_path) == "x"


def test_another_method_leaves_the_options_of_the_first_behind(load):
    method = load("--mix-method ado --mix-method-option start_step=9").config.method
    assert method == MethodConfig("ado", 100, 4, {"start_step": 9})
    assert load("--mix-method odm").config.method.options == {"smoothing_factor": 0.5}


def test_null_takes_a_key_away(load):
    settings = load(section={"method": None, "order": "balanced"})
    assert settings.config.method is None
    assert settings.lag_steps is None
    assert load("--mix-control c.json", section={"method": None}).config.method.name == "external"


def test_a_section_alone(load):
    section = {"domains": [{"name": "a", "size": 5, "weight": 1}], "batch_size": 2}
    config = load(file=False, section=section).config
    assert config.domains == (mixcore.Domain("a", 5),)


def test_arguments_without_the_flags_are_fine():
    section = {"domains": [{"name": "a", "size": 5, "weight": 1}], "batch_size": 2}
    for args in (None, Namespace(), Namespace(mix_order=None)):
        assert load_settings(args, section=section, given={}).config.order == "balanced"


def test_method_options_are_yaml(load):
    method = load("--mix-method-option initial=[1,3e0]").config.method
    assert method.options["initial"] == [1, 3.0]


# What the trainer knows ------------------------------------------------------------------------


def test_facts_of_the_trainer_fill_in_and_may_be_repeated(load):
    given = {"batch_size": 10, "train_samples": 800, "tokens_per_sample": None}
    config = load(given=given).config
    assert (config.batch_size, config.train_samples, config.tokens_per_sample) == (10, 800, None)
    section = {"domains": [{"name": "a", "size": 5, "weight": 1}]}
    assert load(file=False, section=section, given={"batch_size": 3}).config.batch_size == 3


def test_facts_of_the_trainer_are_not_contradicted(problems, load):
    assert problems(given={"batch_size": 12}) == [
        "line 4: batch_size is 10, but the trainer has 12: leave it out here"
    ]
    with pytest.raises(mixcore.ArgumentError, match=r"given must have keys among .*, got \['b'\]"):
        load(given={"b": 1})


def test_domains_of_the_trainer_alone(load):
    known = [KnownDomain("web", 1000, 0.9), KnownDomain("code", None, 0.1)]
    config = load(file=False, given={"batch_size": 4}, domains=known).config
    assert config.domains == (mixcore.Domain("web", 1000), mixcore.Domain("code", None))
    assert config.weights == (0.9, 0.1)
    assert config.paths == (None, None)


def test_the_file_adds_to_domains_of_the_trainer(load):
    known = [KnownDomain("math", 70, 0.2), *KNOWN]
    config = load(domains=known).config
    assert config.domains == (
        mixcore.Domain("math", 70),
        mixcore.Domain("web", 1000),
        mixcore.Domain("code", 500, 2),
    )
    assert config.weights == (0.2, 3.0, 1.0)


def test_a_static_method_wins_over_weights_of_the_trainer(load):
    section = {"domains": [{"name": "code", "max_epochs": 3}], "method": {"name": "uniform"}}
    options = {"file": False, "given": {"batch_size": 4}, "domains": KNOWN}
    assert load(section=section, **options).config.weights == (0.5, 0.5)


def test_domains_that_contradict_the_trainer(problems):
    known = [KnownDomain("web", 999), KnownDomain("coed", 500, 1)]
    assert problems(domains=known)[:2] == [
        "line 2: domains[0].size gives domain 'web' 1000 samples an epoch, the trainer has 999",
        "line 3: domains[1].name is 'code', a domain that the trainer does not have; did you mean "
        "'coed'?; it has: web, coed",
    ]


def test_a_weight_that_nobody_gives(problems):
    (line,) = problems(file=False, given={"batch_size": 4}, domains=KNOWN)
    assert line.startswith("domains['code'].weight is missing: give every domain a weight")


def test_known_domains_are_unique(load):
    with pytest.raises(mixcore.ArgumentError, match=r"unique names, got \['a', 'a'\]"):
        load(file=False, domains=[KnownDomain("a", 1), KnownDomain("a", 2)])


# What is said ----------------------------------------------------------------------------------


def test_every_problem_says_where_it_was_given(problems):
    lines = problems(
        "--mix-update-every 0 --mix-method-option smooting_factor=1 --mix-method-option a "
        "--mix-method-option update_every=3",
        section={"oder": 1, "method": {"lag_steps": -1}, "guards": {"floor": 0.9}},
        section_name="data_mixing of ds.json",
        given={"batch_size": 12},
    )
    expected = [
        "line 4: batch_size is 10, but the trainer has 12",
        "data_mixing of ds.json: guards.floor must be at most 1 / 2 (the domains), got 0.9",
        "data_mixing of ds.json: method.lag_steps must be in [0, 2147483647], got -1",
        "data_mixing of ds.json: oder is not a known key (its value: 1 (int)); did you mean",
        "--mix-method-option: must be key=value, got 'a'",
        "--mix-method-option: update_every is no option: use --mix-update-every",
        "--mix-update-every: method.update_every must be in [1, 2147483647], got 0",
        "--mix-method-option: method.smooting_factor is not a known key (its value: 1 (int)); did "
        "you mean 'smoothing_factor'?; known: ",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--mix-method nobody", "--mix-method: method.name: no method is named 'nobody'"),
        ("--mix-order balancd", "--mix-order: order must be one of "),
        ("--mix-control c", "--mix-control: control: c and method.name 'odm' would both choose"),
        ("--mix-method-option initial=[", "--mix-method-option: initial=[ is not YAML: "),
        (
            "--mix-method-option initial=1 --mix-method-option initial=2",
            "--mix-method-option: method.initial is given twice, got 'initial=2'",
        ),
    ],
)
def test_wrong_flags(problems, line, said):
    assert problems(line)[0].startswith(said)


def test_nothing_to_go_by(load, problems):
    with pytest.raises(mixcore.ArgumentError, match="domains are not known: give --mix-config"):
        load(file=False)
    one = {"file": False, "given": {"batch_size": 1}, "domains": [KnownDomain("a", 5, 1)]}
    (line,) = problems("--mix-update-every 5", **one)
    assert line == "--mix-update-every: method.name is missing"
    assert "the section must be a mapping, got [3] (list)" in problems(section=[3])
    with pytest.raises(FileNotFoundError):
        load_settings(Namespace(mix_config="/nowhere/mix.yaml"), given={})
