"""The patch engine on stub packages: no Megatron, no torch."""

import inspect
import io
import logging
from dataclasses import replace

import pytest
from stub_packages import BLEND, BUILD, LOADER, Stubs, louder, subclass, table

import megatron_patch
from megatron_patch import PatchError, Row, engine, report
from megatron_patch.rows import arguments
from mixcore.errors import ArgumentError

ALL = table(BLEND, BUILD, LOADER)


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    found = Stubs(tmp_path / "stubs", monkeypatch)
    yield found
    found.forget()


def state(stubs):
    """What every binding holds; equal before and after if nothing was patched."""
    builder, training = stubs.load("core.builder"), stubs.load("training.training")
    samplers = stubs.load("training.samplers")
    return builder.Blend, dict(vars(builder.Builder)), training.loader, samplers.loader


def refused(stubs, rows, *parts, groups=None):
    """Apply must raise, name the parts, the path and the version, and leave all as it was."""
    before = state(stubs)
    with pytest.raises(PatchError) as e:
        engine.apply(table(*rows), groups)
    for part in [*parts, "1.2.3", str(stubs.root / "stubtron" / "core")]:
        assert part in str(e.value)
    assert state(stubs) == before
    assert engine.patches() == []


def test_replaces_what_is_looked_up(stubs):
    assert engine.apply(ALL) == ["dataset", "training"]
    names, blend = stubs.load("core.builder").Builder().build(["a", "b"])
    assert names == "patched"
    assert blend.kind() == "patched blend"
    assert blend.weights == [1.0, 1.0]
    assert stubs.load("training.training").train(7) == ["patched", ["stock", "train", 7]]


def test_keeps_signature_and_original(stubs):
    original = stubs.load("training.samplers").loader
    engine.apply(ALL)
    replacement = stubs.load("training.training").loader
    assert replacement.__wrapped__ is original
    assert list(inspect.signature(replacement).parameters) == ["dataset", "consumed", "extra"]


def test_twice_is_once(stubs):
    engine.apply(ALL)
    before, patches = state(stubs), engine.patches()
    assert engine.apply(ALL) == ["dataset", "training"]
    assert state(stubs) == before
    assert engine.patches() == patches
    assert stubs.load("training.training").train(7) == ["patched", ["stock", "train", 7]]


def test_without_apply_nothing_is_touched(stubs):
    before = state(stubs)
    assert stubs.load("training.training").train(7) == ["stock", "train", 7]
    assert "original" in report.status(ALL, io.StringIO())
    assert state(stubs) == before


def test_undo_gives_everything_back(stubs):
    late = stubs.load("late")
    before = state(stubs)
    engine.apply(ALL)
    assert state(stubs) != before
    engine.undo()
    assert state(stubs) == before
    assert late.loader is before[-1]
    assert stubs.load("core.builder").Builder.build.__qualname__ == "Builder.build"
    assert engine.patches() == []
    engine.undo()
    assert engine.apply(ALL) == ["dataset", "training"]


def test_undo_leaves_what_another_put_there_since(stubs):
    engine.apply(ALL)
    training = stubs.load("training.training")
    theirs = training.loader = louder(training.loader)
    with pytest.raises(PatchError, match=r"stubtron\.training\.training:loader"):
        engine.undo()
    assert training.loader is theirs
    assert stubs.load("core.builder").Builder().build(["a"]).kind() == "blend"
    assert "by someone else" in report.status(ALL, io.StringIO())
    with pytest.raises(PatchError, match="after it was patched"):
        engine.apply(ALL)
    training.loader = engine.patches()[0].held


@pytest.mark.parametrize("early", [True, False])
def test_import_order_does_not_matter(stubs, early):
    """`late` and a script of the user took the function by name, before or after the patch."""
    if early:
        stubs.load("late")
    stubs.write({"stubtron/script.py": "from stubtron.training.training import loader as mine"})
    if early:
        stubs.load("script")
    row = replace(LOADER, symbol="stubtron.training.samplers:loader")
    engine.apply(table(row))
    for module, name in (
        ("late", "loader"),
        ("training.training", "loader"),
        ("training.samplers", "loader"),
        ("script", "mine"),
    ):
        assert getattr(stubs.load(module), name)("d", 1) == ["patched", ["stock", "d", 1]]
    engine.undo()
    for module, name in (("late", "loader"), ("script", "mine")):
        assert getattr(stubs.load(module), name)("d", 1) == ["stock", "d", 1]


