"""The ledger file: what a crash, an editor or another run can do to it."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import make_ledger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mixcore
from mixcore.decision import seal


def grown(order="balanced", **options):
    ledger = make_ledger(3, batch_size=16, seed=5, order=order, **options)
    ledger.append(160, [1, 1, 1], reason="fläche", author="odm")
    ledger.append(320, [1, 1, 1, 3], add=[mixcore.Domain("d3", 12)])
    ledger.append(480, batch_size=24)
    return ledger


@pytest.mark.parametrize("order", ["balanced", "megatron", "random"])
def test_round_trip(tmp_path, order):
    ledger = grown(order)
    ledger.save(tmp_path / "ledger.json")
    again = mixcore.Ledger.load(tmp_path / "ledger.json", ledger.domains)
    assert again.digest == ledger.digest
    assert [d.reason for d in again.decisions] == ["start", "fläche", "", ""]
    assert again.to_bytes() == ledger.to_bytes() == (tmp_path / "ledger.json").read_bytes()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_saving_appends_and_never_rewrites(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = make_ledger(3, batch_size=16)
    ledger.save(path)
    inode, first = path.stat().st_ino, path.read_bytes()
    ledger.append(160, [1, 1, 1])
    ledger.save(path)
    ledger.save(str(path))
    assert path.stat().st_ino == inode
    assert path.read_bytes().startswith(first)
    assert path.read_bytes().count(b"\n") == 3


def test_attached_decisions_are_on_disk_before_they_are_in_force(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = make_ledger(3, batch_size=16)
    ledger.attach(path)
    ledger.append(160, [1, 1, 1])
    assert mixcore.Ledger.load(path).digest == ledger.digest
    with open(path, "ab") as f:
        f.write(b"intruder\n")
    with pytest.raises(mixcore.LedgerError, match="another process writes to it"):
        ledger.append(320, [1, 0, 0])
    assert len(ledger.decisions) == 2


def test_an_incomplete_last_line_is_put_aside(tmp_path):
    path = tmp_path / "ledger.json"
    grown().save(path)
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in (start + 20, start + 60, len(whole) - 2):
        path.write_bytes(whole[:cut])
        with pytest.warns(UserWarning, match=r"last line \(\d+ bytes\) is incomplete.*3 decisions"):
            ledger = mixcore.Ledger.load(path)
        assert path.read_bytes() == whole[:cut]  # loading touches nothing
        assert len(ledger.decisions) == 3
        ledger.append(960, [0, 0, 0, 1])
        ledger.save(path)
        assert mixcore.Ledger.load(path).digest == ledger.digest
        aside = path.with_name("ledger.json.incomplete")
        assert aside.read_bytes() == whole[start:cut] + b"\n"
        aside.unlink()


def test_a_last_line_that_lacks_only_its_newline_is_whole(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = grown()
    path.write_bytes(ledger.to_bytes()[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = mixcore.Ledger.load(path)
    assert again.digest == ledger.digest
    again.append(960, [1, 1, 1, 1])
    again.save(path)
    assert mixcore.Ledger.load(path).digest == again.digest


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_any_byte_is_refused(tmp_path, data):
    path = tmp_path / "ledger.json"
    whole = grown().to_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != whole[at]))
    damaged = whole[:at] + bytes([byte]) + whole[at + 1 :]
    path.write_bytes(damaged)
    if at == len(whole) - 1:  # the last newline: what follows it looks incomplete
        return
    with pytest.raises(mixcore.LedgerError, match=r"line \d+|no ledger"):
        mixcore.Ledger.load(path)
    assert path.read_bytes() == damaged


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_lost_doubled_or_swapped_line_is_refused(tmp_path, data):
    path = tmp_path / "ledger.json"
    lines = grown().to_bytes().splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["lost", "doubled", "swapped"]))
    i = data.draw(st.integers(0, len(lines) - 2))  # a lost last line cannot be noticed
    if kind == "lost":
        del lines[i]
    elif kind == "doubled":
        lines.insert(i, lines[i])
    else:
        lines[i], lines[i + 1] = lines[i + 1], lines[i]
    path.write_bytes(b"".join(lines))
    with pytest.raises(mixcore.LedgerError, match=r"line \d+"):
        mixcore.Ledger.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"hello\n",
        b"{}\n",
        b"[1]\n",
        b'{"hash":3}\n',
        b"\xff\xfe\n",
        b"\0" * 100,
        b"{" * 9_999,
    ],
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(mixcore.LedgerError, match=f"{path}.* is no ledger"):
        mixcore.Ledger.load(path)
    if not content:
        return  # an empty file is nobody's
    with pytest.raises(mixcore.LedgerError, match="not written"):
        make_ledger(2).save(path)
    assert path.read_bytes() == content


def test_another_version_is_refused_by_name(tmp_path):
    line, _ = seal(dict(make_ledger(2).header(), format="mixcore.ledger/2"), "")
    (tmp_path / "x").write_bytes(line)
    with pytest.raises(
        mixcore.LedgerError, match=r"has the format 'mixcore.ledger/2'; this version"
    ):
        mixcore.Ledger.load(tmp_path / "x")


def test_another_run_or_an_older_copy_does_not_overwrite(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = grown()
    ledger.save(path)
    kept = path.read_bytes()
    with pytest.raises(mixcore.LedgerError, match="holds another run, from line 1 on; not written"):
        make_ledger(3, seed=6).save(path)
    older = make_ledger(3, batch_size=16, seed=5)
    with pytest.raises(mixcore.LedgerError, match="decisions that this ledger lacks"):
        older.save(path)
    older.append(160, [1, 0, 0])
    with pytest.raises(
        mixcore.LedgerError, match="other decisions than this ledger, from line 3 on"
    ):
        older.save(path)
    assert path.read_bytes() == kept


def test_other_domains_are_refused(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = grown()
    ledger.save(path)
    domains = list(ledger.domains)
    for wrong in (
        domains[:-1],
        [*domains, mixcore.Domain("x", 1)],
        [*domains[:-1], mixcore.Domain("d3", 13)],
        [domains[1], domains[0], *domains[2:]],
        [mixcore.Domain("d0", 1_000, max_epochs=3), *domains[1:]],
    ):
        with pytest.raises(mixcore.LedgerError, match="is of other domains: it has"):
            mixcore.Ledger.load(path, wrong)
    with pytest.raises(TypeError, match="path must be a str or a Path, got 7"):
        mixcore.Ledger.load(7)
    with pytest.raises(FileNotFoundError):
        mixcore.Ledger.load(tmp_path / "nowhere")


def forge(change):
    """A file whose chain is intact, but whose content `change` has spoilt."""
    digest, out = "", b""
    for i, line in enumerate(grown().to_bytes().splitlines()):
        body = json.loads(line)
        del body["hash"]
        change(i, body)
        sealed, digest = seal(body, digest)
        out += sealed
    return out


LATE = {
    "kind": "piecewise",
    "every": 1,
    "steps": [{"position": 2**48 - 1, "batch_size": None, "shares": [1 << 62, 0, 0, 0]}],
}


@pytest.mark.parametrize(
    ("line", "key", "value", "message"),
    [
        (0, "seed", "x", "the header is wrong: seed must be an integer"),
        (0, "order", "greedy", "the header is wrong: order must be one of"),
        (1, "position", 16, "line 2: the first decision must begin the run"),
        (1, "shares", [1, 2, 3], r"line 2.*shares must be integers >= 0 that sum to 2\^62"),
        (1, "shares", [1 << 62], "line 2: it has 1 shares for 3 domains"),
        (1, "batch_size", None, "line 2: the first decision must begin the run"),
        (2, "position", 161, "line 3: position 161 is not a batch boundary"),
        (2, "position", -16, "line 3.*position must be in"),
        (2, "position", 1.5, "line 3.*position must be an integer"),
        (2, "shares", [2.0**62, 0, 0], r"line 3.*shares must be integers"),
        (2, "shares", [-1, 1, 1 << 62], r"line 3.*shares must be integers"),
        (2, "shares", 7, "line 3.*its fields are wrong"),
        (2, "weights", ["0x1p+0"], "line 3: it has 1 shares for 3 domains"),
        (2, "weights", ["0x1p-1", "0x1p-2", "0x1p-2"], "line 3: weights do not fit order"),
        (2, "reason", None, None),
        (4, "schedule", LATE, r"line 5: schedule.points\[0\].at, rounded up .* must be in"),
        (3, "position", 32, "line 4: a change at position 32 is dated before"),
        (3, "add", [{"name": "d0", "size": 5}], "line 4: domains has the name 'd0' twice"),
        (3, "add", [{"name": "d3", "size": -5}], "line 4.*size of domain 'd3' must be in"),
        (3, "add", [{"nom": "d3"}], "line 4.*its fields are wrong: TypeError"),
        (4, "batch_size", 0, "line 5.*batch_size must be in"),
        (4, "schedule", {"kind": "x", "every": 1, "steps": []}, "line 5.*unknown schedule kind"),
    ],
)
def test_a_forged_line_is_refused_with_what_is_wrong(line, key, value, message):
    data = forge(lambda i, body: body.update({key: value}) if i == line else None)
    if message is None:
        assert mixcore.Ledger.from_bytes(data).digest == grown().digest  # reasons decide nothing
        return
    with pytest.raises(mixcore.LedgerError, match=message):
        mixcore.Ledger.from_bytes(data)


def test_old_files_load_for_ever():
    """Files written by version 1, committed: what they meant then they mean now."""
    folder = Path(__file__).parent / "golden"
    for order in ("balanced", "megatron", "random"):
        ledger = mixcore.Ledger.load(folder / f"ledger_{order}.json")
        want = json.loads((folder / f"picks_{order}.json").read_text())
        assert ledger.digest == want["digest"]
        p = mixcore.Sampler(ledger).at(want["positions"])
        for name in ("domain", "draw", "epoch", "sample"):
            assert getattr(p, name).tolist() == want[name]
        assert mixcore.Sampler(ledger).counts(want["end"]).tolist() == want["counts"]
        assert np.array_equal(mixcore.Ledger.from_bytes(ledger.to_bytes()).digest, ledger.digest)
