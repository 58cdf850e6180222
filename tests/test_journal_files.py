"""What the disk, the file system and other processes can do to a ledger that is being written."""

import errno
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from conftest import make_ledger

import mixcore
from mixcore import journal
from mixcore.decision import Decision


def no_space(*_):
    raise OSError(errno.ENOSPC, "no space left on device")


@pytest.fixture
def attached(tmp_path):
    ledger = make_ledger(3, batch_size=16)
    ledger.attach(tmp_path / "ledger.json")
    ledger.append(160, [1, 1, 1])
    return ledger, tmp_path / "ledger.json"


def check_that_nothing_changed_and_it_goes_on(ledger, path, before):
    assert (ledger.to_bytes(), ledger.digest) == before
    assert path.read_bytes() == before[0]
    ledger.append(320, [1, 2, 1])
    assert mixcore.Ledger.load(path).digest == ledger.digest


def test_a_failed_fsync_leaves_ledger_and_file_as_they_were(attached, monkeypatch):
    ledger, path = attached
    before = ledger.to_bytes(), ledger.digest
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="no space left"):
            ledger.append(320, [1, 0, 0])
        with pytest.raises(OSError, match="no space left"):
            ledger.append(320, [0, 0, 1])
    check_that_nothing_changed_and_it_goes_on(ledger, path, before)


@pytest.mark.parametrize("save", [False, True])
def test_a_full_disk_leaves_ledger_and_file_as_they_were(attached, monkeypatch, save):
    """The first write takes 10 bytes, the next none."""
    ledger, path = attached
    before = ledger.to_bytes(), ledger.digest

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 10

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if not self.left:
                no_space()
            self.left = 0
            return self.file.write(data[:10])

    def full(file, mode, **options):
        opened = open(file, mode, **options)  # noqa: SIM115
        return Full(opened) if mode == "r+b" else opened

    if save:
        ledger._journal = None
        ledger.append(320, [1, 2, 1])
    with monkeypatch.context() as m:
        m.setattr(journal, "open", full, raising=False)
        with pytest.raises(OSError, match="no space left"):
            ledger.save(path) if save else ledger.append(320, [1, 0, 0])
    if save:
        assert path.read_bytes() == before[0]
        ledger.save(path)
        assert path.read_bytes() == ledger.to_bytes()
    else:
        check_that_nothing_changed_and_it_goes_on(ledger, path, before)


def save_at_once(path, barrier, failures, seed):
    ledger = make_ledger(3, order="random", seed=seed)
    mixcore.Sampler(ledger).counts(200_000)
    for i in range(10):
        barrier.wait()
        try:
            ledger.save(path / f"{i}.json")
        except mixcore.LedgerError:
            failures.put(seed)


@pytest.mark.parametrize("seeds", [(1, 1, 1), (1, 2, 2)])
def test_several_processes_save_one_new_file(tmp_path, seeds):
    context = multiprocessing.get_context("fork")
    barrier, failures = context.Barrier(len(seeds)), context.Queue()
    processes = [
        context.Process(target=save_at_once, args=(tmp_path, barrier, failures, seed))
        for seed in seeds
    ]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
        assert p.exitcode == 0
    names = sorted(p.name for p in tmp_path.iterdir() if "checkpoints" not in p.name)
    assert names == [f"{i}.json" for i in range(10)]
    assert not list(tmp_path.glob("*.tmp"))
    for name in names:
        assert mixcore.Ledger.load(tmp_path / name).seed in seeds
    assert failures.empty() == (len(set(seeds)) == 1)  # another run's file is refused by name


@pytest.mark.parametrize("fast", [False, True])
def test_a_file_system_without_links(tmp_path, monkeypatch, fast):
    """The file is created in place; where another process was faster, it is compared."""
    path = tmp_path / "ledger.json"
    ledger = make_ledger(3)

    def link(*_):
        if fast:
            path.write_bytes(ledger.to_bytes())
        raise OSError(errno.EPERM, "operation not permitted")

    monkeypatch.setattr(os, "link", link)
    ledger.save(path)
    assert path.read_bytes() == ledger.to_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]


def test_another_file_that_appears_while_saving_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"

    def link(*_):
        path.write_bytes(b"mine\n")
        raise FileExistsError

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(mixcore.LedgerError, match="not written"):
        make_ledger(3).save(path)
    assert path.read_bytes() == b"mine\n"
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]


def test_the_mode_of_a_new_file_follows_the_umask(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    make_ledger(3).save(tmp_path / "ledger.json")
    modes = {stat.S_IMODE(Path(p).stat().st_mode) for p in tmp_path.iterdir()}
    assert len(modes) == 1


def test_saving_again_renders_only_what_is_new(tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    ledger = make_ledger(3, batch_size=16)
    for i in range(20):
        ledger.append(16 * i, [1, 1, i])
    ledger.save(path)
    rendered, to_line = [], Decision.to_line

    def counted(self, previous):
        rendered.append(self.position)
        return to_line(self, previous)

    monkeypatch.setattr(Decision, "to_line", counted)
    ledger.save(path)
    ledger.save(str(path))
    assert rendered == []
    ledger.append(320, [1, 0, 0])
    ledger.save(path)
    assert rendered == [320]
    ledger.attach(path)
    ledger.append(336, [0, 0, 1])
    ledger.save(path)
    assert rendered == [320, 336]
    ledger.save(tmp_path / "other.json")  # another file gets everything
    assert len(rendered) == 2 + ledger.num_decisions
    want = ledger.to_bytes()
    assert path.read_bytes() == (tmp_path / "other.json").read_bytes() == want


@pytest.mark.parametrize("change", ["removed", "longer", "changed", "cut"])
def test_saving_again_notices_what_happened_to_the_file(tmp_path, change):
    path = tmp_path / "ledger.json"
    ledger = make_ledger(3, batch_size=16)
    ledger.append(16, [1, 1, 0])
    ledger.save(path)
    whole = path.read_bytes()
    if change == "removed":
        path.unlink()
    elif change == "cut":
        path.write_bytes(whole[:-20])
    elif change == "longer":
        path.write_bytes(whole + b"x\n")
    else:
        path.write_bytes(whole[:-5] + b"0" + whole[-4:])
        assert path.read_bytes() != whole
    if change in ("longer", "changed"):
        with pytest.raises(mixcore.LedgerError, match="not written"):
            ledger.save(path)
        return
    ledger.save(path)
    assert path.read_bytes() == whole
