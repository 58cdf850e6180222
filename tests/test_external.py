"""External: requests by a person or a program, applied once, refused once."""

import json
import warnings

import pytest

import mixcore

DOMAINS = [mixcore.Domain("a", 900), mixcore.Domain("b", 90), mixcore.Domain("c", 10)]


def make(**options):
    return mixcore.method("external", domains=DOMAINS, **options)


def ask(weights, author="ana", reason="more b"):
    return {"weights": dict(zip("abc", weights, strict=True)), "author": author, "reason": reason}


def test_external_file(tmp_path):
    path = tmp_path / "ask.json"
    method = make(path=path, initial=[3, 1, 1])
    now = mixcore.Signals(step=1)
    assert method.update(now).tolist() == [0.6, 0.2, 0.2]
    assert method.silent
    path.write_text(json.dumps(ask([1, 2, 1])))
    assert method.update(now).tolist() == [0.25, 0.5, 0.25]
    assert not method.silent
    assert method.why() == ("ana", "more b")
    path.write_text(json.dumps(ask([1, 2, 1])))  # written again, the same
    method.update(now)
    assert method.silent
    again = make(path=path)  # a resume does not apply it twice
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert again.update(now).tolist() == [0.25, 0.5, 0.25]
    assert again.silent
    path.unlink()
    method.update(now)
    assert method.silent
    path.write_text(json.dumps(ask([1, 2, 1], reason="again")))
    method.update(now)
    assert not method.silent


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (json.dumps(ask([1, 2, 1]))[:-5], "delimiter|Unterminated|Expecting"),
        ("", "Expecting value"),
        ("[1]", "must have the keys weights, author, reason"),
        (json.dumps(ask([1, 2, 1]) | {"when": 3}), "must have the keys"),
        (json.dumps(ask([1, 2, 1], author=" ")), "author must be a text, not empty"),
        (json.dumps(ask([1, 2, 1], reason=None)), "reason must be a text"),
        (json.dumps(ask([1, 2, -1])), r"weights\['c'\] must be finite and >= 0"),
        (json.dumps(ask([1, 2, float("nan")])), "must be finite"),
        (json.dumps(ask([1, 2, 3]) | {"weights": {"a": 1, "z": 2}}), "unknown domains"),
        (json.dumps(ask([1, 2, 3]) | {"weights": [1, 2, 3]}), "weights must be given by name"),
        ("[" * 100_000, "recursion"),
        (b"\xc3\x28\x28\x28", "decode"),
    ],
)
def test_external_reports_what_is_no_request_once(tmp_path, content, problem):
    path = tmp_path / "ask.json"
    method = make(path=path)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    now = mixcore.Signals(step=1)
    with pytest.warns(UserWarning, match=problem):
        method.update(now)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert method.update(now) == pytest.approx([1 / 3] * 3)
        assert method.silent
        path.write_text(json.dumps(ask([1, 2, 1])))
        method.update(now)
        assert not method.silent


def test_external_callable():
    answers = [None, ask([1, 0, 0]), ask([1, 0, 0]), {"weights": object()}, ask([0, 1, 0]), None]
    method = make(poll=iter(answers).__next__)
    now, silent = mixcore.Signals(step=1), []
    for _ in answers:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method.update(now)
        silent.append((method.silent, len(caught)))
    assert silent == [(True, 0), (False, 0), (True, 0), (True, 1), (False, 0), (True, 0)]


def test_external_unreadable(tmp_path):
    method = make(path=tmp_path)  # a folder
    with pytest.warns(UserWarning, match="Is a directory.*ignored until it changes"):
        method.update(mixcore.Signals(step=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.update(mixcore.Signals(step=2))


def test_bad_external():
    for options in ({}, {"path": "x", "poll": print}):
        with pytest.raises(ValueError, match="give path or poll"):
            make(**options)
    with pytest.raises(TypeError, match="path must be a str or a Path, got 3"):
        make(path=3)
    with pytest.raises(TypeError, match="poll must be callable"):
        make(poll=3)
