"""`mixcore plan --megatron -- <args>`: reads a Megatron-LM command line, without Megatron.

The rules are those of megatron/core/datasets/utils.py (blends), blended_megatron_dataset_config.py
(splits) and megatron/training/training.py (samples), release 0.19.2.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mixcore import Ledger, _import_name
from mixcore._checks import MAX_BATCH, MAX_POSITION
from mixcore.config import Config
from mixcore.errors import ArgumentError
from mixcore.trainers.settings import add_arguments

SPLIT = "969, 30, 1"  # Megatron's default of --split with --data-path
SEED = 1234  # of --seed
SPLITS = ("train", "valid", "test")
NOT_READ = ("--step-batch-size-schedule", "--rampup-batch-size", "--yaml-cfg")
Blend = tuple[list[str], list[float] | None]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"the Megatron command line: {message}")


def ledger_of(words: Sequence[str]) -> tuple[Config, Ledger]:
    """What a Megatron command line asks for, and the ledger that its run would begin with.

    Without a `--mix-*` flag that is stock Megatron's: order `megatron`.

    Example:
        >>> config, ledger = ledger_of(["--data-path", "0.7", "web", "0.3", "code", ...])

    Args:
        words: Everything after the name of the training script. Flags that say nothing of the data
            are skipped, known or not.

    Raises:
        ArgumentError: A flag that is needed is missing, has a value that cannot be used, or names
            files that cannot be read.
    """
    foreign = _import_name.foreign()
    if foreign is not None:
        raise ArgumentError(_import_name.message(foreign))
    from megatron_patch.plan import new_ledger, settings_for
    from megatron_patch.request import SURPLUS, request_for

    args = _parse(words)
    size = _needed(args, "global_batch_size", MAX_BATCH)
    blend, per_split = _blends(args)
    if all(getattr(args, name) is None for name in vars(args) if name.startswith("mix_")):
        args.mix_order = "megatron"
    request = request_for(
        blend,
        per_split,
        train_split(SPLIT if args.split is None else args.split),
        seq_length=_needed(args, "seq_length", MAX_BATCH),
        seed=args.seed,
        train_samples=_train_samples(args, size),
        batch_sizes=((0, size),),
        surplus=SURPLUS
        if args.mid_level_dataset_surplus is None
        else args.mid_level_dataset_surplus,
    )
    settings = settings_for(args, request)
    return settings.config, new_ledger(request, settings)


def _parse(words: Sequence[str]) -> Any:
    parser = add_arguments(_Parser(add_help=False, allow_abbrev=False))
    for name in ("data", "train-data", "valid-data", "test-data"):
        parser.add_argument(f"--{name}-path", nargs="*")
    for name in ("data-args", "per-split-data-args"):
        parser.add_argument(f"--{name}-path")
    for name in ("seq-length", "global-batch-size", "train-iters", "train-samples"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--split")
    parser.add_argument("--mid-level-dataset-surplus", type=float)
    for flag in NOT_READ:
        parser.add_argument(flag, nargs="*", dest=f"not_read_{flag}")
    args, _ = parser.parse_known_args(list(words))
    for flag in NOT_READ:
        if getattr(args, f"not_read_{flag}") is not None:
            raise ArgumentError(f"{flag} is not read by mixcore plan: plan without it")
    return args


def _needed(args: Any, name: str, most: int) -> int:
    value = getattr(args, name)
    flag = "--" + name.replace("_", "-")
    if value is None:
        raise ArgumentError(f"{flag} is needed to plan a Megatron run")
    if not 1 <= value <= most:
        raise ArgumentError(f"{flag} must be in [1, {most}], got {value}")
    return int(value)


def _train_samples(args: Any, size: int) -> int:
    if args.train_samples is not None:
        if args.train_iters is not None:
            raise ArgumentError("--train-samples and --train-iters exclude each other")
        return _needed(args, "train_samples", MAX_POSITION - 1)
    if args.train_iters is None:
        raise ArgumentError("--train-iters or --train-samples is needed to plan a Megatron run")
    return _needed(args, "train_iters", (MAX_POSITION - 1) // size) * size


def _blends(args: Any) -> tuple[Blend | None, list[Blend | None] | None]:
    """The blend of all splits, and those of each: one of the two, or neither."""
    files = [args.train_data_path, args.valid_data_path, args.test_data_path]
    given = {
        "--data-path": args.data_path,
        "--data-args-path": args.data_args_path,
        "--per-split-data-args-path": args.per_split_data_args_path,
        "--train-data-path": next((f for f in files if f is not None), None),
    }
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise ArgumentError(f"{' and '.join(flags)} exclude each other")
    if args.data_path is not None:
        return blend_of("--data-path", args.data_path), None
    if args.data_args_path is not None:
        words = Path(args.data_args_path).read_text().split()
        return blend_of("--data-args-path", words), None
    if args.per_split_data_args_path is not None:
        files = _per_split(args.per_split_data_args_path)
    elif files == [None] * len(SPLITS):
        return None, None
    return None, [blend_of(f"the {s} split", w) for s, w in zip(SPLITS, files, strict=True)]


def _per_split(path: str) -> list[Any]:
    flag = f"--per-split-data-args-path {path}"
    try:
        given = json.loads(Path(path).read_text())
    except ValueError as e:
        raise ArgumentError(f"{flag}: {e}") from None
    if not isinstance(given, dict) or any(split not in given for split in SPLITS):
        raise ArgumentError(f"{flag}: it must be a JSON object with {', '.join(SPLITS)}")
    found = [given[split] for split in SPLITS]
    return [words.split() if isinstance(words, str) else words for words in found]


def blend_of(name: str, words: Sequence[str] | None) -> Blend | None:
    """Prefixes and weights, or prefixes alone; an even number of words may be either.

    Example:
        >>> blend_of("--data-path", ["0.7", "web", "0.3", "code"])
        (['web', 'code'], [0.7, 0.3])

    Raises:
        ArgumentError: Some of the weights are numbers and others are not.
    """
    if not words:
        return None
    if len(words) % 2:
        return list(words), None
    weights = [_weight(word) for word in words[::2]]
    if all(w is None for w in weights):
        return list(words), None
    if None in weights:
        wrong = words[2 * weights.index(None)]
        raise ArgumentError(f"{name}: a weight must be a number, got {wrong!r}")
    return list(words[1::2]), [float(w) for w in weights if w is not None]


def _weight(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def train_split(text: str) -> tuple[float, float] | None:
    """Where the train split begins and ends, as fractions; None if it is empty.

    Example:
        >>> train_split("99,1,0")
        (0.0, 0.99)

    Raises:
        ArgumentError: Not up to three numbers >= 0 with a positive sum.
    """
    parts = [_weight(part) for part in text.replace(",", " ").replace("/", " ").split()]
    numbers = [p for p in parts if p is not None and 0 <= p < float("inf")]
    if len(numbers) != len(parts) or not 1 <= len(parts) <= 3 or sum(numbers) <= 0:
        raise ArgumentError(f"--split must be up to three numbers as in {SPLIT!r}, got {text!r}")
    share = numbers[0] / sum(numbers)
    return (0.0, share) if share > 0 else None
