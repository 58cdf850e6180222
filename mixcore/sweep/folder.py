"""A sweep on disk: what is to be run, and what has been.

    sweep.json            format, domains, mixtures, command; written once
    runs/<run>/mix.yaml   what the run is given
    runs/<run>/result.json   what the command wrote; the run is done when it is there and valid
    runs/<run>/log.txt    its output

A command writes its result to the path in $MIXCORE_RESULT, which is not `result.json` itself: it
takes that place by a rename, after the command has ended with 0. So a run counts whole or not at
all, whenever anything is killed.
"""

import json
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixcore._files import flush_to_disk, new_file_beside
from mixcore.config import Config
from mixcore.errors import ArgumentError, DataError

FORMAT = "mixcore.sweep/1"
NUMBERS = ("tokens", "params", "seed", "batch_size")
FIELDS = ("{mix}", "{result}", "{run}", "{dir}", "{seed}")


@dataclass(frozen=True, eq=False)
class Sweep:
    """A planned sweep; `Sweep.load` reads one, `plan_sweep` makes one.

    Attributes:
        folder: Where it lies.
        command: Template, with {mix}, {result}, {run}, {dir}, {seed}.
        domains: Names, D of them.
        runs: Ids, R of them.
        weights: float64[R, D].
        seeds: One a run.
    """

    folder: Path
    command: str
    domains: tuple[str, ...]
    runs: tuple[str, ...]
    weights: npt.NDArray[np.float64]
    seeds: tuple[int, ...]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Sweep":
        """Read a sweep.

        Raises:
            DataError: There is none, or its file is damaged.
        """
        path = Path(folder) / "sweep.json"
        try:
            facts = json.loads(path.read_text())
            if facts["format"] != FORMAT:
                raise DataError(f"{path}: format must be {FORMAT!r}, got {facts['format']!r}")
            return cls(
                Path(folder),
                facts["command"],
                tuple(facts["domains"]),
                tuple(facts["runs"]),
                np.array(facts["weights"], np.float64).reshape(len(facts["runs"]), -1),
                tuple(facts["seeds"]),
            )
        except FileNotFoundError:
            raise DataError(f"{path}: no sweep there; make one with mixcore sweep plan") from None
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"{path}: damaged: {e!r}") from None

    def path(self, run: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / run

    def result(self, run: str) -> dict[str, Any] | None:
        """What a run's result says; None if it has none.

        Raises:
            DataError: It has one that is none.
        """
        path = self.path(run) / "result.json"
        try:
            return check_result(path, path.read_text())
        except FileNotFoundError:
            return None

    def missing(self) -> list[str]:
        """Runs without a result, in order."""
        return [r for r in self.runs if not (self.path(r) / "result.json").exists()]

    def shell(self, run: str, result: Path) -> str:
        """The command line of a run, every value quoted for a shell."""
        index = self.runs.index(run)
        folder = self.path(run).resolve()
        values = (folder / "mix.yaml", result, run, folder, self.seeds[index])
        command = self.command
        for name, value in zip(FIELDS, values, strict=True):
            command = command.replace(name, shlex.quote(str(value)))
        return command


def plan_sweep(
    folder: str | os.PathLike[str],
    config: Config,
    weights: npt.NDArray[np.float64],
    command: str,
    *,
    seeds: Sequence[int] = (),
) -> Sweep:
    """Write a sweep: one folder and one `mix.yaml` a run, `sweep.json` last.

    Example:
        >>> config = load_config("mix.yaml")
        >>> rows = draw("dirichlet", config.weights, 64)
        >>> sweep = plan_sweep("sweep", config, rows, "python train.py {mix} --out {result}")

    Args:
        folder: New or empty, or one that a killed plan has left without its sweep.json.
        config: Domains, batch size and all else of the runs, but for weights, schedule and method.
        weights: float64[R, D], one row a run; of the groups where the configuration has some.
        command: Template of the shell command of a run.
        seeds: Seeds of the data order; each row is run with each. None given: the configuration's.

    Raises:
        ArgumentError: A bad argument; nothing has been written.
    """
    target = Path(folder)
    if (target / "sweep.json").exists():
        raise ArgumentError(f"folder has a sweep already: {target}; run it, or take another")
    if target.exists() and {p.name for p in target.iterdir()} - {"runs"}:
        raise ArgumentError(f"folder must be new or empty, got {str(target)!r}")
    if not any(f in command for f in ("{mix}", "{dir}")):
        raise ArgumentError(f"command must have {{mix}} or {{dir}} in it, got {command!r}")
    tops = config.domains if config.groups is None else config.groups.domains
    if weights.ndim != 2 or weights.shape[1] != len(tops) or not len(weights):
        raise ArgumentError(
            f"weights must have one column a domain ({len(tops)}), got shape {weights.shape}"
        )
    all_seeds = tuple(seeds) or (config.seed,)
    rows = [(w, s) for w in weights for s in all_seeds]
    digits = len(str(len(rows) - 1))
    runs = tuple(f"{i:0{digits}d}" for i in range(len(rows)))
    head = _head(config, target)
    for run, (row, seed) in zip(runs, rows, strict=True):
        place = target / "runs" / run
        place.mkdir(parents=True, exist_ok=True)
        leaves = row if config.groups is None else config.groups.expand(row)
        (place / "mix.yaml").write_text(f"seed: {seed}\n" + _mix(head, leaves))
    sweep = Sweep(
        target,
        command,
        tuple(d.name for d in tops),
        runs,
        np.array([row for row, _ in rows]),
        tuple(seed for _, seed in rows),
    )
    facts = {
        "format": FORMAT,
        "command": command,
        "domains": list(sweep.domains),
        "runs": list(runs),
        "seeds": list(sweep.seeds),
        "weights": sweep.weights.tolist(),
    }
    write_whole(target / "sweep.json", json.dumps(facts))
    return sweep


def _head(config: Config, target: Path) -> tuple[list[str], list[str]]:
    """The lines that all runs share: before the domains, and each domain up to its weight."""
    lines = [f"order: {config.order}", f"on_cap: {config.on_cap}"]
    for key in ("batch_size", "train_samples", "tokens_per_sample"):
        if getattr(config, key) is not None:
            lines.append(f"{key}: {getattr(config, key)}")
    domains = []
    for d, path in zip(config.domains, config.paths, strict=True):
        entry = f"  - {{name: {json.dumps(d.name)}"
        if path is not None:
            entry += f", path: {json.dumps(os.path.abspath(path))}"
        else:
            entry += f", size: {'null' if d.size is None else d.size}"
        if d.max_epochs is not None:
            entry += f", max_epochs: {d.max_epochs!r}"
        domains.append(entry)
    return [*lines, "domains:"], domains


def _mix(head: tuple[list[str], list[str]], leaves: npt.NDArray[np.float64]) -> str:
    rows = [f"{d}, weight: {w!r}}}" for d, w in zip(head[1], leaves.tolist(), strict=True)]
    return "\n".join([*head[0], *rows]) + "\n"


def check_result(path: Path, text: str) -> dict[str, Any]:
    """A result: `{"loss": {name: number}, "metric": {...}, "tokens": ..., "params": ...}`.

    Raises:
        DataError: It is something else, or a loss is no finite number.
    """
    try:
        facts = json.loads(text)
    except ValueError as e:
        raise DataError(f"{path}: not JSON: {e}") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("loss"), dict) or not facts["loss"]:
        raise DataError(
            f'{path}: must be {{"loss": {{name: number, ...}}, ...}}, got {text[:80]!r}'
        )
    unknown = facts.keys() - {"loss", "metric", *NUMBERS}
    if unknown:
        raise DataError(f"{path}: unknown keys {sorted(unknown)}")
    numbers = {f"loss.{k}": v for k, v in facts["loss"].items()}
    metric = facts.get("metric", {})
    if not isinstance(metric, dict):
        raise DataError(f"{path}: metric must be a mapping, got {metric!r}")
    numbers |= {f"metric.{k}": v for k, v in metric.items()}
    numbers |= {k: facts[k] for k in NUMBERS if k in facts}
    for key, value in numbers.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise DataError(f"{path}: {key} must be a finite number, got {value!r}")
    return facts


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    with new_file_beside(path) as f:
        f.write(text.encode())
        flush_to_disk(f)
        os.replace(f.name, path)
