"""Runs a script, or a module, without the CPU op that takes a minute to build."""

import runpy
import sys

import deepspeed.ops

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
if __name__ == "__main__":
    rank = [a for a in sys.argv[1:] if a.startswith("--local_rank")]
    words = [a for a in sys.argv[1:] if a not in rank]
    if words[0] == "-m":
        sys.argv = [words[1], *rank, *words[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [words[0], *rank, *words[1:]]
        runpy.run_path(words[0], run_name="__main__")
