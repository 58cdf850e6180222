"""Runs one shell command and dies with the process that started it (Linux; elsewhere it lives on).

    python -m mixcore.sweep.child PARENT_PID COMMAND

A watcher in a pipe would not do: a SIGKILL of the parent must end the command at once, because a
resumed sweep begins the same run again.
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Run the command; its exit status."""
    parent, command = int(sys.argv[1]), sys.argv[2]

    def end(*_: object) -> None:
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the command, what it started, and this process

    signal.signal(signal.SIGTERM, end)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before prctl
        return 1
    return subprocess.call(["/bin/sh", "-c", command])


if __name__ == "__main__":
    sys.exit(main())
