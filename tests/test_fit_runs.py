"""`runs.csv`: what is read, what is written, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.fit.runs import Runs, read_runs, write_runs

GOOD = """run,mix/web,mix/code,loss/web,metric/qa,tokens,params,seed,batch_size,info/host
a,0.75,0.25,3.5,0.25,1e9,1e6,0,512,n1
b,0.5,0.5,3.25,0.5,1e9,1e6,1,512,
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "runs.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_reads_what_is_there(written):
    runs = read_runs(written(GOOD))
    assert runs.names == ("a", "b")
    assert runs.domains == ("web", "code")
    assert runs.weights.tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert {c: v.tolist() for c, v in runs.outcomes.items()} == {
        "loss/web": [3.5, 3.25],
        "metric/qa": [0.25, 0.5],
    }
    assert runs.tokens.tolist() == [1e9, 1e9]
    assert runs.params.tolist() == [1e6, 1e6]
    assert runs.seed.tolist() == [0, 1]
    assert runs.batch_size.tolist() == [512, 512]
    assert len(runs) == 2


def test_reads_a_byte_order_mark_windows_lines_and_blank_lines(written):
    text = "\ufeff" + GOOD.replace("\n", "\r\n") + "\r\n\r\n"
    assert read_runs(written(text)).names == ("a", "b")


def test_optional_columns_are_optional(written):
    runs = read_runs(written("run,mix/web,loss/web\na,1,2\n"))
    assert (runs.tokens, runs.params, runs.seed, runs.batch_size) == (None,) * 4


def test_rounded_weights_are_normalised(written):
    runs = read_runs(written("run,mix/a,mix/b,loss/x\nr,0.333,0.664,2\ns,0.5,0.5,3\n"))
    assert runs.weights.sum(axis=1) == pytest.approx([1, 1], abs=1e-15)
    assert runs.weights[0] == pytest.approx([0.333 / 0.997, 0.664 / 0.997])


def test_groups_are_mixtures_and_some_takes_rows(written):
    text = "run,mix/a,mix/b,loss/x,seed\nr,.5,.5,2,0\ns,1,0,3,0\nt,.5,.5,2,1\n"
    runs = read_runs(written(text))
    first, other, again = runs.groups()
    assert first == again != other
    part = runs.some(np.array([True, False, True]))
    assert part.names == ("r", "t")
    assert part.outcome("loss/x").tolist() == [2, 2]
    assert part.seed.tolist() == [0, 1]


@given(
    rows=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.floats(-1e300, 1e300),
            st.integers(1, 2**53),
        ),
        min_size=1,
        max_size=8,
        unique=True,
    ),
    name=st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1).map(
        lambda s: f"<{s}>"
    ),
)
def test_written_runs_are_read_back(tmp_path_factory, rows, name):
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    share, loss, tokens = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    made = Runs(
        str(path),
        tuple(f"{name}{i}" for i in range(len(rows))),
        (name, "b"),
        np.column_stack([share, 1 - share]),
        {"loss/x": loss},
        tokens,
    )
    write_runs(path, made)
    read = read_runs(path)
    assert read.names == made.names
    assert read.domains == made.domains
    assert read.weights.tobytes() == made.weights.tobytes()
    assert read.outcome("loss/x").tolist() == loss.tolist()
    assert read.tokens.tolist() == tokens.tolist()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (GOOD, "", "has no header line"),
        (GOOD, "run,mix/a,loss/x\n", "has no rows"),
        ("run,", "id,", "column 'id' is not known"),
        ("info/host", "host", "column 'host' is not known"),
        ("mix/code", "mixcode", "column 'mixcode' is not known"),
        ("mix/code", "mix/web", "column 'mix/web' comes twice"),
        ("mix/code", "mix/", "column 'mix/' lacks the name"),
        ("loss/web", "loss/", "column 'loss/' lacks the name"),
        ("b,0.5,0.5", "b,0.5", "line 3 has 9 cells, but the header has 10"),
        ("b,0.5,0.5", "a,0.5,0.5", "line 3, column 'run': the run 'a' is already in line 2"),
        ("b,0.5,0.5", " ,0.5,0.5", "line 3, column 'run': the id is empty"),
        ("b,0.5,0.5", "b,0.5,0.6", "line 3 (run 'b'): the columns mix/NAME must sum to 1"),
        ("b,0.5,0.5", "b,1.5,-0.5", "line 3, column 'mix/code': the value must be in [0, inf]"),
        ("3.25", "nan", "line 3, column 'loss/web': the value must be finite, got nan"),
        ("3.25", "inf", "line 3, column 'loss/web': the value must be finite, got inf"),
        ("3.25", "", "line 3, column 'loss/web': the value is empty"),
        ("3.25", "x", "line 3, column 'loss/web': the value must be a number, got 'x'"),
        ("1e9,1e6,1,", "0,1e6,1,", "line 3, column 'tokens': the value must be in (0, inf]"),
        ("b,0.5,0.5,3.25,0.5,1e9,1e6,1", "b,.75,.25,3.5,.25,1e9,1e6,0", "is a copy of run 'a'"),
        ("b,", '"b,', "is not CSV"),
    ],
)
def test_bad_tables(written, old, new, message):
    assert old in GOOD
    path = written(GOOD.replace(old, new))
    with pytest.raises(ArgumentError) as error:
        read_runs(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_missing(written):
    for text, what in [
        ("mix/a,loss/x\n1,2\n", "no column 'run'"),
        ("run,loss/x\n1,2\n", "no column mix/NAME"),
        ("run,mix/a\n1,1\n", "no column loss/NAME or metric/NAME"),
    ]:
        with pytest.raises(ArgumentError, match=what):
            read_runs(written(text))
    with pytest.raises(ArgumentError, match="not UTF-8"):
        read_runs(written(b"\xff\xfe"))
    with pytest.raises(ArgumentTypeError, match="path must be"):
        read_runs(3)
    with pytest.raises(OSError, match="none"):
        read_runs("none.csv")


def test_an_unknown_outcome_is_named_with_the_nearest(written):
    with pytest.raises(ArgumentError, match=r"no outcome 'loss/wab'; did you mean 'loss/web'\?"):
        read_runs(written(GOOD)).outcome("loss/wab")
