"""Runs of a sweep: one, several in parallel on this machine, or through a scheduler."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from mixcore._checks import integer
from mixcore.errors import DataError, MixcoreError
from mixcore.sweep.folder import Sweep, check_result, write_whole

Progress = Callable[[int, int], None]  # done, of


class RunError(MixcoreError, RuntimeError):
    """A run of a sweep has failed; the message says which, how, and where its log is."""


class Stop:
    """Ends the runs in flight, from another thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = False
        self.running: set[subprocess.Popen[bytes]] = set()

    def all(self) -> None:
        """No run starts any more, those that run are ended with what they have started."""
        with self.lock:
            self.asked = True
            for process in self.running:
                _kill(process)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has the run to itself; the lock dies with the process."""
    with open(folder / "lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run_one(sweep: Sweep, run: str, stop: Stop | None = None) -> bool:
    """Do one run, unless it is done or another process is at it.

    Returns:
        Whether it is done now.

    Raises:
        RunError: The command failed, or left no result, or one that is none.
    """
    if run not in sweep.runs:
        raise DataError(f"{sweep.folder}: the sweep has no run {run!r}")
    folder = sweep.path(run)
    final, part = folder / "result.json", (folder / "result.part").resolve()
    with _claimed(folder) as mine:
        if final.exists():
            return True
        if not mine:
            return False
        part.unlink(missing_ok=True)  # of a run that was killed
        command = sweep.shell(run, part)
        environment = {**os.environ, "MIXCORE_RESULT": str(part), "MIXCORE_RUN": run}
        with open(folder / "log.txt", "wb") as log:
            code = _execute(command, log.fileno(), environment, stop)
        if stop is not None and stop.asked:
            return False
        where = f"run {run}: {{}}; its output is in {folder / 'log.txt'}"
        if code != 0:
            raise RunError(where.format(f"the command ended with {code}"))
        try:
            text = part.read_text()
            check_result(part, text)
        except (FileNotFoundError, UnicodeDecodeError, DataError) as e:
            raise RunError(where.format(f"no result: {e}")) from None
        write_whole(final, text)
        part.unlink()
        return True


def _execute(command: str, log: int, environment: dict[str, str], stop: Stop | None) -> int:
    options = {"stdout": log, "stderr": subprocess.STDOUT, "env": environment}
    # A group of its own, so that what the command starts can be ended with it; and where this
    # process is killed, the kernel ends the command (a run that goes on would be run twice).
    with (stop or Stop()).lock:
        if stop is not None and stop.asked:
            return -signal.SIGTERM
        arguments = [sys.executable, "-m", "mixcore.sweep.child", str(os.getpid()), command]
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, start_new_session=True, **options
        )  # type: ignore[call-overload]
        if stop is not None:
            stop.running.add(process)
    try:
        return int(process.wait())
    except BaseException:
        _kill(process)
        raise
    finally:
        if stop is not None:
            with stop.lock:
                stop.running.discard(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run_local(
    sweep: Sweep,
    *,
    jobs: int = 1,
    only: Sequence[str] | None = None,
    keep_going: bool = True,
    progress: Progress = lambda done, of: None,
) -> list[str]:
    """Do what is missing, `jobs` runs at a time.

    Example:
        >>> run_local(Sweep.load("sweep"), jobs=2)
        []

    Args:
        sweep: The sweep.
        jobs: Runs in parallel.
        only: Runs to do; None: all that are missing.
        keep_going: After a failed run go on with the others.
        progress: Called with the number of runs done and their total.

    Returns:
        What failed, a line each. Runs that another process is at are left to it.
    """
    integer("jobs", jobs, 1, 10_000)
    todo = list(sweep.missing() if only is None else only)
    total = len(sweep.runs) if only is None else len(todo)
    done, failed, stop = total - len(todo), [], Stop()
    progress(done, total)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            waiting = {pool.submit(run_one, sweep, run, stop) for run in todo}
            while waiting:
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    try:
                        done += future.result()
                    except RunError as e:
                        failed.append(str(e))
                        if not keep_going:
                            stop.all()
                    progress(done, total)
        except BaseException:  # an interrupt, too: end what runs, then say so
            stop.all()
            raise
    return failed


def slurm_script(sweep: Sweep, *, jobs: int = 0, options: Sequence[str] = ()) -> str:
    """An array script for SLURM: one task a run; tasks that are done end at once.

    Args:
        sweep: The sweep; its folder must be seen from the nodes.
        jobs: Tasks at a time; 0: as many as SLURM likes.
        options: Further lines for sbatch, as `--time=2:00:00`.
    """
    limit = f"%{jobs}" if jobs else ""
    folder = shlex.quote(str(sweep.folder.resolve()))
    last = len(sweep.runs) - 1
    lines = [
        "#!/bin/bash",
        f"#SBATCH --array=0-{last}{limit}",
        "#SBATCH --job-name=mixcore-sweep",
        *(f"#SBATCH {option}" for option in options),
        f"# sbatch this once more to do what is missing. Where SLURM's MaxArraySize is {last + 1} "
        "or less,",
        "# give --array in parts and an offset in MIXCORE_OFFSET.",
        "index=$((SLURM_ARRAY_TASK_ID + ${MIXCORE_OFFSET:-0}))",
        f"exec {shlex.quote(sys.executable)} -m mixcore.cli sweep run {folder} --index $index",
    ]
    return "\n".join(lines) + "\n"


def run_ray(sweep: Sweep, *, cpus: float = 1, gpus: float = 0) -> list[str]:
    """Do what is missing as tasks of a Ray cluster (public API: init, remote, get).

    Args:
        sweep: The sweep; its folder must be seen from all nodes under the same path.
        cpus: Of each run.
        gpus: Of each run.

    Returns:
        What failed, a line each.

    Raises:
        MixcoreError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as e:
        raise MixcoreError(f"--ray needs Ray ({e}): pip install 'mixcore[ray]'") from None
    if not ray.is_initialized():
        ray.init()
    folder = str(sweep.folder.resolve())
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_ray_task)
    answers = ray.get([task.remote(folder, run) for run in sweep.missing()])
    return [answer for answer in answers if answer]


def _ray_task(folder: str, run: str) -> str:
    try:
        run_one(Sweep.load(folder), run)
    except MixcoreError as e:
        return str(e)
    return ""