def test_package_that_takes_the_name_while_it_is_imported(stubs):
    """`stubtron.training` itself does `from .training import train`."""
    engine.apply(
        table(Row("stubtron.training.training:train", louder, ("steps",), group="training"))
    )
    assert stubs.load("training").train(3)[0] == "patched"


def test_only_here_leaves_the_home_module_alone(stubs):
    engine.apply(table(BLEND))
    home, builder = stubs.load("core.blend"), stubs.load("core.builder")
    assert builder.Blend is not home.Blend
    assert home.Blend([], [], 0).kind() == "blend"
    assert issubclass(builder.Blend, home.Blend)


def test_only_here_declines_an_unknown_holder(stubs):
    stubs.write({"stubtron/third.py": "from stubtron.core.blend import Blend as B"})
    stubs.load("third")
    refused(stubs, [BUILD, BLEND], "stubtron.third:B")
    engine.apply(table(BUILD, replace(BLEND, may_keep=("stubtron.third",))))


def test_static_and_class_methods(stubs):
    rows = [
        Row("stubtron.core.builder:Builder.measure", louder, ("name", "length")),
        Row("stubtron.core.builder:Builder.make", louder, ("cls", "name")),
    ]
    engine.apply(table(*rows))
    builder = stubs.load("core.builder").Builder
    assert builder.measure("a", 3) == builder().measure("a", 3) == ["patched", 3]
    assert builder.make("x") == builder().make("x") == ["patched", "Builderx"]
    engine.undo()
    assert (builder.measure("a", 3), builder.make("x")) == (3, "Builderx")


def test_missing_symbol(stubs):
    for symbol, part in (
        ("stubtron.core.builder:Builder.absent", "no 'absent' in the class itself"),
        ("stubtron.core.builder:absent", "no 'absent' in the module"),
        ("stubtron.core.builder:Absent.build", "no class 'Absent'"),
        ("stubtron.core.absent:f", "No module named 'stubtron.core.absent'"),
        ("stubtron.core.builder:Builder.limit", "found int"),
        ("stubtron.core.builder:Builder.__repr__", "no '__repr__' in the class itself"),
    ):
        refused(stubs, [BLEND, BUILD, Row(symbol, louder)], symbol, part)


def test_module_that_cannot_be_imported(stubs):
    stubs.write({"stubtron/broken.py": "raise RuntimeError('no GPU')"})
    refused(stubs, [BUILD, Row("stubtron.broken:f", louder)], "stubtron.broken", "no GPU")


@pytest.mark.parametrize("expected", [("dataset", "weights"), ("consumed", "dataset")])
def test_changed_signature(stubs, expected):
    row = replace(LOADER, parameters=expected)
    refused(
        stubs, [BLEND, BUILD, row], row.symbol, ", ".join(expected), "(dataset, consumed, extra"
    )


def test_further_parameters_are_no_change(stubs):
    stubs.write({
        "stubtron/training/samplers.py": """
            def loader(new, dataset, other, consumed, extra=None, **more):
                return [new, dataset, consumed]
        """
    })  # fmt: skip
    engine.apply(table(LOADER))
    loader = stubs.load("training.training").loader
    assert loader(0, 1, 2, 3) == ["patched", [0, 1, 3]]
    named = arguments(loader, (0, 1), {"consumed": 5, "other": 2})
    assert named == {"new": 0, "dataset": 1, "other": 2, "consumed": 5, "extra": None, "more": {}}


