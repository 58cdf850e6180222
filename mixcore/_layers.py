"""Layers of a configuration: a file, a section of another file, flags; the later one wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixcore._problems import Place, Problems, shown
from mixcore._yaml import parse

MERGED = ("method", "guards")  # taken key by key; any other key is taken whole
KEPT = ("update_every", "lag_steps")  # of the run: they survive another method


@dataclass(frozen=True)
class Layer:
    """One source of a configuration.

    Attributes:
        name: What it is called in messages.
        body: What it says: a mapping, if nothing is wrong.
        places: Where each key is given.
        twice: Problems found while it was read.
        folder: What relative paths in it are relative to.
    """

    name: str
    body: object
    places: Mapping[str, Place]
    twice: Sequence[tuple[Place, str]] = ()
    folder: Path = field(default_factory=Path)


def file_layer(file: Path, *, order: int = 0, label: str = "") -> Layer:
    """A YAML file as a layer.

    Args:
        file: Its path.
        order: Of this layer among several.
        label: Put before "line 7"; for messages about several layers.

    Raises:
        ArgumentError: It is no YAML.
        OSError: It cannot be read.
    """
    body, lines, twice = parse(file.read_bytes(), str(file))

    def place(line: int) -> Place:
        return Place((order, line), f"{label}line {line}")

    places = {path: place(line) for path, line in lines.items()}
    return Layer("the file", body, places, [(place(n), m) for n, m in twice], file.parent)


def section_layer(name: str, body: object, order: int) -> Layer:
    """A mapping from elsewhere, all of whose keys are given in the same place."""
    places: dict[str, Place] = {}
    if isinstance(body, dict):
        for key, value in body.items():
            places[str(key)] = Place((order, 0), name)
            for below in value if isinstance(value, dict) else ():
                places[f"{key}.{below}"] = places[str(key)]
    return Layer(name, body, places)


def merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], Problems, dict[str, Path]]:
    """All layers as one; None in a later layer takes a key away.

    A layer that names another method takes the options of the one below away as well.

    Returns:
        What they say together; where each key of it is given, with what was found wrong so far;
        and the folder that each top-level key's relative paths belong to.
    """
    merged: dict[str, Any] = {}
    places: dict[str, Place] = {}
    folders: dict[str, Path] = {}
    check = Problems(places)
    for layer in layers:
        check.found += layer.twice
        if not isinstance(layer.body, dict):
            check.found.append(
                (Place(), f"{layer.name} must be a mapping, got {shown(layer.body)}")
            )
            continue
        for key, value in layer.body.items():
            folders[key] = layer.folder
            old = merged.get(key)
            if key not in MERGED or not isinstance(value, dict) or not isinstance(old, dict):
                merged[key] = value
                _forget(places, str(key))
                continue
            if key == "method" and value.get("name", old.get("name")) != old.get("name"):
                for option in [o for o in old if o not in KEPT]:
                    _forget(places, f"{key}.{option}")
                old = {o: old[o] for o in KEPT if o in old}
            for below in value:
                _forget(places, f"{key}.{below}")
            merged[key] = {**old, **value}
        places.update(layer.places)
    return merged, check, folders


def _forget(places: dict[str, Place], path: str) -> None:
    """Remove a key and what is below it."""
    for known in [p for p in places if p == path or p.startswith((f"{path}.", f"{path}["))]:
        del places[known]
