"""The settings of a run under a trainer: its flags, a section of its own configuration, `mix.yaml`.

Every trainer has the same flags and the same keys. Flags win over the section, the section over the
file; facts that the trainer knows (its batch size, its domains) are not asked for again.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixcore._config_domains import KnownDomain as KnownDomain
from mixcore._layers import Layer, file_layer, section_layer
from mixcore._problems import Place
from mixcore._yaml import parse
from mixcore.config import Config, config_from
from mixcore.errors import ArgumentError, ArgumentTypeError, MixcoreError

FLAGS = {  # attribute of the parsed arguments -> key of a mix.yaml
    "mix_order": "order",
    "mix_ledger": "ledger",
    "mix_control": "control",
    "mix_method": "method.name",
    "mix_update_every": "method.update_every",
    "mix_lag": "method.lag_steps",
}
GIVEN = ("batch_size", "train_samples", "tokens_per_sample")


@dataclass(frozen=True)
class Settings:
    """What flags, section and file say together.

    Attributes:
        config: All of it, checked.
        ledger_path: Where rank 0 keeps the ledger; None: in the trainer's checkpoints alone.
        control_path: A file by which a person or a program sets weights while the run goes on
            (`external`, polled on rank 0), or None. It goes with fixed weights, not with a method
            or a schedule for later positions: these would undo what it asks for.
        lag_steps: Steps from a decision to its effect; None: computed from the loader.
    """

    config: Config
    ledger_path: Path | None
    control_path: Path | None
    lag_steps: int | None


def add_arguments(
    parser: argparse.ArgumentParser, title: str = "mixcore"
) -> argparse.ArgumentParser:
    """Add the flags, as a group of their own; returns the parser.

    Example:
        >>> parser = add_arguments(argparse.ArgumentParser())
        >>> args = parser.parse_args(["--mix-config", "mix.yaml", "--mix-method", "odm"])
    """
    if not isinstance(parser, argparse.ArgumentParser):
        raise ArgumentTypeError(f"parser must be an argparse.ArgumentParser, got {parser!r}")
    group = parser.add_argument_group(title, "the data mixture, and what may change it")
    group.add_argument("--mix-config", metavar="FILE", help="a mix.yaml")
    group.add_argument("--mix-method", metavar="NAME", help="how weights are chosen")
    group.add_argument(
        "--mix-method-option",
        metavar="KEY=VALUE",
        action="append",
        help="an option of the method; may be given several times",
    )
    group.add_argument(
        "--mix-update-every", metavar="STEPS", type=int, help="optimizer steps between updates"
    )
    group.add_argument("--mix-order", metavar="NAME", help="balanced, megatron or random")
    group.add_argument("--mix-ledger", metavar="FILE", help="where rank 0 keeps the ledger")
    group.add_argument(
        "--mix-control", metavar="FILE", help="a file that sets weights while the run goes on"
    )
    group.add_argument(
        "--mix-lag", metavar="STEPS", type=int, help="optimizer steps from a decision to its effect"
    )
    return parser


def load_settings(
    args: object,
    *,
    section: object = None,
    given: Mapping[str, int | None],
    domains: Sequence[KnownDomain] | None = None,
    section_name: str = "the section",
) -> Settings:
    """Merge flags, section and file, and check what they say together.

    Example:
        >>> settings = load_settings(args, given={"batch_size": 512})
        >>> ledger = settings.config.ledger()

    Args:
        args: Parsed arguments with the attributes of `add_arguments`; those that are missing are
            not given. None: no flags.
        section: A mapping with the keys of a `mix.yaml`, or None.
        given: What the trainer knows: `batch_size`, `train_samples`, `tokens_per_sample`; None or
            left out: unknown. A layer may repeat such a fact, not contradict it.
        domains: The trainer's; the layers' `domains` then add weights and caps to them by name,
            and may be left out.
        section_name: What the section is called, for messages.

    Raises:
        ArgumentError: Everything wrong in one message, a line each: where it was given, the path of
            the key, what came and what is allowed.
        OSError: The file cannot be read.
    """
    unknown = [key for key in given if key not in GIVEN]
    if unknown:
        raise ArgumentError(f"given must have keys among {', '.join(GIVEN)}, got {unknown}")
    if domains is not None:
        _check_known(domains)
    layers = []
    name = getattr(args, "mix_config", None)
    file = Path() if name is None else Path(name)
    if name is not None:
        layers.append(file_layer(file, label=f"{file}: "))
    if section is not None:
        layers.append(section_layer(section_name, section, 1))
    layers.append(_flags(args))
    if len(layers) == 1 and domains is None:
        raise ArgumentError("domains are not known: give --mix-config or a section with `domains`")
    config = config_from(layers, file, "mixcore settings", given=given, known=domains)
    lag = None if config.method is None else config.method.lag_steps
    return Settings(config, config.ledger_path, config.control_path, lag)


def _check_known(domains: Sequence[KnownDomain]) -> None:
    names = [d.name for d in domains]
    if len(set(names)) != len(names) or not names:
        raise ArgumentError(f"domains must have one or more unique names, got {names}")


def _flags(args: object) -> Layer:
    """The flags that were given, as a layer above all others."""
    body: dict[str, Any] = {}
    places: dict[str, Place] = {}
    twice: list[tuple[Place, str]] = []

    def give(key: str, flag: str, value: object) -> None:
        outer, _, inner = key.partition(".")
        place = Place((2, len(places)), flag)
        places[key] = place
        if inner:
            body.setdefault(outer, {})[inner] = value
            places.setdefault(outer, place)
        else:
            body[key] = value

    for attribute, key in FLAGS.items():
        value = getattr(args, attribute, None)
        if value is not None:
            give(key, "--" + attribute.replace("_", "-"), value)
    flag = "--mix-method-option"
    for text in getattr(args, "mix_method_option", None) or ():
        option, equals, value = str(text).partition("=")
        key = f"method.{option}"
        if not equals or not option:
            twice.append((Place((2, 0), flag), f"must be key=value, got {text!r}"))
        elif key in FLAGS.values():
            other = next("--" + a.replace("_", "-") for a, k in FLAGS.items() if k == key)
            twice.append((Place((2, 0), flag), f"{option} is no option: use {other}"))
        elif key in places:
            twice.append((places[key], f"{key} is given twice, got {text!r}"))
        else:
            try:
                give(key, flag, parse(value.encode(), text)[0])
            except MixcoreError as e:
                twice.append((Place((2, 0), flag), str(e)))
    return Layer("the flags", body, places, twice)
