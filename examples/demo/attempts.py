"""Start the trainer's ranks as one process group, follow their log, kill them, start them again.

>>> attempts = Attempts(Path("demo-out"), plan, lock)
>>> attempts.run(world=2, on_step=print, kill_step=577)  # exit codes: killed by signal 9
[-9, -9]
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from history import LogError, read
from plan import Plan

TRAINER = Path(__file__).with_name("train.py")
POLL = 0.02  # seconds; a step takes several times as long
START_LIMIT = 300.0  # seconds until the first step, on a slow disk
SHOWN = 15  # last lines of a failed rank's output


class TrainingFailed(Exception):
    """A rank ended by itself before the training was done."""


class Attempts:
    """The attempts at one run; what has been is read from the logs, nothing else is kept."""

    def __init__(self, out: Path, plan: Plan, lock: int) -> None:
        self.out, self.plan, self.lock = out, plan, lock

    def next_number(self) -> int:
        """Return the number of the next attempt, from 1."""
        names = (path.name.split("-") for path in (self.out / "log").glob("attempt-*"))
        return max((int(name[1]) for name in names), default=0) + 1

    def past_kill(self) -> bool:
        """Say whether the planned kill, or any later one, lies behind the last attempt."""
        try:
            last = read(self.out / "log").attempts[-1]
        except LogError:  # nothing was trained yet
            return False
        return last.world == 1 or last.last_step >= self.plan.kill_step

    def run(
        self,
        world: int,
        on_step: Callable[[int, float, int], None],
        kill_step: int | None = None,
    ) -> list[int]:
        """Train with `world` ranks to the end, or until `kill_step` is logged and SIGKILL falls.

        Returns the ranks' exit codes; raises `TrainingFailed` if a rank ends otherwise.
        """
        number = self.next_number()
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(world):
                ranks.append(self.start(number, rank, world, ranks[0].pid if ranks else 0))
            log = self.out / "log" / f"attempt-{number}-rank-0.jsonl"
            for step, loss in follow(log, ranks):
                on_step(step + 1, loss, world)
                if kill_step is not None and step >= kill_step:
                    os.killpg(ranks[0].pid, signal.SIGKILL)
                    return [rank.wait() for rank in ranks]
            self.check_end(number, ranks)
            return [0] * world
        finally:
            end(ranks)

    def start(self, number: int, rank: int, world: int, group: int) -> "subprocess.Popen[bytes]":
        """Start one rank; the first one (`group` 0) leads a process group, the others join it."""
        (self.out / "output").mkdir(exist_ok=True)
        command = [sys.executable, str(TRAINER), "--out", str(self.out)]
        command += [f"--attempt={number}", f"--rank={rank}", f"--world={world}"]
        command += [f"--parent={os.getpid()}"]
        # Threads that wait spinning take minutes for a step where other work needs the cores.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        with open(self.output(number, rank), "wb") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=group,
                env=environment,
                pass_fds=(self.lock,),
            )

    def output(self, number: int, rank: int) -> Path:
        """Return the file of what a rank prints."""
        return self.out / "output" / f"attempt-{number}-rank-{rank}.txt"

    def check_end(self, number: int, ranks: list["subprocess.Popen[bytes]"]) -> None:
        """Raise `TrainingFailed` with the last lines of a rank that has not ended well."""
        deadline = time.monotonic() + 10  # a rank whose neighbour died ends soon after it
        for rank in ranks:
            try:
                rank.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue  # the one that failed is among the others; `end` kills this one
        for index, rank in enumerate(ranks):
            if rank.returncode:
                path = self.output(number, index)
                lines = path.read_text(errors="replace").splitlines()[-SHOWN:]
                raise TrainingFailed(
                    f"rank {index} of attempt {number} ended with exit code {rank.returncode}."
                    f" The end of {path}:\n" + "\n".join("    " + line for line in lines)
                )
        if any(rank.returncode is None for rank in ranks):
            raise TrainingFailed(f"attempt {number}: a rank is done and another is not")


def follow(log: Path, ranks: list["subprocess.Popen[bytes]"]) -> Iterator[tuple[int, float]]:
    """Yield (step, mean loss) of a growing log until one of the ranks has ended."""
    began, rest, offset = time.monotonic(), b"", 0
    while True:
        over = any(rank.poll() is not None for rank in ranks)  # before the last look at the log
        if log.exists():
            with log.open("rb") as file:
                file.seek(offset)
                new = file.read()
            offset += len(new)
            *lines, rest = (rest + new).split(b"\n")
            for line in lines:
                yield from losses(json.loads(line))
        if over:
            return
        if not offset and time.monotonic() - began > START_LIMIT:
            raise TrainingFailed(f"no step logged in {START_LIMIT:.0f} s")
        time.sleep(POLL)


def losses(line: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """Yield (step, mean loss per token) of a line if it is a step's."""
    if line["kind"] == "step":
        yield line["step"], sum(line["loss_sum"]) / max(1, sum(line["tokens"]))


def end(ranks: list["subprocess.Popen[bytes]"]) -> None:
    """Kill what is left of an attempt, the loaders' workers too."""
    if any(rank.poll() is None for rank in ranks):
        os.killpg(ranks[0].pid, signal.SIGKILL)
    for rank in ranks:
        rank.wait()
