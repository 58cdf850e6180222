"""Sweeps: many mixtures drawn, one proxy run each, the outcomes in one `runs.csv`."""

from mixcore.sweep.collect import collect
from mixcore.sweep.draws import DRAWS, draw
from mixcore.sweep.folder import Sweep, plan_sweep
from mixcore.sweep.local import run_local

__all__ = ["DRAWS", "Sweep", "collect", "draw", "plan_sweep", "run_local"]
