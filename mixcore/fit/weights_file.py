"""`weights.yaml`: the answer of a fit, in the form that a `mix.yaml` has."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mixcore._files import flush_to_disk, new_file_beside
from mixcore._yaml import parse
from mixcore.errors import ArgumentError
from mixcore.fit.base import Fit
from mixcore.fit.runs import MIX
from mixcore.fit.table import Floats


def write_weights(
    path: str | os.PathLike[str],
    found: Fit,
    *,
    mix: dict[str, Any] | None = None,
    folder: Path | None = None,
    force: bool = False,
) -> None:
    """Write a mixture, with what is to be known of it as comments above.

    Example:
        >>> write_weights("weights.yaml", fit("regmix", "runs.csv", "loss/web"))

    Args:
        path: The new file; it is there whole or not at all.
        found: The fit.
        mix: A `mix.yaml` as read; the new file is that one with the new weights. None: the file has
            `domains: [{name, weight}]` alone, to be put into a `mix.yaml`.
        folder: Where that `mix.yaml` lies: its paths are made relative to the new file.
        force: Replace a file that is there.

    Raises:
        ArgumentError: The file is there already, or the `mix.yaml` does not list the domains.
    """
    target = Path(path)
    if target.exists() and not force:
        raise ArgumentError(f"{target} exists already (force replaces it)")
    weights = dict(zip(found.task.domains, found.weights.tolist(), strict=True))
    if mix is None:
        body: dict[str, Any] = {"domains": [{"name": d, "weight": w} for d, w in weights.items()]}
    else:
        entries = [_entry(e, weights, folder, target) for e in mix["domains"]]
        body = {**mix, "domains": entries}
    text = "".join(f"# {line}\n" for line in _comments(found)) + yaml.safe_dump(
        body, sort_keys=False, allow_unicode=True, width=100
    )
    with new_file_beside(target) as f:
        f.write(text.encode())
        flush_to_disk(f)
        os.replace(f.name, target)


def _entry(
    entry: dict[str, Any], weights: dict[str, float], folder: Path | None, target: Path
) -> dict[str, Any]:
    if not isinstance(entry, dict) or entry.get("name") not in weights:
        raise ArgumentError(f"the mix.yaml must list the fitted domains by name, found {entry!r}")
    made = {**entry, "weight": weights[entry["name"]]}
    if entry.get("path") is not None and folder is not None:
        made["path"] = os.path.relpath(folder / entry["path"], target.parent)
    return made


def _comments(found: Fit) -> list[str]:
    target = " ".join(f"{c:+.4g} {column}" for column, c in found.task.target.items())
    lines = [f"mixcore fit {found.method}" + (f": least of {target}" if target else "")]
    if found.options:
        lines.append("options: " + ", ".join(f"{k}={v!r}" for k, v in found.options.items()))
    for column, q in found.quality.items():
        lines.append(
            f"held out, {column}: {q.runs} runs, mean absolute error {q.mae:.4g}, rank correlation "
            f"{q.spearman:.3f} ({q.low:.3f} to {q.high:.3f})"
        )
    epochs = found.epochs
    if epochs is not None:
        most = int(np.argmax(epochs))
        lines.append(f"most epochs: {epochs[most]:.3g} of {found.task.domains[most]}")
    lines += [f"note: {note}" for note in found.notes]
    return [" ".join(line.split()) for line in lines]


def read_weights(path: str | os.PathLike[str]) -> dict[str, float]:
    """The weights in a `weights.yaml` or `mix.yaml`, by name; `Ledger` and `append` take them.

    Example:
        >>> ledger.append(51_000, weights=read_weights("weights.yaml"), reason="regmix")

    Raises:
        ArgumentError: It has no `domains` with a name and a weight each.
        OSError: It cannot be read.
    """
    value, _, twice = parse(Path(path).read_bytes(), str(path))
    if twice:
        raise ArgumentError(f"{path}: line {twice[0][0]}: {twice[0][1]}")
    entries = value.get("domains") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ArgumentError(f"{path} has no list of domains")
    found: dict[str, float] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"name", "weight"} <= set(entry):
            raise ArgumentError(
                f"{path}: domains[{i}] must have a name and a weight, got {entry!r}"
            )
        if entry["name"] in found:
            raise ArgumentError(f"{path}: domains[{i}].name is {entry['name']!r}, twice")
        found[entry["name"]] = entry["weight"]
    return found


def write_mixtures(path: str | os.PathLike[str], domains: tuple[str, ...], rows: Floats) -> None:
    """Mixtures as `run, mix/<domain>, ...`: what a sweep is to run next."""
    lines = [",".join(["run", *(MIX + d for d in domains)])]
    lines += [",".join([f"next-{i}", *map(repr, row)]) for i, row in enumerate(rows.tolist())]
    target = Path(path)
    with new_file_beside(target) as f:
        f.write(("\n".join(lines) + "\n").encode())
        flush_to_disk(f)
        os.replace(f.name, target)
