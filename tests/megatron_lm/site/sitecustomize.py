"""Python imports this file by itself at the start of every process that has its folder on the path.

So the programs that the tests run (a script, `python -m megatron_patch script.py`, `torchrun ...`)
stay as a user writes them. The shim is for the ranks alone: torchrun's own process has no RANK.
"""

import os

if "RANK" in os.environ:
    import cpu_shim

    cpu_shim.install()