@pytest.mark.parametrize("answer", ["raises", "same", "none"])
def test_half_failure_undoes_the_first_half(stubs, answer):
    def wrapper(original):
        if answer == "raises":
            raise KeyError("what?")
        return original if answer == "same" else None

    refused(stubs, [BLEND, BUILD, replace(LOADER, wrapper=wrapper)], LOADER.symbol)


def test_failure_leaves_an_earlier_patch_in_place(stubs):
    engine.apply(table(BUILD))
    with pytest.raises(PatchError):
        engine.apply(table(BUILD, BLEND, replace(LOADER, parameters=("absent",))))
    assert [p.place.row for p in engine.patches()] == [BUILD]
    assert stubs.load("core.builder").Builder().build(["a"])[0] == "patched"


def test_missing_package(stubs):
    (stubs.root / "stubtron" / "training").rename(stubs.root / "elsewhere")
    assert engine.apply(ALL) == ["dataset"]
    assert [p.place.row for p in engine.patches()] == [BLEND, BUILD]
    with pytest.raises(PatchError, match=r"no package stubtron\.training"):
        engine.apply(ALL, ["dataset", "training"])
    engine.undo()
    with pytest.raises(PatchError, match=r"no package stubtron\.training"):
        engine.apply(ALL, ["training"])
    stubs.forget()
    (stubs.root / "stubtron").rename(stubs.root / "other")
    with pytest.raises(PatchError, match=r"no package stubtron\.core, stubtron\.training"):
        engine.apply(ALL)
    assert report.status(ALL, io.StringIO()).startswith("Stubtron: not installed")


def test_one_group(stubs):
    assert engine.apply(ALL, ["training"]) == ["training"]
    assert [p.place.row for p in engine.patches()] == [LOADER]
    with pytest.raises(ArgumentError, match="unknown groups \\['train'\\]"):
        engine.apply(ALL, ["train"])


def test_patched_by_another_copy(stubs):
    engine.apply(ALL)
    ours, engine._patches = engine._patches, {}  # what another copy of this package would see
    try:
        with pytest.raises(PatchError, match=f"by the copy of this package {engine.COPY}"):
            engine.apply(ALL)
    finally:
        engine._patches = ours


def test_another_row_for_the_same_symbol(stubs):
    engine.apply(table(BUILD))
    with pytest.raises(PatchError, match="another row"):
        engine.apply(table(replace(BUILD, wrapper=subclass)))


def test_status_and_log(stubs, caplog, capsys):
    stubs.load("late")
    with caplog.at_level(logging.INFO, "megatron_patch"):
        engine.apply(table(BLEND, replace(LOADER, symbol="stubtron.training.samplers:loader")))
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "patched stubtron.core.builder:Blend: a blend"
    assert lines[1].startswith("patched stubtron.training.samplers:loader (also ")
    assert "stubtron.late:loader" in lines[1]
    assert len(lines) == 2
    text = report.status(ALL)
    assert capsys.readouterr().out == text + "\n"
    first, blend, build, loader = text.splitlines()
    assert first == f"Stubtron: stubtron.core 1.2.3 ({stubs.root}/stubtron/core)"
    assert "-> stub_packages:subclass.<locals>.Replacement: a blend" in blend
    assert "[dataset] original: a method" in build
    assert "[training] original: a loader" in loader  # ALL patches another binding of it


def test_bad_rows_and_tables():
    for symbol in ("", "a", "a:", ":f", "a b:f", "a.b:f.", "a/b:f"):
        with pytest.raises(ArgumentError, match="symbol must be"):
            Row(symbol, louder)
    with pytest.raises(ArgumentError, match="only_here"):
        Row("a:f", louder, may_keep=("b",))
    with pytest.raises(ArgumentError, match="same symbol"):
        table(BUILD, BLEND, replace(BUILD, reason="again"))
    with pytest.raises(ArgumentError, match="unknown groups \\['other'\\]"):
        table(replace(BUILD, group="other"))


def test_public_api_is_the_table_for_megatron():
    text = megatron_patch.status(io.StringIO())
    assert text.startswith("Megatron-LM: ")
    megatron_patch.undo()
    assert sorted(megatron_patch.__all__) == megatron_patch.__all__
