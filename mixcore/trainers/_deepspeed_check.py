"""Settings checked before there is an engine, which may take minutes to make."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixcore._yaml import parse
from mixcore.dataset import MixDataset
from mixcore.errors import ArgumentError, ArgumentTypeError
from mixcore.trainers._deepspeed_engine import check_config, domains_of
from mixcore.trainers.settings import Settings, load_settings

SECTION = "data_mixing"  # of ds_config.json


def check(
    args: Any,
    config: Mapping[str, Any] | str | os.PathLike[str] | None,
    datasets: Mapping[str, Any] | MixDataset,
) -> Settings:
    """Check flags, section and file before `deepspeed.initialize`; `initialize` does so again.

    Example:
        >>> mixcore.trainers.deepspeed.check(args, None, {"web": web, "code": code})

    Args:
        args: Parsed arguments with the flags of `add_arguments`, or None.
        config: What DeepSpeed will be given: a mapping, or the path of its file; None:
            `args.deepspeed_config`.
        datasets: Name of a domain -> map-style dataset.

    Returns:
        The settings. Where neither they nor `train_batch_size` say it, their batch_size is a
        placeholder: the engine's will count.

    Raises:
        ArgumentError: As `initialize`: everything wrong with the settings in one message.
        OSError: A file cannot be read.
    """
    if isinstance(datasets, MixDataset):
        raise ArgumentTypeError("datasets must map names to datasets here, got a MixDataset")
    if config is None:
        config = getattr(args, "deepspeed_config", None)
        if config is None:
            raise ArgumentError("config must be given: args has no deepspeed_config")
    body = config if isinstance(config, Mapping) else _read(Path(config))
    check_config(body)
    section = body.get(SECTION)
    size = body.get("train_batch_size")
    known = size if isinstance(size, int) else None  # Accelerate writes "auto"
    if known is None and not _says_batch_size(args, section):
        known = 1
    return load_settings(
        args,
        section=section,
        section_name=f"{SECTION} in the DeepSpeed configuration",
        given={"batch_size": known},
        domains=domains_of(datasets, None),
    )


def _read(path: Path) -> Mapping[str, Any]:
    """DeepSpeed reads hjson; it comes with DeepSpeed, and plain JSON does without."""
    content = path.read_text(encoding="utf-8")
    try:
        body = json.loads(content)
    except ValueError as e:
        try:
            import hjson  # type: ignore[import-untyped, import-not-found, unused-ignore]

            body = hjson.loads(content)
        except (ImportError, ValueError):
            raise ArgumentError(f"{path} is not JSON: {e}") from None
    if not isinstance(body, Mapping):
        raise ArgumentError(f"{path} must hold a mapping, got {body!r}")
    return body


def _says_batch_size(args: Any, section: Any) -> bool:
    if isinstance(section, Mapping) and section.get("batch_size") is not None:
        return True
    file = getattr(args, "mix_config", None)
    body = None if file is None else parse(Path(file).read_bytes(), str(file))[0]
    return isinstance(body, dict) and body.get("batch_size") is not None
